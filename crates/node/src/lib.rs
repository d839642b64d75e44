//! A whole node as one deterministic state machine: the write-ahead log, the store's overlay, the
//! replicas of all its groups, the other nodes, and the requests on their way.
//!
//! A driver hands in inputs and takes outputs ([`replica_group::turn`]). One turn takes any number
//! of inputs, then lets every replica that they touched say what it wants: records go to the log,
//! what may leave at once goes to the peers, what is chosen is applied and answered. A turn never
//! waits: that the log is durable is an input of a later turn, and releases what depends on it.
//!
//! | file | holds |
//! |---|---|
//! | `node` | the parts, what they speak with, the turn |
//! | `open` | recovery from the log and the store |
//! | `inputs`, `effects` | how an input reaches the parts; what the replicas want done |
//! | `frame`, `identity`, `options` | what nodes say to each other; what a node must not forget; settings |
//! | `peers`, `heartbeat` | the other nodes, and who is connected |
//! | `hosted` | a replica of either kind |
//! | `requests` | from a door or a node to the replica that leads, and back |
//! | `bootstrap` | `init`, grants, registration |
//! | `assignments` | what the shard master's leader drives; routes |
//! | `migrations`, `handoff` | what the shard master's leader and a source's leader do so that shards move |
//! | `store` | flushes |
//! | `generations` | where a group's state lies in the store; old states |
//! | `snapshots`, `installs`, `parts`, `viewing` | copies of a group's state: given, taken, their bytes |
//! | `status`, `inspect` | what it says of itself; what checks may see |

mod assignments;
mod bootstrap;
mod damage;
mod digests;
mod effects;
mod frame;
mod generations;
mod handoff;
mod heartbeat;
mod hosted;
mod identity;
mod inputs;
mod inspect;
mod installs;
mod leadership;
mod log_reads;
mod migrations;
mod node;
mod open;
mod options;
mod outbox;
mod parts;
mod peers;
mod renewal;
mod replicas;
mod requests;
mod scrub;
mod snapshots;
mod status;
mod store;
mod viewing;

pub use installs::CopyStats;
pub use node::Node;
pub use open::OpenError;
pub use options::Options;
