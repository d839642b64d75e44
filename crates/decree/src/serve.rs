//! `decree serve`: one node.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::ask::check_address;
use crate::dev::StopSignals;
use crate::failure::Failure;
use crate::ports::NodePorts;

/// The options of `decree serve`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ServeArguments {
    /// Where the node keeps everything; made at its first start
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Peer addresses of the nodes that hold the shard master, the same list for every node
    #[arg(long, required = true, value_name = "ADDR,...", value_delimiter = ',')]
    pub(crate) masters: Vec<String>,
    /// The node's number [default: the one it had, or the next that is free]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) node: Option<u64>,
    /// The address that the doors listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// gRPC listens on this port + 100 + N, peers on this port + 300 + N, N being the node's
    /// number (1 without --node); 0 takes free ports, which the data directory keeps
    #[arg(long, value_name = "PORT", default_value_t = 7_000)]
    pub(crate) base_port: u16,
    /// The gRPC port, in place of the counted one
    #[arg(long, value_name = "PORT")]
    pub(crate) grpc_port: Option<u16>,
    /// The port for other nodes, in place of the counted one
    #[arg(long, value_name = "PORT")]
    pub(crate) peer_port: Option<u16>,
    /// The host name or address by which others reach this node [default: that of --host]
    #[arg(long, value_name = "HOST")]
    pub(crate) advertise: Option<String>,
    /// Allow addresses that other machines reach, without encryption or passwords
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Refuse writes when the write-ahead log is larger than this [default: 1 GiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) wal_bytes_max: Option<u64>,
    /// Size of a segment of the write-ahead log [default: 64 MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) wal_segment_bytes: Option<u64>,
    /// Keep so much of what is read from the store in memory: what is read often and is not there
    /// waits for the disk, and writes of other nodes on the same disk go before it
    /// [default: 512 MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) cache_bytes: Option<u64>,
    /// Keep so much of a group's log for replicas that are behind, and no more than half of the
    /// write-ahead log; what is behind that gets a copy of the group's state [default: 256 MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) log_bytes_max: Option<u64>,
    /// Read so much of the disk in a second to look for damage; 0 for none [default: 4 MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) scrub_rate: Option<u64>,
    /// What is logged on standard error
    #[arg(long, value_enum, default_value_t = Level::Info)]
    pub(crate) log: Level,
    /// End in good order when standard input ends
    #[arg(long, hide = true)]
    pub(crate) parent_pipe: bool,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// What a person must look into.
    Error,
    /// And what may become such.
    Warn,
    /// And what happens seldom: starts, leaders, connections.
    Info,
    /// And what happens often.
    Debug,
}

/// Runs the node until it is told to stop, or cannot go on.
pub(crate) async fn run(arguments: ServeArguments) -> Result<(), Failure> {
    init_log(arguments.log);
    for master in &arguments.masters {
        check_address(master)?;
    }
    let ports = ports(&arguments)?;
    let mut stop = StopSignals::listen()?;
    let parent_pipe = arguments.parent_pipe;
    let options = options(arguments, ports);
    let stopped = async move {
        tokio::select! {
            () = stop.received() => {}
            () = input_end(), if parent_pipe => {}
        }
    };
    server::serve(options, stopped)
        .await
        .map_err(|error| Failure::error("serve", error.to_string()))
}

fn ports(arguments: &ServeArguments) -> Result<NodePorts, Failure> {
    let counted = match (arguments.grpc_port, arguments.peer_port, arguments.base_port) {
        (Some(grpc), Some(peer), _) => return Ok(NodePorts { grpc, peer }),
        (_, _, 0) => NodePorts::kept(&arguments.data_dir, &arguments.host)?,
        (_, _, base) => NodePorts::counted(base, arguments.node.unwrap_or(1))?,
    };
    Ok(NodePorts {
        grpc: arguments.grpc_port.unwrap_or(counted.grpc),
        peer: arguments.peer_port.unwrap_or(counted.peer),
    })
}

/// Logs go to standard error: what a node says on standard output is nothing.
fn init_log(level: Level) {
    let level = match level {
        Level::Error => tracing::Level::ERROR,
        Level::Warn => tracing::Level::WARN,
        Level::Info => tracing::Level::INFO,
        Level::Debug => tracing::Level::DEBUG,
    };
    // The libraries below speak of what concerns this program only in their warnings.
    let filter = tracing_subscriber::EnvFilter::new(format!(
        "{level},h2=warn,hyper=warn,tower=warn,tonic=warn,lsm_tree=warn"
    ));
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();
}

/// Waits until standard input ends: the process that started this one is gone, or lets it go.
async fn input_end() {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut byte = [0];
        // Whatever is written there means nothing; only the end does.
        while std::io::Read::read(&mut std::io::stdin(), &mut byte).is_ok_and(|read| read > 0) {}
        // The receiver is gone only if the node stops anyway.
        let _ = sender.send(());
    });
    // A sender that vanished also means that nothing can come any more.
    let _ = receiver.await;
}

/// A number of bytes with an optional unit.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let shift = match unit {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err("write bytes, or a number with KiB, MiB or GiB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "write a number of bytes".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is too much".to_owned())
}

const EXAMPLES: &str = "\
Example, three nodes on one machine, each in a terminal of its own:
  M=127.0.0.1:7301,127.0.0.1:7302,127.0.0.1:7303
  decree serve --data-dir n1 --node 1 --masters $M
  decree serve --data-dir n2 --node 2 --masters $M
  decree serve --data-dir n3 --node 3 --masters $M
and then, once:
  decree init --masters $M
  decree join 1 1 2 3 + 2 1 2 3
A node that was killed is brought back by the line that started it.";

fn options(arguments: ServeArguments, ports: NodePorts) -> server::ServeOptions {
    let host = &arguments.host;
    let at = |port: u16| {
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    };
    server::ServeOptions {
        grpc: at(ports.grpc),
        peer: at(ports.peer),
        advertise: arguments.advertise.clone().unwrap_or_else(|| arguments.host.clone()),
        data_dir: arguments.data_dir,
        masters: arguments.masters.iter().map(|master| base::Address::new(master)).collect(),
        node: arguments.node,
        wal_bytes_max: arguments.wal_bytes_max,
        wal_segment_bytes: arguments.wal_segment_bytes,
        cache_bytes: arguments.cache_bytes,
        log_bytes_max: arguments
            .log_bytes_max
            .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
        scrub_bytes_per_second: arguments.scrub_rate,
        insecure: arguments.insecure,
    }
}
