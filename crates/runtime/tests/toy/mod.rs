//! A machine with no protocol: each request exercises one thing that the runtime does for a node.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use base::{Address, Lsn, Micros, Now};
use bytes::Bytes;
use replica_group::turn::{Frame, Input, Lane, Machine, Output, Place, Reply, Token};
use runtime::{DataDir, Handle, Options, Parts, RunError, Stats};
use storage::{Batch, Disk, Flush, FlushId, MemoryEngine, WalCommand, WalRead, WalTicket};

pub const LOG: &str = "log";
pub const PAGE: usize = 4_096;

#[derive(Debug)]
pub enum Ask {
    Echo(u64),
    /// Answered when a page of this byte is durable in the log.
    Store(u8),
    /// Writes to a file that does not exist.
    StoreNowhere,
    /// Answered when a file was made in the background.
    Prepare(String),
    ReadPage(u64),
    Flush(Batch),
    Send(Address, Lane, Bytes),
    /// Answered when so many frames have arrived.
    Frames(usize),
    /// Answered too late at first.
    Late,
    /// What the disk had no room for so far, and where it had again.
    NoRoom,
    GiveUp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Done,
    Number(u64),
    Bytes(Result<Bytes, String>),
    Frames(Vec<Bytes>),
    /// How often the answer was too late.
    Late(u64),
    NoRoom(Vec<(Place, bool)>),
}

#[derive(Default)]
pub struct Toy {
    out: Output<Told>,
    tickets: u64,
    background: u64,
    pages: u64,
    wal: BTreeMap<WalTicket, Token>,
    prepared: BTreeMap<WalTicket, Token>,
    reads: Vec<Token>,
    flush: Option<Token>,
    frames: Vec<Bytes>,
    waiting: Vec<(Token, usize)>,
    late: u64,
    stopping: bool,
    last: Micros,
    /// What the disk had no room for, and where it had again.
    no_room: Vec<(Place, bool)>,
}

impl Toy {
    fn reply(&mut self, token: Token, reply: Told) {
        self.out.replies.push(Reply { token, reply, not_after: None });
    }

    fn ask(&mut self, now: Now, token: Token, request: Ask) {
        match request {
            Ask::Echo(number) => self.reply(token, Told::Number(number)),
            Ask::Store(byte) => self.store(token, LOG, byte),
            Ask::StoreNowhere => self.store(token, "nowhere", 0),
            Ask::Prepare(file) => {
                self.background += 1;
                let ticket = WalTicket(self.background);
                self.prepared.insert(ticket, token);
                let len = 1 << 20;
                self.out.wal.push(WalCommand::Create { ticket, file, len, background: true });
            }
            Ask::ReadPage(page) => {
                self.reads.push(token);
                let offset = page * PAGE as u64;
                let read = WalRead { file: LOG.to_string(), offset, len: PAGE, lsn: Lsn(page) };
                self.out.wal_reads.push(read);
            }
            Ask::Flush(batch) => {
                self.flush = Some(token);
                self.out.flush = Some(Flush { id: FlushId(1), batch: Arc::new(batch) });
            }
            Ask::Send(to, lane, bytes) => {
                self.out.frames.push(Frame { to, lane, bytes, leased: None });
                self.reply(token, Told::Done);
            }
            Ask::Frames(count) => self.waiting.push((token, count)),
            Ask::Late => {
                let not_after = Some(now.mono - Micros(1));
                self.out.replies.push(Reply { token, reply: Told::Done, not_after });
            }
            Ask::NoRoom => {
                let no_room = self.no_room.clone();
                self.reply(token, Told::NoRoom(no_room));
            }
            Ask::GiveUp => self.out.fatal = Some("the toy gave up".to_string()),
        }
    }

    fn store(&mut self, token: Token, file: &str, byte: u8) {
        self.tickets += 1;
        let ticket = WalTicket(self.tickets);
        self.wal.insert(ticket, token);
        let offset = self.pages * PAGE as u64;
        self.pages += 1;
        let bytes = Bytes::from(vec![byte; PAGE]);
        self.out.wal.push(WalCommand::Write { ticket, file: file.to_string(), offset, bytes });
    }
}

