//! The command line: every command, its options and its help, which teaches by example.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use base::{ShardEpoch, Slot};
use clap::{Args, Parser, Subcommand};
use router::{Consistency, Seen};

use crate::bench::BenchArguments;
use crate::dev::DevArguments;
use crate::serve::ServeArguments;

/// A whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "decree",
    version,
    about = "A sharded, replicated, strongly consistent key/value database",
    after_help = TOP_EXAMPLES,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: TopCommand,
}

/// A line typed at the prompt of `decree dev`: the same commands without the program's name.
#[derive(Debug, Parser)]
#[command(
    name = "",
    no_binary_name = true,
    about = "The commands of the prompt are those of the program, without its name",
    help_template = "{about}\n\n{subcommands}\n\nMore about one of them, with examples: help COMMAND\n"
)]
pub(crate) struct Line {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: LineCommand,
}

/// What every command that asks a cluster takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct Globals {
    /// gRPC addresses of nodes to ask, host:port, separated by commas [env: DECREE_ENDPOINTS]
    /// [default: 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103, the nodes of `decree dev`]
    #[arg(
        long,
        global = true,
        value_name = "ADDR,...",
        value_delimiter = ',',
        help_heading = "Options of every command"
    )]
    pub(crate) endpoints: Vec<String>,
    /// Print one JSON object a line; bytes that are not UTF-8 as {"base64": ...}
    #[arg(long, global = true, help_heading = "Options of every command")]
    pub(crate) json: bool,
    /// Give up after so long, for example 500ms, 10s or 2m [default: 10s; none for init
    /// and --watch]
    #[arg(
        long,
        global = true,
        value_name = "TIME",
        value_parser = parse_duration,
        help_heading = "Options of every command"
    )]
    pub(crate) timeout: Option<Duration>,
}

/// The commands of the program.
#[derive(Debug, Subcommand)]
pub(crate) enum TopCommand {
    /// Run a whole cluster on this machine, with a prompt
    Dev(DevArguments),
    /// Run one node
    Serve(ServeArguments),
    #[command(flatten)]
    Ask(AskCommand),
    /// Measure throughput and latency of a running cluster
    Bench(BenchArguments),
}

/// The commands of the prompt.
#[derive(Debug, Subcommand)]
pub(crate) enum LineCommand {
    #[command(flatten)]
    Ask(AskCommand),
    /// Leave the prompt and stop the cluster
    #[command(alias = "quit")]
    Exit,
}

/// The commands that ask a running cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum AskCommand {
    /// Print the value of a key
    #[command(after_help = GET_EXAMPLES)]
    Get(GetArguments),
    /// Set the value of a key
    #[command(after_help = PUT_EXAMPLES)]
    Put(PutArguments),
    /// Set a key to the hash of its previous value and VALUE; print the previous value
    #[command(after_help = PUTHASH_EXAMPLES)]
    Puthash(PutHashArguments),
    /// Remove a key
    Delete(KeyArguments),
    /// Append to the value of a key
    #[command(after_help = APPEND_EXAMPLES)]
    Append(PutArguments),
    /// Set the value of a key if it is as expected (compare and swap)
    #[command(after_help = CAS_EXAMPLES)]
    Cas(CasArguments),
    /// Create the cluster, once
    #[command(after_help = INIT_EXAMPLES)]
    Init(InitArguments),
    /// Add replica groups to the cluster, all in one step
    #[command(after_help = JOIN_EXAMPLES)]
    Join(JoinArguments),
    /// Take replica groups out of the cluster; the others divide their shards
    #[command(after_help = LEAVE_EXAMPLES)]
    Leave(LeaveArguments),
    /// Give shards to a group, while they are served
    #[command(after_help = MOVE_EXAMPLES)]
    Move(MoveArguments),
    /// Print a configuration: which group is to serve which shards
    #[command(after_help = QUERY_EXAMPLES)]
    Query(QueryArguments),
    /// Print the state of each node and of its replicas; needs no quorum
    Status,
    /// Print who serves which shard, and how much is in it
    Shards(ShardsArguments),
    /// Print the nodes that the cluster knows
    Nodes,
    /// Take the replicas off a node: because its machine is replaced, or is to go
    #[command(subcommand, after_help = NODE_EXAMPLES)]
    Node(NodeCommand),
}

