//! A node's process, put together: its data directory, its node, its doors, and the loop that
//! drives them until they stop.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base::{Address, BootId, ClusterId, DiskId, NodeId, Random};
use node::{Node, OpenError};
use router::{Answer, Body, ClusterAnswer, ClusterOp, Header, Request};
use runtime::{
    BindError, DataDir, DataDirError, EngineOptions, FileDisk, LsmEngine, RunError, Stats,
};
use storage::{Disk, Engine, EngineError, Superblock, SuperblockError, WalOptions};
use tokio::sync::oneshot;

use crate::doors::{DoorsError, open_doors};
use crate::listen::{ListenError, check_listen};

/// What a node's process is started with.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Where the node keeps everything.
    pub data_dir: PathBuf,
    /// Where the gRPC door listens, `host:port`.
    pub grpc: String,
    /// Where other nodes connect, `host:port`.
    pub peer: String,
    /// The host by which others reach this node.
    pub advertise: String,
    /// Peer addresses of the masters.
    pub masters: Vec<Address>,
    /// The node's number, where its operator gives one.
    pub node: Option<u64>,
    /// Size of the write-ahead log in bytes at which writes are refused.
    pub wal_bytes_max: Option<u64>,
    /// Size of a segment of the write-ahead log in bytes.
    pub wal_segment_bytes: Option<u64>,
    /// Bytes of the store's blocks that are kept in memory.
    pub cache_bytes: Option<u64>,
    /// Bytes of its log that a group keeps for replicas that lack them.
    pub log_bytes_max: Option<usize>,
    /// Bytes of the disk that are read in a second to look for damage; 0 for none.
    pub scrub_bytes_per_second: Option<u64>,
    /// Whether addresses that other machines reach are allowed.
    pub insecure: bool,
}

