//! The ports of a node: counted from a base port, or free ones that its data directory keeps.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::TcpListener;
use std::path::Path;

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::files;

/// The doors of one node that are open in this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodePorts {
    /// For programs and commands.
    pub(crate) grpc: u16,
    /// For the other nodes.
    pub(crate) peer: u16,
}

impl NodePorts {
    /// The ports of node `node`, counted from `base`.
    pub(crate) fn counted(base: u16, node: u64) -> Result<NodePorts, Failure> {
        let port = |door: u64| {
            let port = u64::from(base).saturating_add(door).saturating_add(node);
            u16::try_from(port).map_err(|_| {
                Failure::usage(format!(
                    "--base-port {base} gives node {node} the port {port}, but ports end at 65535; \
                     choose a lower one"
                ))
            })
        };
        Ok(NodePorts { grpc: port(GRPC_OFFSET)?, peer: port(PEER_OFFSET)? })
    }

    /// Ports that nobody listens on now, for so many nodes.
    pub(crate) fn free(nodes: usize, host: &str) -> Result<Vec<NodePorts>, Failure> {
        let ports = free_ports(2 * nodes, host)?;
        Ok(ports.chunks_exact(2).map(|two| NodePorts { grpc: two[0], peer: two[1] }).collect())
    }

    /// The free ports that the data directory keeps, chosen at its first use.
    pub(crate) fn kept(directory: &Path, host: &str) -> Result<NodePorts, Failure> {
        let path = directory.join("ports.json");
        if let Some(kept) = files::read_json(&path)? {
            return NodePorts::from_json(&kept).ok_or_else(|| files::unreadable(&path));
        }
        let ports = NodePorts::free(1, host)?;
        files::write_json(&path, &ports[0].to_json())?;
        Ok(ports[0])
    }

    /// As kept in files.
    pub(crate) fn to_json(self) -> Value {
        json!({ "grpc": self.grpc, "peer": self.peer })
    }

    /// From a file's content.
    pub(crate) fn from_json(value: &Value) -> Option<NodePorts> {
        let port = |name: &str| u16::try_from(value.get(name)?.as_u64()?).ok();
        Some(NodePorts { grpc: port("grpc")?, peer: port("peer")? })
    }
}

/// Ports below the range from which the system takes those of outgoing connections: a node that
/// restarts must find its own port free.
fn free_ports(count: usize, host: &str) -> Result<Vec<u16>, Failure> {
    let mut held: Vec<(u16, TcpListener)> = Vec::with_capacity(count);
    let mut random = RandomState::new().build_hasher().finish();
    for _ in 0..TRIES_MAX {
        if held.len() == count {
            break;
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let port = FREE_FIRST + ((random >> 33) % u64::from(FREE_COUNT)) as u16;
        if let Ok(listener) = TcpListener::bind((host, port)) {
            held.push((port, listener));
        }
    }
    if held.len() < count {
        return Err(Failure::error("ports", format!("no free ports found on {host}")));
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
}

const GRPC_OFFSET: u64 = 100;
const PEER_OFFSET: u64 = 300;
const FREE_FIRST: u16 = 10_000;
const FREE_COUNT: u16 = 22_000;
const TRIES_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_counted_from_the_base() {
        let ports = NodePorts::counted(7_000, 2).unwrap();
        assert_eq!(ports, NodePorts { grpc: 7_102, peer: 7_302 });
        assert!(NodePorts::counted(65_500, 1).is_err());
    }

    #[test]
    fn free_ports_are_kept_by_the_data_directory() {
        let directory = tempfile::tempdir().unwrap();
        let first = NodePorts::kept(directory.path(), "127.0.0.1").unwrap();
        assert_eq!(NodePorts::kept(directory.path(), "127.0.0.1").unwrap(), first);
    }
}
