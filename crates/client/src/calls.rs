//! The client as its callers see it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{Address, ClusterId, ConfigNumber, GroupId, NodeId};
use bytes::Bytes;
use router::{
    Answer, Body, ClusterAnswer, ClusterOp, Configuration, Consistency, Expected, HashKind, Header,
    KvOp, MasterAnswer, MasterOp, NewGroup, NodeStatus, Reply, ReplyHeader, Request, Routes,
    ShardMove, ShardStatus,
};
use tokio::sync::{mpsc, oneshot};

use crate::driver::{Command, Driver};
use crate::error::Error;
use crate::options::{Options, micros, normalize};
use crate::unary::Unary;

/// Between two rounds of an operation that the client itself repeats.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
/// Calls that may wait for the driver to take them; callers wait beyond that.
const COMMANDS_MAX: usize = 65_536;

/// A client of a cluster. Clones share connections and identity.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    endpoints: Arc<[String]>,
    options: Options,
}

/// An answer, and what came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered<T> {
    /// The answer.
    pub value: T,
    /// Group, shard, version and more.
    pub header: ReplyHeader,
}

impl Client {
    /// A client that finds the cluster through any of these endpoints, `host:port` each. It
    /// connects when it is first used. Must be called within a tokio runtime, where the client's
    /// one task then runs.
    pub fn connect(endpoints: Vec<String>, options: Options) -> Result<Client, Error> {
        let endpoints = endpoints.iter().map(|endpoint| normalize(endpoint));
        let endpoints: Arc<[String]> = endpoints.collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err(Error::Invalid("name at least one endpoint, host:port".to_owned()));
        }
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let driver = Driver::new(receiver, endpoints.clone(), options.clone())?;
        tokio::spawn(driver);
        Ok(Client { commands, endpoints, options })
    }

    /// This client with another limit on the time of its operations.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Client {
        let options = Options { timeout, ..self.options.clone() };
        Client { options, ..self.clone() }
    }

    /// This client with reads of keys that may see so much. With [`Consistency::Sequential`] they
    /// see at least what this client and its clones have seen before, and what is named.
    #[must_use]
    pub fn with_reads(&self, reads: Consistency) -> Client {
        let options = Options { reads, ..self.options.clone() };
        Client { options, ..self.clone() }
    }

    /// The endpoints that the client was given.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// The value of a key; none if the key is absent.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Answered<Option<Bytes>>, Error> {
        value(self.kv(KvOp::Get { key: key.into() }).await?)
    }

    /// Sets the value of a key.
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Answered<()>, Error> {
        done(self.kv(KvOp::Put { key: key.into(), value: value.into() }).await?)
    }

    /// Sets the value of a key to the hash over its previous value followed by `hashed`, and
    /// answers the previous value.
    pub async fn put_hash(
        &self,
        key: impl Into<Bytes>,
        hashed: impl Into<Bytes>,
        hash: HashKind,
    ) -> Result<Answered<Option<Bytes>>, Error> {
        value(self.kv(KvOp::PutHash { key: key.into(), value: hashed.into(), hash }).await?)
    }

    /// Removes a key; answers whether there was something to remove.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Answered<bool>, Error> {
        flag(self.kv(KvOp::Delete { key: key.into() }).await?)
    }

    /// Appends to the value of a key; answers the length of the new value in bytes.
    pub async fn append(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Answered<u64>, Error> {
        length(self.kv(KvOp::Append { key: key.into(), value: value.into() }).await?)
    }

    /// Sets the value of a key if the record is as expected; answers whether it was, and in the
    /// header the version that is now there.
    pub async fn compare_and_swap(
        &self,
        key: impl Into<Bytes>,
        expected: Expected,
        value: impl Into<Bytes>,
    ) -> Result<Answered<bool>, Error> {
        let op = KvOp::CompareAndSwap { key: key.into(), expected, value: value.into() };
        flag(self.kv(op).await?)
    }

    /// Adds replica groups to the plan; answers the configuration that this made.
    pub async fn join(&self, groups: Vec<NewGroup>) -> Result<Answered<Configuration>, Error> {
        configuration(self.call(Body::Master(MasterOp::Join { groups })).await?)
    }

    /// Takes replica groups out of the plan; answers the configuration that this made. The
    /// hand-offs that it asks for have only begun.
    pub async fn leave(&self, groups: Vec<GroupId>) -> Result<Answered<Configuration>, Error> {
        configuration(self.call(Body::Master(MasterOp::Leave { groups })).await?)
    }

    /// Gives shards to groups, all in one step; answers the configuration that this made. The
    /// hand-offs that it asks for have only begun.
    pub async fn move_shards(
        &self,
        moves: Vec<ShardMove>,
    ) -> Result<Answered<Configuration>, Error> {
        configuration(self.call(Body::Master(MasterOp::Move { moves })).await?)
    }

    /// Another node takes over every replica on a node; answers the configuration that this made. The
    /// changes of members that it asks for have only begun.
    pub async fn replace_node(
        &self,
        old: NodeId,
        new: NodeId,
    ) -> Result<Answered<Configuration>, Error> {
        configuration(self.call(Body::Master(MasterOp::ReplaceNode { old, new })).await?)
    }

    /// Other nodes take over every replica on a node; answers the configuration that this made. The
    /// changes of members that it asks for have only begun.
    pub async fn drain_node(&self, node: NodeId) -> Result<Answered<Configuration>, Error> {
        configuration(self.call(Body::Master(MasterOp::DrainNode { node })).await?)
    }

    /// The configuration with this number, or the newest.
    pub async fn query(
        &self,
        number: Option<ConfigNumber>,
    ) -> Result<Answered<Configuration>, Error> {
        configuration(self.call(Body::Master(MasterOp::Query { number })).await?)
    }

    /// Who serves which shard, and where the nodes are, as some node has it.
    pub async fn routes(&self) -> Result<Routes, Error> {
        let answer = self.call(Body::Cluster(ClusterOp::Routes)).await?.body?;
        let Answer::Cluster(ClusterAnswer::Routes(routes)) = answer else { return Err(unfit()) };
        Ok(*routes)
    }

    /// The routes as the node at this endpoint, `host:port`, has them. Needs no other node.
    pub async fn routes_of(&self, endpoint: &str) -> Result<Routes, Error> {
        let answer = self.ask_node(endpoint, ClusterOp::Routes, self.options.timeout).await?;
        let Answer::Cluster(ClusterAnswer::Routes(routes)) = answer else { return Err(unfit()) };
        Ok(*routes)
    }

    /// The routes as the shard master has them.
    pub async fn newest_routes(&self) -> Result<Routes, Error> {
        let answer = self.call(Body::Master(MasterOp::Routes)).await?.body?;
        let (Answer::Cluster(ClusterAnswer::Routes(routes))
        | Answer::Master(MasterAnswer::Routes(routes))) = answer
        else {
            return Err(unfit());
        };
        Ok(*routes)
    }

    /// Creates the cluster: `masters` are the peer addresses of the nodes that shall hold the
    /// shard master. Equal requests are one, so that it is repeated here, through one endpoint
    /// after the other, until it is answered or the time is over.
    pub async fn init(&self, masters: Vec<Address>, shards: u16) -> Result<ClusterId, Error> {
        let start = Instant::now();
        loop {
            let mut trouble = None;
            for endpoint in self.endpoints.iter() {
                let left = self.options.timeout.saturating_sub(start.elapsed());
                let op = ClusterOp::Init { masters: masters.clone(), shards };
                match self.ask_node(endpoint, op, left.max(ROUND_PAUSE)).await {
                    Ok(Answer::Cluster(ClusterAnswer::Created(cluster))) => return Ok(cluster),
                    Ok(_) => return Err(unfit()),
                    Err(error @ (Error::Refused(_) | Error::Invalid(_))) => return Err(error),
                    // The first endpoint that was reached knows more than those that were not.
                    Err(error @ Error::NobodyReachable(_)) => {
                        trouble.get_or_insert(error);
                    }
                    Err(error @ (Error::OutcomeUnknown(_) | Error::Unavailable(_))) => {
                        trouble = Some(error);
                    }
                }
                if start.elapsed() >= self.options.timeout {
                    break;
                }
            }
            if start.elapsed() + ROUND_PAUSE >= self.options.timeout {
                let none = || Error::Unavailable("the time was over before it began".to_owned());
                return Err(trouble.unwrap_or_else(none));
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    /// The state of the node at this endpoint, `host:port`. Needs no other node.
    pub async fn status(&self, endpoint: &str) -> Result<NodeStatus, Error> {
        let answer = self.ask_node(endpoint, ClusterOp::Status, self.options.timeout).await?;
        let Answer::Cluster(ClusterAnswer::Status(status)) = answer else { return Err(unfit()) };
        Ok(*status)
    }

    /// The shards of the groups that have a replica on the node at this endpoint, `host:port`.
    pub async fn shards(&self, endpoint: &str) -> Result<Vec<ShardStatus>, Error> {
        let answer = self.ask_node(endpoint, ClusterOp::Shards, self.options.timeout).await?;
        let Answer::Cluster(ClusterAnswer::Shards(shards)) = answer else { return Err(unfit()) };
        Ok(shards)
    }

    /// Sends a request as it is, once, to the node at this endpoint or else to any: the caller's
    /// header counts, and errors such as "not the leader" come back as they are.
    pub async fn raw(&self, endpoint: Option<&str>, request: Request) -> Result<Reply, Error> {
        let endpoint = endpoint.map(normalize).transpose()?;
        let (sender, receiver) = oneshot::channel();
        let timeout = micros(self.options.timeout);
        let is_write = request.body.is_write();
        let command = Command::Raw { endpoint, request, sender };
        self.commands.send(command).await.map_err(|_| ended())?;
        match tokio::time::timeout(Duration::from_micros(timeout.0), receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::lost("the client was shut down".to_owned(), is_write)),
            Err(_) => Err(Error::lost("no answer came in time".to_owned(), is_write)),
        }
    }

    /// Carries out any request with routing and retries. Errors of the request are in the `Err`.
    pub async fn call(&self, body: Body) -> Result<Reply, Error> {
        let (sender, receiver) = oneshot::channel();
        let is_write = body.is_write();
        let (timeout, reads) = (micros(self.options.timeout), self.options.reads);
        let command = Command::Call { body, timeout, reads, sender };
        self.commands.send(command).await.map_err(|_| ended())?;
        let lost = |_| Error::lost("the client was shut down".to_owned(), is_write);
        receiver.await.map_err(lost)?
    }

    async fn kv(&self, op: KvOp) -> Result<Reply, Error> {
        self.call(Body::Kv(op)).await
    }

    /// One attempt at one node, over a connection of its own.
    async fn ask_node(
        &self,
        endpoint: &str,
        op: ClusterOp,
        timeout: Duration,
    ) -> Result<Answer, Error> {
        // The node gives up first, so that what it has to say about it still arrives.
        let header = Header { timeout: micros(timeout * 9 / 10), ..Header::default() };
        let is_write = op.is_write();
        let ask = async {
            let unary = Unary::connect(endpoint, self.options.clone()).await?;
            unary.call(Request { header, body: Body::Cluster(op) }).await
        };
        match tokio::time::timeout(timeout, ask).await {
            Ok(reply) => Ok(reply?.value),
            Err(_) => Err(Error::lost(format!("{endpoint} did not answer in time"), is_write)),
        }
    }
}

fn ended() -> Error {
    Error::Unavailable("the client was shut down".to_owned())
}

/// An answer of another kind than the request's. It may well have been executed.
fn unfit() -> Error {
    Error::OutcomeUnknown("the answer does not fit the request".to_owned())
}

fn value(reply: Reply) -> Result<Answered<Option<Bytes>>, Error> {
    let Answer::Value(value) = reply.body? else { return Err(unfit()) };
    Ok(Answered { value, header: reply.header })
}

fn done(reply: Reply) -> Result<Answered<()>, Error> {
    let Answer::Done = reply.body? else { return Err(unfit()) };
    Ok(Answered { value: (), header: reply.header })
}

fn flag(reply: Reply) -> Result<Answered<bool>, Error> {
    let (Answer::Deleted(value) | Answer::Swapped(value)) = reply.body? else {
        return Err(unfit());
    };
    Ok(Answered { value, header: reply.header })
}

fn length(reply: Reply) -> Result<Answered<u64>, Error> {
    let Answer::Appended(value) = reply.body? else { return Err(unfit()) };
    Ok(Answered { value, header: reply.header })
}

fn configuration(reply: Reply) -> Result<Answered<Configuration>, Error> {
    let Answer::Master(MasterAnswer::Configuration(value)) = reply.body? else {
        return Err(unfit());
    };
    Ok(Answered { value, header: reply.header })
}
