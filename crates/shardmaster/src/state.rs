//! The shard master's state and its records.
//!
//! ```text
//! 1                meta: feature level, counters, log time
//! 2 number u64     a configuration
//! 3                routes: cluster, owners, groups, nodes
//! 4                creations under way
//! 5                the session table
//! 6                migrations under way
//! 7                where replicas are to be
//! ```
//!
//! Each value begins with a format byte, the rest is CBOR. The newest configuration and everything
//! else that is small is kept in memory, and written when the state settles.

use std::collections::BTreeMap;

use base::codec::{self, DecodeError};
use base::{ConfigNumber, CopyId, NodeId, ReplicaId, Version, WallMillis};
use bytes::Bytes;
use minicbor::{Decode, Encode};
use replica_group::GroupStore;
use replica_group::sessions::SessionCounters;
use replica_group::state_machine::EngineError;
use router::{Configuration, Routes};

use crate::planner::{Creation, Migration};
use crate::replicas::Placements;

/// What the shard master knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) meta: Meta,
    pub(crate) routes: Routes,
    /// The newest configuration.
    pub(crate) configuration: Configuration,
    /// What the groups are to make, and have not said they have.
    pub(crate) pending: Vec<Creation>,
    /// What is to change hands, and has not said it has.
    pub(crate) migrations: BTreeMap<CopyId, Migration>,
    /// Where replicas are to be.
    pub(crate) placements: Placements,
}

/// Counters, none of which ever goes back.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Meta {
    /// The commands of this level and below may stand in the log.
    #[n(0)]
    pub(crate) feature_level: u32,
    /// The number of the next node that asks for one.
    #[n(1)]
    pub(crate) node_next: NodeId,
    /// The number of the next replica of any group.
    #[n(2)]
    pub(crate) replica_next: ReplicaId,
    /// The name of the next migration or creation.
    #[n(3)]
    pub(crate) copy_next: CopyId,
    /// The highest time of the applied commands.
    #[n(4)]
    pub(crate) log_time: WallMillis,
    /// The applied commands that changed any record.
    #[n(5)]
    pub(crate) changes: Version,
    /// What the session table knows of itself.
    #[n(6)]
    pub(crate) sessions: SessionCounters,
}

const META: &[u8] = &[1];
const CONFIGURATION: u8 = 2;
const ROUTES: &[u8] = &[3];
const PENDING: &[u8] = &[4];
/// What the keys of the session table begin with.
pub(crate) const SESSIONS: &[u8] = &[5];
const MIGRATIONS: &[u8] = &[6];
const PLACEMENTS: &[u8] = &[7];

const FORMAT: u8 = 1;

impl State {
    /// The state before the cluster is founded.
    pub(crate) fn new(feature_level: u32) -> State {
        State {
            meta: Meta {
                feature_level,
                node_next: NodeId(1),
                replica_next: ReplicaId(1),
                copy_next: CopyId(1),
                log_time: WallMillis(0),
                changes: Version(0),
                sessions: SessionCounters::default(),
            },
            routes: Routes::default(),
            configuration: Configuration::default(),
            pending: Vec::new(),
            migrations: BTreeMap::new(),
            placements: Placements::default(),
        }
    }

    /// The state as the store has it; none where it has none.
    pub(crate) fn read(store: &GroupStore<'_>) -> Result<Option<State>, EngineError> {
        let Some(meta) = store.get(META)? else { return Ok(None) };
        let missing = || EngineError("the shard master's state is not complete".to_string());
        let routes: Routes = decode(&store.get(ROUTES)?.ok_or_else(missing)?)?;
        let configuration = match read_configuration(store, routes.configuration)? {
            Some(configuration) => configuration,
            // Before the cluster is founded there is none.
            None if routes.version == 0 => Configuration::default(),
            None => return Err(missing()),
        };
        Ok(Some(State {
            meta: decode(&meta)?,
            routes,
            configuration,
            pending: decode(&store.get(PENDING)?.ok_or_else(missing)?)?,
            // A store that was written before there were migrations has none.
            migrations: match store.get(MIGRATIONS)? {
                Some(migrations) => decode(&migrations)?,
                None => BTreeMap::new(),
            },
            placements: match store.get(PLACEMENTS)? {
                Some(placements) => decode(&placements)?,
                None => Placements::default(),
            },
        }))
    }

    /// Writes everything but old configurations, which do not change.
    pub(crate) fn write(&self, store: &mut GroupStore<'_>) {
        store.put(META, encode(&self.meta));
        store.put(ROUTES, encode(&self.routes));
        store.put(PENDING, encode(&self.pending));
        store.put(MIGRATIONS, encode(&self.migrations));
        store.put(PLACEMENTS, encode(&self.placements));
    }

    /// The routes changed.
    pub(crate) fn change_routes(&mut self) {
        self.routes.version += 1;
    }

    /// The whole state as bytes, for comparing replicas.
    pub(crate) fn bytes(&self) -> Bytes {
        let mut out = codec::encode_vec(&self.meta);
        codec::encode_into(&self.routes, &mut out);
        codec::encode_into(&self.configuration, &mut out);
        codec::encode_into(&self.pending, &mut out);
        codec::encode_into(&self.migrations, &mut out);
        codec::encode_into(&self.placements, &mut out);
        Bytes::from(out)
    }
}

/// The configuration with this number, if there was one.
pub(crate) fn read_configuration(
    store: &GroupStore<'_>,
    number: ConfigNumber,
) -> Result<Option<Configuration>, EngineError> {
    store.get(&configuration_key(number))?.as_ref().map(decode).transpose()
}

/// Keeps a new configuration for ever.
pub(crate) fn write_configuration(store: &mut GroupStore<'_>, configuration: &Configuration) {
    store.put(&configuration_key(configuration.number), encode(configuration));
}

fn configuration_key(number: ConfigNumber) -> Vec<u8> {
    let mut key = vec![CONFIGURATION];
    key.extend_from_slice(&number.0.to_be_bytes());
    key
}

fn encode<T: Encode<()>>(value: &T) -> Bytes {
    let mut out = vec![FORMAT];
    codec::encode_into(value, &mut out);
    Bytes::from(out)
}

fn decode<T>(bytes: &Bytes) -> Result<T, EngineError>
where
    T: for<'a, 'b> Decode<'b, codec::Shared<'a>>,
{
    let damaged =
        |DecodeError(what)| EngineError(format!("a record of the shard master is damaged: {what}"));
    if bytes.first() != Some(&FORMAT) {
        return Err(damaged(DecodeError("its format is unknown".to_string())));
    }
    codec::decode(&bytes.slice(1..)).map_err(damaged)
}