/// Why a node's process ended. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address that other machines reach needs consent.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A port cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The superblock cannot be used.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// The data directory belongs to another node.
    #[error(
        "this data directory belongs to node {found}, not to node {wanted}: start it as node \
         {found}, or give node {wanted} a directory of its own"
    )]
    OtherNode {
        /// The number that was asked for.
        wanted: u64,
        /// The number that the directory has.
        found: u64,
    },
    /// The settings of the write-ahead log make no sense.
    #[error("{0}")]
    WalOptions(String),
    /// The store cannot be opened.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The node cannot be recovered.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The doors failed.
    #[error(transparent)]
    Doors(#[from] DoorsError),
    /// The node cannot go on.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Runs a node until `stopped` is ready and it has stopped in good order, or until it cannot go
/// on. Must be called on a single-threaded executor: the turn and all sockets share it.
pub async fn serve(
    options: ServeOptions,
    stopped: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    for address in [&options.grpc, &options.peer] {
        check_listen(host_of(address), options.insecure)?;
    }
    let data_dir = DataDir::open(&options.data_dir)?;
    let grpc = runtime::bind(&options.grpc).await?;
    let peer = runtime::bind(&options.peer).await?;
    let mut disk = data_dir.disk()?;
    let mut superblock = start_count(&mut disk, &options)?;
    let engine: Arc<dyn Engine> = Arc::new(open_engine(&data_dir, &options, superblock.starts)?);
    let node_options = node_options(&options, &superblock)?;
    let node = Node::open(node_options, &mut disk, engine.clone(), runtime::now())?;
    let status = node.status();
    tracing::info!(
        "node {} with disk {} (start {}), gRPC at {}, peers at {}{}",
        status.node.0,
        status.disk,
        superblock.starts,
        status.grpc,
        status.peer,
        if options.insecure { ", insecure: no encryption, no password" } else { "" }
    );

    let naming = disk.clone();
    let (handle, requests) = runtime::requests();
    let stats = Arc::new(Stats::default());
    let parts = runtime::Parts { disk, engine, listener: peer, requests, stats };
    let run = runtime::run(node, parts, runtime::Options::default());
    let (close, closed) = oneshot::channel::<()>();
    let doors = open_doors(grpc, handle.clone(), async {
        // An error means that the sender is gone, which is a stop too.
        let _ = closed.await;
    });
    let named = name_cluster(&handle, &mut superblock, naming);
    tokio::pin!(run, doors, named, stopped);
    tokio::select! {
        ended = &mut run => return Ok(ended?),
        Err(error) = &mut named => return Err(error.into()),
        ended = &mut doors => {
            ended?;
            unreachable!("the doors were not told to close");
        }
        () = &mut stopped => tracing::info!("stopping"),
    }
    // What was asked before is still answered: the doors close first, then the node stops.
    drop(close);
    tokio::select! {
        ended = &mut run => return Ok(ended?),
        ended = &mut doors => ended?,
    }
    handle.stop();
    Ok(run.await?)
}

/// Opens the store. One that is damaged is set aside for inquiry, and an empty one takes its place:
/// the node fills it from its log where that goes back far enough, and else votes on without.
fn open_engine(
    data_dir: &DataDir,
    options: &ServeOptions,
    starts: u64,
) -> Result<LsmEngine, ServeError> {
    let path = data_dir.engine_path();
    let mut engine = EngineOptions::default();
    engine.cache_bytes = options.cache_bytes.unwrap_or(engine.cache_bytes);
    let error = match LsmEngine::open(&path, engine) {
        Ok(engine) => return Ok(engine),
        Err(error) if error.is_damage() => error,
        Err(error) => return Err(error.into()),
    };
    let aside = path.with_file_name(format!("engine.damaged-{starts}"));
    tracing::error!("{error}; it is set aside as {}", aside.display());
    std::fs::rename(&path, &aside).map_err(|source| DataDirError::Io {
        what: "set aside the damaged store",
        path,
        source,
    })?;
    Ok(LsmEngine::open(&data_dir.engine_path(), engine)?)
}

/// Reads or makes the superblock, and counts this start durably.
fn start_count(disk: &mut dyn Disk, options: &ServeOptions) -> Result<Superblock, ServeError> {
    let mut superblock = match Superblock::read(disk)? {
        Some(superblock) => superblock,
        None => Superblock::format(disk, DiskId(runtime::random_u128()))?,
    };
    let found = superblock.node_id.0;
    match options.node {
        Some(wanted) if found != 0 && found != wanted => {
            return Err(ServeError::OtherNode { wanted, found });
        }
        Some(wanted) => superblock.node_id = NodeId(wanted),
        None if found == 0 => superblock.node_id = place_among_masters(options),
        None => {}
    }
    superblock.starts += 1;
    superblock.update(disk)?;
    Ok(superblock)
}

/// How often the node is asked for its cluster until it has one.
const NAME_INTERVAL: Duration = Duration::from_millis(500);

/// Writes the node's cluster into the superblock as soon as the log has it for ever.
async fn name_cluster(
    handle: &runtime::Handle<Request, router::Reply>,
    superblock: &mut Superblock,
    disk: FileDisk,
) -> Result<std::convert::Infallible, SuperblockError> {
    while superblock.cluster_id == ClusterId(0) {
        let body = Body::Cluster(ClusterOp::Status);
        let asked = handle.call(Request { header: Header::default(), body }).await;
        if let Ok(router::Reply {
            body: Ok(Answer::Cluster(ClusterAnswer::Status(status))), ..
        }) = asked
            && let Some(cluster) = status.cluster
        {
            superblock.cluster_id = cluster;
            let mut superblock = superblock.clone();
            let mut disk = disk.clone();
            // A few writes and syncs, too long for a turn.
            let written = tokio::task::spawn_blocking(move || superblock.update(&mut disk)).await;
            match written {
                Ok(written) => written?,
                Err(ended) => tracing::error!("the superblock was not written: {ended}"),
            }
        }
        tokio::time::sleep(NAME_INTERVAL).await;
    }
    std::future::pending().await
}

/// A master without a number takes its place in the list of masters, which is the same for all.
fn place_among_masters(options: &ServeOptions) -> NodeId {
    let own = advertised(options, &options.peer);
    let place = options.masters.iter().position(|master| *master == own);
    NodeId(place.map_or(0, |place| place as u64 + 1))
}

fn node_options(
    options: &ServeOptions,
    superblock: &Superblock,
) -> Result<node::Options, ServeError> {
    let mut wal = WalOptions::new(superblock.disk_id);
    wal.segment_bytes = options.wal_segment_bytes.unwrap_or(wal.segment_bytes);
    wal.bytes_max = options.wal_bytes_max.unwrap_or(wal.bytes_max);
    wal.validate().map_err(ServeError::WalOptions)?;
    let boot = BootId(runtime::random_u128());
    let peer = advertised(options, &options.peer);
    let grpc = advertised(options, &options.grpc);
    let disk = superblock.disk_id;
    let usual = node::Options::new(disk, boot, superblock.starts, peer, grpc, wal);
    let scrub = options.scrub_bytes_per_second.unwrap_or(usual.scrub_bytes_per_second);
    Ok(node::Options {
        cluster: (superblock.cluster_id != ClusterId(0)).then_some(superblock.cluster_id),
        node: superblock.node_id,
        scrub_bytes_per_second: scrub,
        log_bytes_max: options.log_bytes_max.unwrap_or(usual.log_bytes_max),
        masters: options.masters.clone(),
        seed: Random::new(runtime::random_u64()).next_u64(),
        ..usual
    })
}

/// The address by which others reach what listens on `listen`.
fn advertised(options: &ServeOptions, listen: &str) -> Address {
    let port = listen.rsplit(':').next().unwrap_or(listen);
    let host = &options.advertise;
    if host.contains(':') {
        Address::new(&format!("[{host}]:{port}"))
    } else {
        Address::new(&format!("{host}:{port}"))
    }
}

/// The host of an address `host:port`.
fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}
