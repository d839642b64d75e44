//! Three members of etcd on this machine, with its default settings, and a client of them. Only the
//! few messages that are needed are declared here.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::support::writers::{Connect, Store};

const MEMBERS: u64 = 3;
/// An attempt without an answer for so long is followed by another, at the next member. That is
/// often, so that the figure is how long etcd is absent and not how long a client looks elsewhere.
const ATTEMPT_TIME_MAX: Duration = Duration::from_millis(200);
/// A member that says nothing of itself for so long does not answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);
/// And a write is given up after so long.
const WRITE_TIME_MAX: Duration = Duration::from_secs(30);
/// Between two attempts that failed at once.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member: u64,
}

/// What a member says of itself.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
    #[prost(uint64, tag = "7")]
    applied: u64,
}

/// The members.
pub(crate) struct Etcd {
    binary: PathBuf,
    directory: PathBuf,
    base: u16,
    members: Vec<Option<Child>>,
}

impl Etcd {
    /// Starts the members, with their data in a directory here.
    pub(crate) fn start(binary: &Path, directory: &Path, base: u16) -> Etcd {
        let members = (0..MEMBERS).map(|_| None).collect();
        let directory = directory.join("etcd");
        std::fs::create_dir_all(&directory).expect("a directory");
        let mut etcd = Etcd { binary: binary.to_owned(), directory, base, members };
        (1..=MEMBERS).for_each(|member| etcd.start_member(member));
        etcd
    }

    fn peer(&self, member: u64) -> String {
        format!("http://127.0.0.1:{}", u64::from(self.base) + 500 + member)
    }

    fn endpoint(&self, member: u64) -> String {
        format!("http://127.0.0.1:{}", u64::from(self.base) + 600 + member)
    }

    /// Starts a member, for the first time or again.
    pub(crate) fn start_member(&mut self, member: u64) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join(format!("member{member}.log")))
            .expect("a log file");
        let all = (1..=MEMBERS).map(|each| format!("m{each}={}", self.peer(each)));
        let (peer, endpoint) = (self.peer(member), self.endpoint(member));
        let child = Command::new(&self.binary)
            .env("ETCD_UNSUPPORTED_ARCH", "")
            .args(["--name", &format!("m{member}"), "--log-level", "error", "--data-dir"])
            .arg(self.directory.join(format!("member{member}")))
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
            .args(["--initial-cluster", &all.collect::<Vec<_>>().join(",")])
            .args(["--initial-cluster-state", "new"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd starts");
        self.members[member as usize - 1] = Some(child);
    }

    /// Kills a member by SIGKILL.
    pub(crate) fn kill(&mut self, member: u64) {
        if let Some(mut child) = self.members[member as usize - 1].take() {
            child.kill().expect("a member is killed");
            child.wait().expect("a member is gone");
        }
    }

    /// So many clients, spread over the members.
    pub(crate) fn clients(&self, clients: u64) -> Vec<EtcdClient> {
        let endpoints: Vec<String> = (1..=MEMBERS).map(|member| self.endpoint(member)).collect();
        (0..clients as usize).map(|at| EtcdClient { endpoints: endpoints.clone(), at }).collect()
    }

    /// Waits until all members answer, follow the same leader and have applied nearly the same: the
    /// leader.
    pub(crate) async fn until_whole(&self, longest: Duration) -> Result<u64, String> {
        let begun = Instant::now();
        while begun.elapsed() < longest {
            let mut all = Vec::new();
            for member in 1..=MEMBERS {
                all.extend(status(&self.endpoint(member)).await.map(|status| (member, status)));
            }
            let leads = |status: &StatusResponse| {
                status.header.as_ref().is_some_and(|header| header.member == status.leader)
            };
            let leader = all.iter().find(|(_, status)| leads(status));
            let applied = all.iter().map(|(_, status)| status.applied);
            let near = applied.clone().max() <= applied.min().map(|least| least + 1_000);
            if let (3, Some((member, leader)), true) = (all.len(), leader, near)
                && all.iter().all(|(_, status)| status.leader == leader.leader)
            {
                return Ok(*member);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(format!("etcd is not whole after {} s", longest.as_secs()))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        (1..=MEMBERS).for_each(|member| self.kill(member));
    }
}

async fn status(endpoint: &str) -> Option<StatusResponse> {
    let channel = lazily(endpoint);
    let mut grpc = tonic::client::Grpc::new(channel);
    let asked = async {
        grpc.ready().await.ok()?;
        let path = PathAndQuery::from_static("/etcdserverpb.Maintenance/Status");
        let codec = ProstCodec::<Empty, StatusResponse>::default();
        Some(grpc.unary(tonic::Request::new(Empty {}), path, codec).await.ok()?.into_inner())
    };
    tokio::time::timeout(ANSWER_TIME_MAX, asked).await.ok()?
}

fn lazily(endpoint: &str) -> Channel {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).expect("an address");
    endpoint.tcp_nodelay(true).connect_timeout(ANSWER_TIME_MAX).connect_lazy()
}

/// A client to be: the members, and the one that it begins with.
pub(crate) struct EtcdClient {
    endpoints: Vec<String>,
    at: usize,
}

impl Connect for EtcdClient {
    type Store = EtcdStore;

    fn connect(self) -> EtcdStore {
        let channels = self.endpoints.iter().map(|endpoint| lazily(endpoint)).collect();
        EtcdStore { channels, at: self.at }
    }
}

/// A client with a connection to each member, which goes on with the next when one fails.
pub(crate) struct EtcdStore {
    channels: Vec<Channel>,
    at: usize,
}

impl EtcdStore {
    async fn attempt(&self, key: &str, value: &str) -> Result<(), String> {
        let mut grpc = tonic::client::Grpc::new(self.channels[self.at % MEMBERS as usize].clone());
        grpc.ready().await.map_err(|error| error.to_string())?;
        let request = PutRequest { key: key.into(), value: value.into() };
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
        let codec = ProstCodec::<PutRequest, Empty>::default();
        let put = grpc.unary(tonic::Request::new(request), path, codec).await;
        put.map(|_| ()).map_err(|status| status.to_string())
    }
}

impl Store for EtcdStore {
    async fn put(&mut self, key: String, value: String) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let attempt = tokio::time::timeout(ATTEMPT_TIME_MAX, self.attempt(&key, &value)).await;
            let why = match attempt {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(why)) => why,
                Err(_) => "no answer in time".to_owned(),
            };
            if begun.elapsed() >= WRITE_TIME_MAX {
                return Err(why);
            }
            self.at += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }
}
