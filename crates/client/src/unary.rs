//! A plain client of one node: each call is one unary gRPC call, without routing or retries. The
//! way for questions about one node, for comparisons, and for tests.

use api::v1::cluster_client::ClusterClient;
use api::v1::kv_client::KvClient;
use api::v1::pipeline_reply::Reply as ProtoReply;
use api::v1::pipeline_request::Request as ProtoRequest;
use api::v1::shard_master_client::ShardMasterClient;
use bytes::Bytes;
use router::{Answer, Body, Header, KvOp, Request};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::calls::Answered;
use crate::convert::{reply_from_proto, request_to_proto};
use crate::error::{Error, innermost};
use crate::options::{Options, endpoint, micros, normalize};

/// A client of one node. Clones share its connection.
#[derive(Clone, Debug)]
pub struct Unary {
    channel: Channel,
    options: Options,
}

impl Unary {
    /// Connects to the node at this endpoint, `host:port`.
    pub async fn connect(address: &str, options: Options) -> Result<Unary, Error> {
        let address = normalize(address)?;
        let channel = endpoint(&address, &options)?.connect().await.map_err(|error| {
            Error::NobodyReachable(format!("{address} does not answer ({})", innermost(&error)))
        })?;
        Ok(Unary { channel, options })
    }

    /// The value of a key; none if the key is absent.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Answered<Option<Bytes>>, Error> {
        let answered = self.kv(KvOp::Get { key: key.into() }).await?;
        let Answer::Value(value) = answered.value else {
            return Err(Error::Unavailable("the answer does not fit the request".to_owned()));
        };
        Ok(Answered { value, header: answered.header })
    }

    /// Sets the value of a key. Without a session: a lost answer must not be followed by a repeat
    /// unless executing twice does no harm.
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Answered<()>, Error> {
        let answered = self.kv(KvOp::Put { key: key.into(), value: value.into() }).await?;
        Ok(Answered { value: (), header: answered.header })
    }

    async fn kv(&self, op: KvOp) -> Result<Answered<Answer>, Error> {
        let header = Header { timeout: micros(self.options.timeout), ..Header::default() };
        self.call(Request { header, body: Body::Kv(op) }).await
    }

    /// Sends any request, once.
    pub async fn call(&self, request: Request) -> Result<Answered<Answer>, Error> {
        let is_write = request.body.is_write();
        let request = request_to_proto(request)?;
        let reply = self.send(request).await;
        let reply = reply.map_err(|status| Error::from_status(&status, is_write))?;
        let reply = reply_from_proto(Some(reply))
            .map_err(|malformed| Error::lost(malformed.to_string(), is_write))?;
        Ok(Answered { value: reply.body?, header: reply.header })
    }

    async fn send(&self, request: ProtoRequest) -> Result<ProtoReply, Status> {
        let size = api::MESSAGE_BYTES_MAX;
        let kv = || KvClient::new(self.channel.clone()).max_decoding_message_size(size);
        let master =
            || ShardMasterClient::new(self.channel.clone()).max_decoding_message_size(size);
        let cluster = || ClusterClient::new(self.channel.clone()).max_decoding_message_size(size);
        Ok(match request {
            ProtoRequest::Get(r) => ProtoReply::Get(inner(kv().get(r).await)?),
            ProtoRequest::Put(r) => ProtoReply::Put(inner(kv().put(r).await)?),
            ProtoRequest::PutHash(r) => ProtoReply::PutHash(inner(kv().put_hash(r).await)?),
            ProtoRequest::Delete(r) => ProtoReply::Delete(inner(kv().delete(r).await)?),
            ProtoRequest::Append(r) => ProtoReply::Append(inner(kv().append(r).await)?),
            ProtoRequest::CompareAndSwap(r) => {
                ProtoReply::CompareAndSwap(inner(kv().compare_and_swap(r).await)?)
            }
            ProtoRequest::Join(r) => ProtoReply::Join(inner(master().join(r).await)?),
            ProtoRequest::Leave(r) => ProtoReply::Leave(inner(master().leave(r).await)?),
            ProtoRequest::Move(r) => ProtoReply::Move(inner(master().r#move(r).await)?),
            ProtoRequest::ReplaceNode(r) => {
                ProtoReply::ReplaceNode(inner(master().replace_node(r).await)?)
            }
            ProtoRequest::DrainNode(r) => {
                ProtoReply::DrainNode(inner(master().drain_node(r).await)?)
            }
            ProtoRequest::Query(r) => ProtoReply::Query(inner(master().query(r).await)?),
            ProtoRequest::Init(r) => ProtoReply::Init(inner(cluster().init(r).await)?),
            ProtoRequest::Status(r) => ProtoReply::Status(inner(cluster().status(r).await)?),
            ProtoRequest::Routes(r) => ProtoReply::Routes(inner(cluster().routes(r).await)?),
            ProtoRequest::Shards(r) => ProtoReply::Shards(inner(cluster().shards(r).await)?),
        })
    }
}

fn inner<T>(response: Result<Response<T>, Status>) -> Result<T, Status> {
    response.map(Response::into_inner)
}
