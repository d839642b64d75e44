//! A node on a disk and a store in memory that does at once what it is told to, the same way
//! whenever it is given the same inputs.

use std::sync::Arc;

use base::Now;
use bytes::Bytes;
use node::{Node, Options};
use replica_group::turn::{self, Frame, Input, Machine, Token};
use router::{Reply, Request};
use storage::{Disk, Engine, MemoryDisk, MemoryEngine, WalCommand, WalRead};

/// What comes to a node from outside.
#[derive(Clone, Debug)]
pub(crate) enum Given {
    /// From another node.
    Frame(Bytes),
    /// From a door.
    Request(u64, Box<Request>),
}

/// What a step brought about.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) frames: Vec<Frame>,
    pub(crate) replies: Vec<(u64, Reply)>,
}

/// A node's process, and what it runs on.
pub(crate) struct Host {
    pub(crate) node: Node,
    pub(crate) disk: MemoryDisk,
    pub(crate) engine: Arc<MemoryEngine>,
    /// Why it ended, if it did.
    pub(crate) fatal: Option<String>,
    commands: Vec<WalCommand>,
    reads: Vec<WalRead>,
}

impl Host {
    /// A start on what the disks hold.
    pub(crate) fn open(
        options: Options,
        mut disk: MemoryDisk,
        engine: MemoryEngine,
        now: Now,
    ) -> Result<Host, String> {
        let engine = Arc::new(engine);
        let shared: Arc<dyn Engine> = engine.clone();
        let node = Node::open(options, &mut disk, shared, now).map_err(|error| error.0)?;
        Ok(Host { node, disk, engine, fatal: None, commands: Vec::new(), reads: Vec::new() })
    }

    /// One turn: what came, what the disk did since the last one, and that time has passed.
    pub(crate) fn step(&mut self, now: Now, given: &[Given]) -> Taken {
        for given in given {
            let input = match given {
                Given::Frame(bytes) => Input::Frame(bytes.clone()),
                Given::Request(token, request) => {
                    Input::Request { token: Token(*token), request: (**request).clone() }
                }
            };
            self.node.handle(now, input);
        }
        self.finish_commands(now);
        self.node.handle(now, Input::Tick);
        self.take(now)
    }

    fn finish_commands(&mut self, now: Now) {
        let (background, foreground): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.commands).into_iter().partition(WalCommand::is_background);
        if let Ok(Some(ticket)) = storage::execute(&mut self.disk, &foreground) {
            self.node.handle(now, Input::WalDone(ticket));
        }
        if let Ok(Some(ticket)) = storage::execute(&mut self.disk, &background) {
            self.node.handle(now, Input::WalPrepared(ticket));
        }
        for read in std::mem::take(&mut self.reads) {
            let bytes = self.disk.read(&read.file, read.offset, read.len);
            let bytes = bytes.map_err(|error| error.to_string());
            self.node.handle(now, Input::WalRead { read, bytes });
        }
    }

    fn take(&mut self, now: Now) -> Taken {
        let output = self.node.take_output();
        if output.fatal.is_some() {
            self.fatal = output.fatal;
            return Taken::default();
        }
        self.commands.extend(output.wal);
        self.reads.extend(output.wal_reads);
        for check in output.checks {
            let result = turn::check(&mut self.disk, &*self.engine, &check);
            self.node.handle(now, Input::Checked { check, result });
        }
        if let Some(flush) = output.flush
            && self.engine.write(&flush.batch).is_ok()
        {
            self.node.handle(now, Input::Flushed(flush.id));
        }
        let replies = output.replies.into_iter().map(|reply| (reply.token.0, reply.reply));
        Taken { frames: output.frames, replies: replies.collect() }
    }
}
