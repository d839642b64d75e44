//! The commands of the shard master's log.
//!
//! They are decoded strictly, as those of a data group are: whatever is not exactly what this
//! version would have written is an error. A new kind or field is proposed only after the feature
//! level was raised.

use base::codec::{self, DecodeError};
use base::{Address, ClusterId, CopyId, DiskId, NodeId, ReplicaId, ShardId, WallMillis};
use bytes::Bytes;
use minicbor::{Decode, Encode};
use router::{MasterOp, Session};

/// A command of the shard master.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Command {
    /// The first command of a cluster. Its leader proposes it while there is no state.
    #[n(1)]
    Found {
        /// The cluster.
        #[n(0)]
        cluster: ClusterId,
        /// The number of shards, fixed for ever.
        #[n(1)]
        shards: u16,
        /// The nodes that have a replica of group 0.
        #[n(2)]
        masters: Vec<Master>,
    },
    /// An operation of a client, or of a node that registers.
    #[n(2)]
    Client {
        /// Under this identity it executes at most once.
        #[n(0)]
        session: Session,
        /// The operation; never a read.
        #[n(1)]
        op: MasterOp,
    },
    /// A group has the shards of a planned creation.
    #[n(3)]
    ShardsCreated {
        /// Names the creation.
        #[n(0)]
        copy: CopyId,
    },
    /// Forgets the sessions that were idle for long.
    #[n(4)]
    ExpireSessions {
        /// Rows whose last request is older, by log time.
        #[n(0)]
        before: WallMillis,
    },
    /// The destination of a migration owns its shards.
    #[n(5)]
    MigrationDone {
        /// Names the migration.
        #[n(0)]
        mig: CopyId,
    },
    /// The source of a migration owns its shards as before, and the destination never will by it.
    #[n(6)]
    MigrationCancelled {
        /// Names the migration.
        #[n(0)]
        mig: CopyId,
        /// Shards whose copies were not what the source has. They stay until they are moved by
        /// name: another attempt would meet the same fault of the program.
        #[n(1)]
        unequal: Vec<ShardId>,
    },
}

/// A node with a replica of group 0, as `init` found it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Master {
    /// Its number.
    #[n(0)]
    pub node: NodeId,
    /// Its replica of group 0.
    #[n(1)]
    pub replica: ReplicaId,
    /// Its disk.
    #[n(2)]
    pub disk: DiskId,
    /// Where other nodes reach it.
    #[n(3)]
    pub peer: Address,
}

impl Command {
    /// The command as it is logged.
    pub fn encode(&self) -> Bytes {
        codec::encode(self)
    }

    /// The command that was logged as `bytes`.
    pub fn decode(bytes: &Bytes) -> Result<Command, DecodeError> {
        let command: Command = codec::decode(bytes)?;
        // The codec passes over fields that it does not know, as messages need it. A command that
        // has any does not come out the same.
        if command.encode() != *bytes {
            return Err(DecodeError("the command has parts that are not known".to_string()));
        }
        Ok(command)
    }

    /// The feature level from which on the log may hold this command.
    pub fn feature_level(&self) -> u32 {
        match self {
            Command::Found { .. }
            | Command::Client { .. }
            | Command::ShardsCreated { .. }
            | Command::ExpireSessions { .. }
            | Command::MigrationDone { .. }
            | Command::MigrationCancelled { .. } => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{ClientId, GroupId, RequestNumber};
    use router::{NewGroup, NodeInfo, ShardMove};

    fn commands() -> Vec<Command> {
        let (disk, peer) = (DiskId(7), Address::new("a:1"));
        let session = Session {
            client: ClientId(1),
            number: RequestNumber(2),
            first_incomplete: RequestNumber(1),
            stamp: WallMillis(3),
        };
        let masters =
            vec![Master { node: NodeId(1), replica: ReplicaId(1), disk, peer: peer.clone() }];
        let groups = vec![NewGroup { group: GroupId(1), nodes: vec![NodeId(1), NodeId(2)] }];
        let moves = vec![ShardMove { shards: vec![ShardId(3), ShardId(4)], group: GroupId(2) }];
        let node = NodeInfo { node: NodeId(0), disk, peer: peer.clone(), grpc: peer };
        vec![
            Command::Found { cluster: ClusterId(9), shards: 16, masters },
            Command::Client { session, op: MasterOp::Join { groups } },
            Command::Client {
                session,
                op: MasterOp::Register { node, starts: 5, replaces: Some(DiskId(6)) },
            },
            Command::ShardsCreated { copy: CopyId(3) },
            Command::ExpireSessions { before: WallMillis(5) },
            Command::Client { session, op: MasterOp::Leave { groups: vec![GroupId(1)] } },
            Command::Client { session, op: MasterOp::Move { moves } },
            Command::MigrationDone { mig: CopyId(4) },
            Command::MigrationCancelled { mig: CopyId(5), unequal: vec![ShardId(6)] },
        ]
    }

    #[test]
    fn every_command_comes_back_as_it_was() {
        for command in commands() {
            assert_eq!(Command::decode(&command.encode()), Ok(command));
        }
    }

    #[test]
    fn a_byte_too_few_or_too_many_is_an_error() {
        for command in commands() {
            let bytes = command.encode();
            for cut in 0..bytes.len() {
                assert!(Command::decode(&bytes.slice(..cut)).is_err(), "{command:?} at {cut}");
            }
            let mut longer = bytes.to_vec();
            longer.push(0);
            assert!(Command::decode(&Bytes::from(longer)).is_err(), "{command:?}");
        }
    }

    #[test]
    fn unknown_kinds_and_fields_are_errors() {
        #[derive(Encode)]
        enum Newer {
            #[n(3)]
            ShardsCreated {
                #[n(0)]
                copy: CopyId,
                #[n(1)]
                why: u64,
            },
            #[n(7)]
            Other,
        }
        let newer = codec::encode(&Newer::ShardsCreated { copy: CopyId(3), why: 1 });
        assert!(Command::decode(&newer).is_err());
        assert!(Command::decode(&codec::encode(&Newer::Other)).is_err());
    }
}