impl Machine<Ask, Told> for Toy {
    fn handle(&mut self, now: Now, input: Input<Ask>) {
        assert!(now.mono >= self.last, "time went back");
        self.last = now.mono;
        match input {
            Input::Request { token, request } => self.ask(now, token, request),
            Input::Frame(bytes) => self.frames.push(bytes),
            Input::WalDone(through) => {
                let rest = self.wal.split_off(&WalTicket(through.0 + 1));
                for token in std::mem::replace(&mut self.wal, rest).into_values() {
                    self.reply(token, Told::Done);
                }
            }
            Input::WalPrepared(ticket) => {
                let token = self.prepared.remove(&ticket).unwrap();
                self.reply(token, Told::Done);
            }
            Input::Checked { .. } | Input::StoreStuck(_) => {}
            Input::NoRoom { place, why } => self.no_room.push((place, why.is_some())),
            Input::WalPreparationFailed(_, why) => panic!("a file could not be made: {why}"),
            Input::WalRead { bytes, .. } => {
                let token = self.reads.remove(0);
                self.reply(token, Told::Bytes(bytes));
            }
            Input::Flushed(FlushId(_)) => {
                let token = self.flush.take().unwrap();
                self.reply(token, Told::Done);
            }
            Input::Late(token) => {
                self.late += 1;
                let late = self.late;
                self.reply(token, Told::Late(late));
            }
            Input::Tick => {}
            Input::Stop => self.stopping = true,
        }
    }

    fn take_output(&mut self) -> Output<Told> {
        let have = self.frames.len();
        for (token, count) in std::mem::take(&mut self.waiting) {
            if have >= count {
                let frames = std::mem::take(&mut self.frames);
                self.reply(token, Told::Frames(frames));
            } else {
                self.waiting.push((token, count));
            }
        }
        self.out.stopped = self.stopping && self.wal.is_empty();
        std::mem::take(&mut self.out)
    }
}

/// A toy that runs on a thread of its own, as a node does in its process.
pub struct Node {
    pub handle: Handle<Ask, Told>,
    pub address: Address,
    pub stats: Arc<Stats>,
    pub engine: Arc<MemoryEngine>,
    thread: JoinHandle<Result<(), RunError>>,
}

impl Node {
    pub fn start(dir: &Path) -> Node {
        Node::start_at(dir, "127.0.0.1:0")
    }

    pub fn start_at(dir: &Path, address: &str) -> Node {
        let data = DataDir::open(dir).unwrap();
        let mut disk = data.disk().unwrap();
        if !disk.list().unwrap().contains(&LOG.to_string()) {
            disk.create(LOG, 64 * PAGE as u64).unwrap();
        }
        let engine = Arc::new(MemoryEngine::new());
        let stats = Arc::new(Stats::default());
        let (handle, requests) = runtime::requests();
        let (bound, addresses) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (address, engine, stats) = (address.to_string(), engine.clone(), stats.clone());
            move || {
                runtime::current_thread().unwrap().block_on(async {
                    let listener = runtime::bind(&address).await.unwrap();
                    bound.send(listener.local_addr().unwrap().to_string()).unwrap();
                    let parts = Parts { disk, engine, listener, requests, stats };
                    runtime::run(Toy::default(), parts, Options::default()).await
                })
            }
        });
        let address = Address::new(&addresses.recv().unwrap());
        Node { handle, address, stats, engine, thread }
    }

    pub async fn ask(&self, ask: Ask) -> Told {
        self.handle.call(ask).await.unwrap()
    }

    pub async fn frames(&self, count: usize) -> Vec<Bytes> {
        let told = self.ask(Ask::Frames(count)).await;
        let Told::Frames(frames) = told else { panic!("{told:?}") };
        frames
    }

    pub fn end(self) -> Result<(), RunError> {
        self.thread.join().unwrap()
    }

    pub fn stop(self) {
        self.handle.stop();
        self.end().unwrap();
    }
}
