//! What a development cluster consists of: decided by its first `dev`, kept in its data directory.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::DevArguments;
use crate::failure::Failure;
use crate::files;
use crate::ports::NodePorts;

/// The nodes, groups and ports of a development cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The ports of each node, from node 1 on.
    pub(crate) ports: Vec<NodePorts>,
    /// How many groups share the shards.
    pub(crate) groups: u64,
    /// The number of shards.
    pub(crate) shards: u16,
}

impl Layout {
    /// The layout that the data directory keeps, or a new one, which it keeps from now on; and a
    /// sentence for each flag that contradicts what is kept.
    pub(crate) fn open(
        directory: &Path,
        arguments: &DevArguments,
    ) -> Result<(Layout, Vec<String>), Failure> {
        let path = directory.join("dev.json");
        if let Some(kept) = files::read_json(&path)? {
            let layout = Layout::from_json(&kept).ok_or_else(|| files::unreadable(&path))?;
            let notes = layout.contradictions(arguments);
            return Ok((layout, notes));
        }
        let nodes = arguments.nodes.unwrap_or(NODES_DEFAULT);
        let ports = match arguments.base_port.unwrap_or(BASE_PORT_DEFAULT) {
            0 => NodePorts::free(usize::from(nodes), HOST)?,
            base => (1..=u64::from(nodes))
                .map(|node| NodePorts::counted(base, node))
                .collect::<Result<_, _>>()?,
        };
        let layout = Layout {
            ports,
            groups: arguments.groups.unwrap_or(GROUPS_DEFAULT),
            shards: arguments.shards.unwrap_or(base::limits::SHARDS_DEFAULT),
        };
        files::write_json(&path, &layout.to_json())?;
        Ok((layout, Vec::new()))
    }

    /// The node numbers.
    pub(crate) fn nodes(&self) -> std::ops::RangeInclusive<u64> {
        1..=self.ports.len() as u64
    }

    /// The ports of a node.
    pub(crate) fn ports_of(&self, node: u64) -> NodePorts {
        let index = usize::try_from(node).ok().and_then(|node| node.checked_sub(1));
        *index.and_then(|index| self.ports.get(index)).expect("a node of this layout")
    }

    /// The gRPC address of a node.
    pub(crate) fn grpc(&self, node: u64) -> String {
        format!("{HOST}:{}", self.ports_of(node).grpc)
    }

    /// The peer address of a node.
    pub(crate) fn peer(&self, node: u64) -> String {
        format!("{HOST}:{}", self.ports_of(node).peer)
    }

    /// The gRPC addresses of all nodes.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.nodes().map(|node| self.grpc(node)).collect()
    }

    /// The peer addresses of the nodes that hold the shard master.
    pub(crate) fn masters(&self) -> Vec<String> {
        self.nodes().take(REPLICAS).map(|node| self.peer(node)).collect()
    }

    /// The nodes of each group: all where there are at most three, else three in turn.
    pub(crate) fn groups(&self) -> Vec<(u64, Vec<u64>)> {
        let nodes: Vec<u64> = self.nodes().collect();
        let replicas = nodes.len().min(REPLICAS);
        (1..=self.groups)
            .zip((0..).step_by(replicas))
            .map(|(group, first)| {
                let mut members: Vec<u64> =
                    (first..first + replicas).map(|at| nodes[at % nodes.len()]).collect();
                members.sort_unstable();
                (group, members)
            })
            .collect()
    }

    /// Where a node keeps its data.
    pub(crate) fn data_directory(&self, directory: &Path, node: u64) -> PathBuf {
        directory.join(format!("node{node}"))
    }

    fn contradictions(&self, arguments: &DevArguments) -> Vec<String> {
        let mut notes = Vec::new();
        let mut compare = |flag: &str, asked: Option<u64>, kept: u64| {
            if let Some(asked) = asked.filter(|&asked| asked != kept) {
                notes.push(format!(
                    "note: this data directory holds a cluster with {flag} {kept}; \
                     {flag} {asked} is ignored (use another --data-dir for another cluster)"
                ));
            }
        };
        compare("--nodes", arguments.nodes.map(u64::from), self.ports.len() as u64);
        compare("--groups", arguments.groups, self.groups);
        compare("--shards", arguments.shards.map(u64::from), u64::from(self.shards));
        let counted: Option<Vec<NodePorts>> = arguments
            .base_port
            .filter(|&base| base != 0)
            .map(|base| self.nodes().filter_map(|n| NodePorts::counted(base, n).ok()).collect());
        if counted.is_some_and(|counted| counted != self.ports) {
            notes.push(
                "note: this data directory keeps the ports of its cluster; --base-port is ignored"
                    .to_owned(),
            );
        }
        notes
    }

    fn to_json(&self) -> Value {
        let ports: Vec<Value> = self.ports.iter().map(|ports| ports.to_json()).collect();
        json!({ "format": FORMAT, "groups": self.groups, "shards": self.shards, "ports": ports })
    }

    fn from_json(value: &Value) -> Option<Layout> {
        if value.get("format")?.as_u64()? != FORMAT {
            return None;
        }
        let ports = value.get("ports")?.as_array()?;
        let layout = Layout {
            ports: ports.iter().map(NodePorts::from_json).collect::<Option<_>>()?,
            groups: value.get("groups")?.as_u64()?,
            shards: u16::try_from(value.get("shards")?.as_u64()?).ok()?,
        };
        (!layout.ports.is_empty()).then_some(layout)
    }
}

/// Where a development cluster listens.
pub(crate) const HOST: &str = "127.0.0.1";
const FORMAT: u64 = 1;
const NODES_DEFAULT: u16 = 3;
const GROUPS_DEFAULT: u64 = 2;
const BASE_PORT_DEFAULT: u16 = 7_000;
/// Replicas of a group, and of the shard master, where there are nodes enough.
const REPLICAS: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments() -> DevArguments {
        DevArguments {
            nodes: None,
            groups: None,
            shards: None,
            data_dir: None,
            base_port: None,
            no_shell: false,
        }
    }

    #[test]
    fn a_second_dev_continues_and_names_what_contradicts() {
        let directory = tempfile::tempdir().unwrap();
        let (first, notes) = Layout::open(directory.path(), &arguments()).unwrap();
        assert_eq!((first.ports.len(), first.groups, notes.len()), (3, 2, 0));
        let other = DevArguments { nodes: Some(5), base_port: Some(7_000), ..arguments() };
        let (second, notes) = Layout::open(directory.path(), &other).unwrap();
        assert_eq!(second, first);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("--nodes 3"), "{notes:?}");
    }

    #[test]
    fn groups_take_three_nodes_in_turn() {
        let layout = |nodes| Layout {
            ports: vec![NodePorts { grpc: 1, peer: 2 }; nodes],
            groups: 2,
            shards: 8,
        };
        assert_eq!(layout(3).groups(), [(1, vec![1, 2, 3]), (2, vec![1, 2, 3])]);
        assert_eq!(layout(1).groups(), [(1, vec![1]), (2, vec![1])]);
        assert_eq!(layout(5).groups(), [(1, vec![1, 2, 3]), (2, vec![1, 4, 5])]);
    }
}
