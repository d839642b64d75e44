//! The three services of `decree.v1`.

use std::sync::Arc;
use std::time::Duration;

use api::v1::cluster_server::Cluster;
use api::v1::kv_server::Kv;
use api::v1::pipeline_reply::Reply as ProtoReply;
use api::v1::shard_master_server::ShardMaster;
use api::v1::{self, PipelineRequest};
use base::Micros;
use client::convert::{ToRequest, error_to_proto, limit_timeout, reply_to_proto};
use router::ErrorReply;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::ask::Ask;
use crate::book::Book;
use crate::pipeline::{Pipeline, stopped};

/// The services as the health service names them; the empty name stands for the whole node.
pub(crate) const SERVICES: [&str; 4] =
    ["", "decree.v1.Kv", "decree.v1.ShardMaster", "decree.v1.Cluster"];

/// The node's answer should be on its way before the time that the client set is over: after that
/// the transport says only that it is.
const TIMEOUT_MARGIN_MAX: Duration = Duration::from_millis(20);

/// All services, in front of one node.
#[derive(Debug)]
pub(crate) struct Services<A> {
    pub(crate) ask: A,
    pub(crate) book: Arc<Book>,
    pub(crate) stop: watch::Receiver<bool>,
}

impl<A: Ask> Clone for Services<A> {
    fn clone(&self) -> Services<A> {
        Services { ask: self.ask.clone(), book: self.book.clone(), stop: self.stop.clone() }
    }
}

impl<A: Ask> Services<A> {
    /// Answers one call. Errors become statuses that carry them.
    async fn answer<R: ToRequest>(&self, request: Request<R>) -> Result<ProtoReply, Status> {
        let limit = grpc_timeout(request.metadata());
        let mut request = request.into_inner().to_request().map_err(|error| status(&error))?;
        if let Some(limit) = limit {
            limit_timeout(&mut request.header, limit);
        }
        let Ok(reply) = self.ask.call(request).await else {
            return Err(status(&stopped(R::KIND.is_write())));
        };
        let reply = reply_to_proto(R::KIND, reply, self.book.as_ref());
        if let ProtoReply::Error(error) = &reply {
            return Err(api::status::from_error(error));
        }
        Ok(reply)
    }
}

fn status(error: &ErrorReply) -> Status {
    api::status::from_error(&error_to_proto(error, None))
}

/// The time that the caller gives the call, less what the way back takes. `grpc-timeout` is up to
/// eight digits and a unit.
fn grpc_timeout(metadata: &MetadataMap) -> Option<Micros> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let unit = text.chars().last()?;
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    let micros = match unit {
        'H' => number.saturating_mul(3_600_000_000),
        'M' => number.saturating_mul(60_000_000),
        'S' => number.saturating_mul(1_000_000),
        'm' => number.saturating_mul(1_000),
        'u' => number,
        'n' => number / 1_000,
        _ => return None,
    };
    let margin = (micros / 10).min(TIMEOUT_MARGIN_MAX.as_micros() as u64);
    Some(Micros((micros - margin).max(1)))
}

/// Answers a call under the one kind of reply that fits it; the conversion gives no other.
macro_rules! answer {
    ($services:ident, $request:ident, $kind:ident) => {{
        let reply = $services.answer($request).await?;
        let ProtoReply::$kind(reply) = reply else {
            return Err(Status::internal("the answer does not fit the request"));
        };
        Ok(Response::new(reply))
    }};
}

#[tonic::async_trait]
impl<A: Ask> Kv for Services<A> {
    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetReply>, Status> {
        answer!(self, request, Get)
    }

    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutReply>, Status> {
        answer!(self, request, Put)
    }

    async fn put_hash(
        &self,
        request: Request<v1::PutHashRequest>,
    ) -> Result<Response<v1::PutHashReply>, Status> {
        answer!(self, request, PutHash)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteReply>, Status> {
        answer!(self, request, Delete)
    }

    async fn append(
        &self,
        request: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendReply>, Status> {
        answer!(self, request, Append)
    }

    async fn compare_and_swap(
        &self,
        request: Request<v1::CompareAndSwapRequest>,
    ) -> Result<Response<v1::CompareAndSwapReply>, Status> {
        answer!(self, request, CompareAndSwap)
    }

    type PipelineStream = Pipeline<A::Answers>;

    async fn pipeline(
        &self,
        request: Request<Streaming<PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        let requests = request.into_inner();
        let pipeline = Pipeline::new(&self.ask, requests, self.book.clone(), self.stop.clone());
        Ok(Response::new(pipeline))
    }
}

#[tonic::async_trait]
impl<A: Ask> ShardMaster for Services<A> {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinReply>, Status> {
        answer!(self, request, Join)
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::LeaveReply>, Status> {
        answer!(self, request, Leave)
    }

    async fn r#move(
        &self,
        request: Request<v1::MoveRequest>,
    ) -> Result<Response<v1::MoveReply>, Status> {
        answer!(self, request, Move)
    }

    async fn replace_node(
        &self,
        request: Request<v1::ReplaceNodeRequest>,
    ) -> Result<Response<v1::ReplaceNodeReply>, Status> {
        answer!(self, request, ReplaceNode)
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::DrainNodeReply>, Status> {
        answer!(self, request, DrainNode)
    }

    async fn query(
        &self,
        request: Request<v1::QueryRequest>,
    ) -> Result<Response<v1::QueryReply>, Status> {
        answer!(self, request, Query)
    }
}

#[tonic::async_trait]
impl<A: Ask> Cluster for Services<A> {
    async fn init(
        &self,
        request: Request<v1::InitRequest>,
    ) -> Result<Response<v1::InitReply>, Status> {
        answer!(self, request, Init)
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        answer!(self, request, Status)
    }

    async fn routes(
        &self,
        request: Request<v1::RoutesRequest>,
    ) -> Result<Response<v1::RoutesReply>, Status> {
        answer!(self, request, Routes)
    }

    async fn shards(
        &self,
        request: Request<v1::ShardsRequest>,
    ) -> Result<Response<v1::ShardsReply>, Status> {
        answer!(self, request, Shards)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_of_a_call_leaves_time_for_its_answer() {
        let timeout = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            grpc_timeout(&metadata).map(|timeout| timeout.0)
        };
        assert_eq!(timeout("2S"), Some(1_980_000));
        assert_eq!(timeout("100m"), Some(90_000));
        assert_eq!(timeout("1u"), Some(1));
        assert_eq!(timeout("99999999H"), Some(99_999_999 * 3_600_000_000 - 20_000));
        for garbage in ["", "S", "12", "-1S", "1x", "1.5S"] {
            assert_eq!(timeout(garbage), None, "{garbage}");
        }
        assert_eq!(grpc_timeout(&MetadataMap::new()), None);
    }
}