/// What can be done with a node.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Let another node take over every replica of a node, dead or alive
    #[command(after_help = NODE_EXAMPLES)]
    Replace(ReplaceArguments),
    /// Let other nodes take over every replica of a node, and leave it empty
    #[command(after_help = NODE_EXAMPLES)]
    Drain(DrainArguments),
}

#[derive(Args, Debug)]
pub(crate) struct ReplaceArguments {
    /// The number of the node that is to hold no replicas
    pub(crate) old: u64,
    /// The number of the node that is to hold them; it must be started, and hold none of the same groups
    pub(crate) new: u64,
    /// Show what is left on the old node until nothing is [--timeout: none]
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DrainArguments {
    /// The number of the node
    pub(crate) node: u64,
    /// Show what is left on the node until nothing is [--timeout: none]
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Args, Debug)]
pub(crate) struct KeyArguments {
    /// The key, at most 4 KiB
    pub(crate) key: OsString,
}

#[derive(Args, Debug)]
pub(crate) struct GetArguments {
    /// The key, at most 4 KiB
    pub(crate) key: OsString,
    /// Print the value as it is, without a newline behind it
    #[arg(long)]
    pub(crate) raw: bool,
    /// How new the value must be: `linearizable`, the newest; `sequential`, what was seen before
    /// (--after) or newer, from any replica; `bounded:TIME`, the newest of at most so long ago
    #[arg(long, value_name = "HOW", default_value = "linearizable", value_parser = parse_read)]
    pub(crate) read: Consistency,
    /// With --read sequential: see at least what an earlier answer showed of this key's shard, as
    /// its `seen` with --json says
    #[arg(long, value_name = "SEEN", value_parser = parse_seen)]
    pub(crate) after: Option<Seen>,
}

/// Where a value comes from: the command line, standard input or a file.
#[derive(Args, Debug)]
pub(crate) struct ValueArguments {
    /// The value, at most 8 MiB; `-` reads it from standard input, all bytes as they are
    #[arg(required_unless_present = "file", allow_negative_numbers = true)]
    pub(crate) value: Option<OsString>,
    /// Take the value from this file instead, all bytes as they are
    #[arg(long, value_name = "PATH", conflicts_with = "value")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct PutArguments {
    /// The key, at most 4 KiB
    pub(crate) key: OsString,
    #[command(flatten)]
    pub(crate) value: ValueArguments,
}

#[derive(Args, Debug)]
pub(crate) struct PutHashArguments {
    /// The key, at most 4 KiB
    pub(crate) key: OsString,
    #[command(flatten)]
    pub(crate) value: ValueArguments,
    /// Use SHA-256 (hexadecimal) in place of FNV-1a (decimal), which makes a chain tamper-evident
    #[arg(long)]
    pub(crate) sha256: bool,
    /// Print the previous value as it is, without a newline behind it
    #[arg(long)]
    pub(crate) raw: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CasArguments {
    /// The key, at most 4 KiB
    pub(crate) key: OsString,
    #[command(flatten)]
    pub(crate) value: ValueArguments,
    #[command(flatten)]
    pub(crate) condition: CasCondition,
}

/// What must be there for a compare-and-swap to happen.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct CasCondition {
    /// Swap only if the value is exactly OLD
    #[arg(long, value_name = "OLD", allow_negative_numbers = true)]
    pub(crate) if_value: Option<OsString>,
    /// Swap only if the version is VERSION; 0 means absent
    #[arg(long, value_name = "VERSION")]
    pub(crate) if_version: Option<u64>,
    /// Swap only if the key is absent
    #[arg(long)]
    pub(crate) if_absent: bool,
}

