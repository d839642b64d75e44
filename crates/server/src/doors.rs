//! The gRPC door: all services on one listener.

use std::sync::Arc;
use std::time::Duration;

use api::v1::cluster_server::ClusterServer;
use api::v1::kv_server::KvServer;
use api::v1::shard_master_server::ShardMasterServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;

use crate::ask::Ask;
use crate::book::{self, Book};
use crate::services::{SERVICES, Services};

/// Calls and streams that one connection may have open at a time.
const CONNECTION_STREAMS_MAX: u32 = 1_024;
/// A client that is silent for so long is probed, and dropped when it does not answer in time.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// After the stop, connections have so long to give the answers that are there.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the doors ended otherwise than by a stop.
#[derive(Debug, thiserror::Error)]
pub enum DoorsError {
    /// The reflection service does not take our definitions.
    #[error("the public definitions are damaged: {0}")]
    Definitions(#[from] tonic_reflection::server::Error),
    /// The listener failed.
    #[error("the gRPC door failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves all services on this listener, until `stop` is ready and the answers that are there were
/// given, or the time for that is over. Belongs on the thread of the node's turn.
pub async fn open_doors<A: Ask>(
    listener: TcpListener,
    ask: A,
    stop: impl Future<Output = ()>,
) -> Result<(), DoorsError> {
    let (stop_sender, stop_receiver) = watch::channel(false);
    let book = Arc::new(Book::default());
    let (health, health_service) = tonic_health::server::health_reporter();
    for service in SERVICES {
        health.set_service_status(service, ServingStatus::NotServing).await;
    }
    let services = Services { ask: ask.clone(), book: book.clone(), stop: stop_receiver.clone() };
    let size = api::MESSAGE_BYTES_MAX;
    let mut stopped = stop_receiver;
    let serving = Server::builder()
        .initial_stream_window_size(api::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(api::CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(CONNECTION_STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_service(KvServer::new(services.clone()).max_decoding_message_size(size))
        .add_service(ShardMasterServer::new(services.clone()).max_decoding_message_size(size))
        .add_service(ClusterServer::new(services).max_decoding_message_size(size))
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .serve_with_incoming_shutdown(incoming(listener), async move {
            // An error means that the sender is gone, which is a stop too.
            let _ = stopped.wait_for(|stop| *stop).await;
        });
    tokio::pin!(serving);
    tokio::select! {
        ended = &mut serving => return Ok(ended?),
        () = book::watch(ask, &book, health) => unreachable!("the watch goes on for ever"),
        () = stop => {}
    }
    stop_sender.send_replace(true);
    match tokio::time::timeout(STOP_TIMEOUT, serving).await {
        Ok(ended) => Ok(ended?),
        Err(_) => Ok(()),
    }
}

/// The connections that come in. The option must be set here: with a listener of one's own the
/// server's is ignored, and each small answer would wait 40 milliseconds for an acknowledgement.
pub(crate) fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(api::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