#[derive(Args, Debug)]
pub(crate) struct InitArguments {
    /// Peer addresses of the nodes that shall hold the shard master, host:port, separated by
    /// commas: the same list that the nodes were started with
    #[arg(long, required = true, value_name = "ADDR,...", value_delimiter = ',')]
    pub(crate) masters: Vec<String>,
    /// The number of shards, fixed for ever
    #[arg(
        long,
        value_name = "N",
        default_value_t = base::limits::SHARDS_DEFAULT,
        value_parser = parse_shards
    )]
    pub(crate) shards: u16,
}

#[derive(Args, Debug)]
pub(crate) struct JoinArguments {
    /// The number of the new group, then the numbers of its nodes; `+` begins the next group
    #[arg(required = true, num_args = 2.., value_name = "GID NODE... [+ GID NODE...]")]
    pub(crate) groups: Vec<String>,
    /// Show the shards on their way until all have arrived [--timeout: none]
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Args, Debug)]
pub(crate) struct LeaveArguments {
    /// The numbers of the groups
    #[arg(required = true, value_name = "GID")]
    pub(crate) groups: Vec<u64>,
    /// Show the shards on their way until all have arrived [--timeout: none]
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Args, Debug)]
pub(crate) struct MoveArguments {
    /// Shards or ranges of them, then the group that gets them; `+` begins the next move. With
    /// --cancel only shards and ranges
    #[arg(required = true, value_name = "SHARD|A-B... GID [+ SHARD|A-B... GID]")]
    pub(crate) words: Vec<String>,
    /// Leave shards that are on their way with the groups that still have them
    #[arg(long)]
    pub(crate) cancel: bool,
    /// Show the shards on their way until all have arrived [--timeout: none]
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Args, Debug)]
pub(crate) struct QueryArguments {
    /// The number of the configuration; without it, or beyond the newest, the newest
    pub(crate) number: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct ShardsArguments {
    /// One line per shard in place of one per range of shards
    #[arg(long)]
    pub(crate) all: bool,
}

/// A span of time with its unit: `500ms`, `10s`, `2m`, `1h`; a bare number counts seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let seconds_per_unit = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err("write a number and a unit, for example 500ms, 10s or 2m".to_owned()),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| "write a number and a unit, for example 500ms, 10s or 2m".to_owned())?;
    match Duration::try_from_secs_f64(number * seconds_per_unit) {
        Ok(span) if !span.is_zero() && span <= DURATION_MAX => Ok(span),
        _ => Err("choose a time between 1ms and 1000h".to_owned()),
    }
}

/// What a read may see.
fn parse_read(text: &str) -> Result<Consistency, String> {
    match text.split_once(':') {
        None if text == "linearizable" => Ok(Consistency::Linearizable),
        None if text == "sequential" => Ok(Consistency::Sequential(None)),
        Some(("bounded", time)) => {
            let bound = parse_duration(time)?;
            Ok(Consistency::Bounded(u64::try_from(bound.as_millis()).unwrap_or(u64::MAX)))
        }
        Some(_) | None => Err("write linearizable, sequential or bounded:TIME, for example \
                               bounded:500ms"
            .to_owned()),
    }
}

/// What an earlier answer showed.
fn parse_seen(text: &str) -> Result<Seen, String> {
    let numbers = text.split_once(':').map(|(epoch, slot)| (epoch.parse(), slot.parse()));
    match numbers {
        Some((Ok(epoch), Ok(slot))) => Ok(Seen { epoch: ShardEpoch(epoch), slot: Slot(slot) }),
        Some(_) | None => Err("write it as `seen` in an answer with --json says it, for example \
                               1:7"
        .to_owned()),
    }
}

/// A number of shards that a cluster can have.
pub(crate) fn parse_shards(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(shards) if (1..=base::limits::SHARDS_MAX).contains(&shards) => Ok(shards),
        _ => Err(format!("choose between 1 and {} shards", base::limits::SHARDS_MAX)),
    }
}

const DURATION_MAX: Duration = Duration::from_secs(3_600_000);

const TOP_EXAMPLES: &str = "\
Examples:
  decree dev                                a cluster of three nodes and a prompt, gone at its end
  decree dev --no-shell --data-dir ./data   the same in one terminal, with data that stays
  decree put greeting hello                 in another terminal: set a key ...
  decree get greeting                       ... and read it
  decree put photo --file photo.jpg         a value of any bytes, up to 8 MiB
  decree query                              which group serves which shards
  decree status                             every node, its replicas, and who leads

Exit codes: 0 done; 1 answered with an error, or not found; 2 wrong usage;
            3 outcome unknown (the write may have happened); 4 no node reachable";

const GET_EXAMPLES: &str = "\
Examples:
  decree get greeting                 prints the value and a newline, or `not found` (exit code 1)
  decree get photo --raw > photo.jpg  the value's bytes and nothing else
  decree get greeting --json          {\"key\":\"greeting\",\"seen\":\"1:7\",\"value\":\"hello\",
                                      \"version\":1}
  decree get greeting --read bounded:500ms           from any node, at most half a second old
  decree get greeting --read sequential --after 1:7  from any node, what was seen or newer";

const PUT_EXAMPLES: &str = "\
Examples:
  decree put greeting hello
  decree put photo --file photo.jpg
  tar c src | decree put backup -
  decree put balance -- --5           behind `--`, values may begin with a dash";

const PUTHASH_EXAMPLES: &str = "\
Examples:
  decree puthash chain a              prints the previous value (an empty line at first)
  decree get chain                    3826002220: FNV-1a of \"\" followed by \"a\"
  decree puthash chain b --sha256";

const APPEND_EXAMPLES: &str = "\
Examples:
  decree append log 'first line;'
  date | decree append log -";

const CAS_EXAMPLES: &str = "\
Examples:
  decree cas lock me --if-absent              only if nobody has it
  decree cas balance 90 --if-value 100        only if it is still 100
  decree cas balance 90 --if-version 7        only if it is still version 7 (see get --json)
Prints OK, or `not swapped: version is 8` on standard error (exit code 1).";

const INIT_EXAMPLES: &str = "\
Example, with three nodes started by `decree serve --masters ...` with the same list:
  decree init --masters 127.0.0.1:7301,127.0.0.1:7302,127.0.0.1:7303
Equal inits, repeated or at once, are one. While a master is not reachable, init says so and keeps
trying.";

const JOIN_EXAMPLES: &str = "\
Examples:
  decree join 1 1 2 3                 group 1 with replicas on the nodes 1, 2 and 3
  decree join 1 1 2 3 + 2 1 2 3       groups 1 and 2 in one step; the shards are divided evenly
  decree join 3 1 2 3 --watch         a further group; see its share of the shards arrive
Node numbers are those of `decree nodes`. A group that left may join again, with the nodes it had.";

const LEAVE_EXAMPLES: &str = "\
Examples:
  decree leave 3                      group 3 hands its shards to the groups that stay
  decree leave 1 2 --watch            two groups in one step; ends when their shards have arrived
When the last group leaves, it keeps and serves its shards until another joins.";

const NODE_EXAMPLES: &str = "\
Examples:
  decree node replace 3 5 --watch     node 5 takes over what node 3 holds, whether 3 is up or not
  decree node drain 3                 other nodes take over what node 3 holds; then it can be stopped
A node whose disk was lost needs neither: start it with an empty data directory at its address, and
its replicas are made anew by themselves. Each replica learns before it votes, and the groups serve
all the while. A group that has lost the majority of its replicas is not changed.";

const MOVE_EXAMPLES: &str = "\
Examples:
  decree move 7 2                     shard 7 to group 2, and nothing else
  decree move 0-9 2 --watch           ten shards, and see them arrive
  decree move 3 2 + 600 1             a swap in one step
  decree move --cancel 0-9            leave them where they are, if they have not changed hands yet
A later join or leave divides all shards anew, and may undo a move.";

const QUERY_EXAMPLES: &str = "\
Examples:
  decree query        the newest configuration
  decree query 0      the empty one of a new cluster";
