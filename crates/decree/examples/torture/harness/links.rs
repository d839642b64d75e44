//! What stands between the nodes: a proxy for each door of each node, which tells by the process
//! that dialled whose connection it is, and treats each ordered pair of nodes as it is told.
//!
//! A node is known to the others by an address at which a proxy listens. Connections between nodes
//! carry frames one way only, so that a rule for the pair (1, 2) concerns what 1 says to 2 and
//! nothing else. Programs count as number 0.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use base::Random;
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// What becomes of the bytes of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They arrive.
    #[default]
    Clear,
    /// Nothing passes. What was sent stays on its way, and arrives when the link is there again; a
    /// connection that waited too long breaks, as one does that nobody acknowledges.
    Cut,
    /// Everything is taken, and nothing arrives. The connection breaks when the link is there
    /// again.
    Swallowed,
    /// Each piece comes later by up to so many milliseconds, in order.
    Late(u64),
    /// So many bytes pass in a second.
    Narrow(u64),
    /// Of a thousand frames so many are lost, as many come twice, and as many change places with
    /// the next one.
    Lossy(u64),
}

/// An ordered pair of nodes: from, to.
pub(crate) type Pair = (u64, u64);

/// The state of a pair.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    mode: Mode,
    /// Goes up when all connections of the pair are to break.
    resets: u64,
}

/// The proxies, in a thread of their own.
pub(crate) struct Links {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    links: BTreeMap<Pair, watch::Sender<Link>>,
    /// The processes of the nodes.
    processes: Mutex<BTreeMap<u64, u32>>,
    passed: Mutex<Passed>,
}

/// What went through the proxies.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passed {
    /// Connections between nodes.
    pub(crate) connections: u64,
    /// Those of them that were broken on purpose.
    pub(crate) broken: u64,
    /// Frames between nodes that arrived.
    pub(crate) frames: u64,
    /// Frames that were lost, doubled or changed places on purpose.
    pub(crate) mangled: u64,
}

/// A door that a proxy stands before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// Frames of other nodes.
    Peer,
    /// gRPC.
    Program,
}

/// A proxy: where it listens, and whose door it stands before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proxy {
    pub(crate) door: Door,
    pub(crate) node: u64,
    pub(crate) at: SocketAddrV4,
    pub(crate) to: SocketAddrV4,
}

/// Bytes that a link takes in advance of what arrives are bounded by so many pieces.
const PIECES_MAX: usize = 1_024;
const READ_BYTES: usize = 64 << 10;
/// What connections between nodes begin with.
const PREAMBLE_BYTES: usize = 8;
const HEADER_BYTES: usize = 4;
/// A connection of which nothing arrives for so long breaks; the nodes' own bound is 3 s.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Half a frame is there before the connection breaks.
const HALF_PAUSE: Duration = Duration::from_millis(5);
/// A narrow link passes so many pieces in a second.
const NARROW_PIECES: u64 = 50;

impl Links {
    /// Stands before these doors.
    pub(crate) fn start(proxies: Vec<Proxy>, nodes: u64, seed: u64) -> io::Result<Links> {
        let pairs = (0..=nodes).flat_map(|from| (1..=nodes).map(move |to| (from, to)));
        let links = pairs.map(|pair| (pair, watch::Sender::new(Link::default()))).collect();
        let (processes, passed) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { links, processes, passed });
        let listeners: Vec<(std::net::TcpListener, Proxy)> = proxies
            .into_iter()
            .map(|proxy| std::net::TcpListener::bind(proxy.at).map(|listener| (listener, proxy)))
            .collect::<io::Result<_>>()?;
        let (stop, stopped) = oneshot::channel();
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let local = tokio::task::LocalSet::new();
            let mut random = Random::new(seed);
            for (listener, proxy) in listeners {
                local.spawn_local(listen(listener, proxy, of_thread.clone(), random.fork()));
            }
            // An error means that the sender is gone, which is a stop too.
            let work = local.run_until(async { stopped.await.unwrap_or_default() });
            executor.expect("an executor").block_on(work);
        });
        Ok(Links { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Takes note of the process that is a node.
    pub(crate) fn note_process(&self, node: u64, process: u32) {
        lock(&self.shared.processes).insert(node, process);
    }

    /// From now on a pair is treated so.
    pub(crate) fn set(&self, pair: Pair, mode: Mode) {
        self.shared.links[&pair].send_if_modified(|link| {
            let differs = link.mode != mode;
            link.mode = mode;
            differs
        });
    }

    /// All connections of a pair break, in the middle of the next frame.
    pub(crate) fn reset(&self, pair: Pair) {
        self.shared.links[&pair].send_modify(|link| link.resets += 1);
    }

    /// What went through so far.
    pub(crate) fn passed(&self) -> Passed {
        *lock(&self.shared.passed)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It panicked, which was told on standard error.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn listen(
    listener: std::net::TcpListener,
    proxy: Proxy,
    shared: Arc<Shared>,
    mut random: Random,
) {
    listener.set_nonblocking(true).expect("a socket of ours");
    let listener = TcpListener::from_std(listener).expect("a socket of ours");
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            // Too many files: some are closed again soon.
            Err(_) => {
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let from = match proxy.door {
            Door::Peer => shared.dialled_by(from, proxy.at),
            Door::Program => Some(0),
        };
        // A process that is gone already, or is no node of ours.
        let Some(from) = from else { continue };
        let carried = carry(stream, (from, proxy.node), proxy, shared.clone(), random.fork());
        tokio::task::spawn_local(carried);
    }
}

impl Shared {
    /// The node whose process holds the other end of a connection.
    fn dialled_by(&self, from: SocketAddr, at: SocketAddrV4) -> Option<u64> {
        let SocketAddr::V4(from) = from else { return None };
        let name = |address: SocketAddrV4| {
            let ip = u32::from_le_bytes(address.ip().octets());
            format!("{ip:08X}:{:04X}", address.port())
        };
        let (from, at) = (name(from), name(at));
        let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
        let inode = table.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            (fields.get(1) == Some(&from.as_str()) && fields.get(2) == Some(&at.as_str()))
                .then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
        })?;
        let socket = format!("socket:[{inode}]");
        let processes = lock(&self.processes).clone();
        let holds = |process: u32| {
            let files = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten();
            let mut targets = files.flatten().filter_map(|file| file.path().read_link().ok());
            targets.any(|target| target == Path::new(&socket))
        };
        processes.into_iter().find(|(_, process)| holds(*process)).map(|(node, _)| node)
    }

    fn note(&self, note: impl FnOnce(&mut Passed)) {
        note(&mut lock(&self.passed));
    }
}

/// Carries one connection to its end, and breaks it on both sides then.
async fn carry(
    mut stream: TcpStream,
    pair: Pair,
    proxy: Proxy,
    shared: Arc<Shared>,
    random: Random,
) {
    let link = shared.links[&pair].subscribe();
    // A connection over a cut link is not made.
    if until_open(&mut link.clone()).await.is_ok()
        && let Ok(mut to) = TcpStream::connect(proxy.to).await
    {
        // A socket that is gone already shows itself at the next call.
        let _ = stream.set_nodelay(true).and_then(|()| to.set_nodelay(true));
        {
            let (from_read, from_write) = stream.split();
            let (to_read, to_write) = to.split();
            let is_peer = proxy.door == Door::Peer;
            if is_peer {
                shared.note(|passed| passed.connections += 1);
            }
            let there = Pump { link: link.clone(), shared: &shared, frames: is_peer };
            let back = Pump { link: link.clone(), shared: &shared, frames: false };
            let mut other = random.clone();
            tokio::select! {
                () = there.run(from_read, to_write, random) => {}
                () = back.run(to_read, from_write, other.fork()) => {}
            }
        }
        // Its end is news that does not pass a link that is cut either.
        let _ = until_open(&mut link.clone()).await;
        abort(to);
    }
    abort(stream);
}

/// Closes a connection so that the other end gets an error.
fn abort(stream: TcpStream) {
    // Without it the other end sees an orderly end, which it must cope with too.
    let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
}

/// The link broke a connection.
struct Broken;

/// Waits while nothing passes; an error if that takes so long that a connection breaks.
async fn until_open(link: &mut watch::Receiver<Link>) -> Result<(), Broken> {
    let open = link.wait_for(|link| !matches!(link.mode, Mode::Cut | Mode::Swallowed));
    match timeout(SILENCE_MAX, open).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Broken),
    }
}

/// One direction of a connection.
struct Pump<'a> {
    link: watch::Receiver<Link>,
    shared: &'a Shared,
    /// Whether it carries frames of nodes, which are told apart.
    frames: bool,
}

impl Pump<'_> {
    async fn run(&self, from: ReadHalf<'_>, to: WriteHalf<'_>, random: Random) {
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let resets = self.link.borrow().resets;
        let ended = tokio::select! {
            ended = self.read(from, sender, random) => ended,
            ended = self.write(to, receiver, resets) => ended,
        };
        if ended.is_err() && self.frames {
            self.shared.note(|passed| passed.broken += 1);
        }
    }

    /// Takes what the sender sends, as the link allows, and says when each piece is to arrive.
    async fn read(
        &self,
        mut from: ReadHalf<'_>,
        pieces: mpsc::Sender<(Instant, Bytes)>,
        mut random: Random,
    ) -> Result<(), Broken> {
        let mut link = self.link.clone();
        let mut splitter = Splitter::new(self.frames);
        let mut swallowed = false;
        let mut last = Instant::now();
        let mut swapped: Option<Bytes> = None;
        loop {
            let mode = link.borrow_and_update().mode;
            if mode == Mode::Cut {
                until_open(&mut link).await?;
                continue;
            }
            if swallowed && mode != Mode::Swallowed {
                return Err(Broken);
            }
            let read = tokio::select! {
                read = from.read_buf(splitter.room()) => read.unwrap_or(0),
                _ = link.changed() => continue,
            };
            if read == 0 {
                // What is on its way arrives before the end does.
                pieces.closed_when_empty().await;
                return Ok(());
            }
            if mode == Mode::Swallowed {
                (swallowed, splitter) = (true, Splitter::new(self.frames));
                continue;
            }
            while let Some(piece) = splitter.next() {
                if let Mode::Late(millis) = mode {
                    let late = Duration::from_millis(random.below(millis));
                    last = last.max(Instant::now() + late);
                }
                let all = match mode {
                    Mode::Lossy(rate) if self.frames => {
                        self.mangle(piece, rate, &mut swapped, &mut random)
                    }
                    Mode::Clear | Mode::Late(_) | Mode::Narrow(_) | Mode::Lossy(_) => {
                        swapped.take().into_iter().chain([piece]).collect()
                    }
                    Mode::Cut | Mode::Swallowed => unreachable!("nothing was read"),
                };
                for piece in all {
                    pieces.send((last, piece)).await.map_err(|_| Broken)?;
                }
            }
        }
    }

    /// Loses, doubles and exchanges frames.
    fn mangle(
        &self,
        frame: Bytes,
        rate: u64,
        swapped: &mut Option<Bytes>,
        random: &mut Random,
    ) -> Vec<Bytes> {
        let (chance, is_preamble) = (random.below(1_000), frame.len() == PREAMBLE_BYTES);
        if is_preamble || chance >= 3 * rate {
            return [frame].into_iter().chain(swapped.take()).collect();
        }
        self.shared.note(|passed| passed.mangled += 1);
        let before = swapped.take();
        if chance < rate {
            return before.into_iter().collect();
        }
        if chance < 2 * rate {
            return [frame.clone(), frame].into_iter().chain(before).collect();
        }
        *swapped = Some(frame);
        before.into_iter().collect()
    }

    /// Lets the pieces arrive.
    async fn write(
        &self,
        mut to: WriteHalf<'_>,
        mut pieces: mpsc::Receiver<(Instant, Bytes)>,
        resets: u64,
    ) -> Result<(), Broken> {
        let mut link = self.link.clone();
        while let Some((at, piece)) = pieces.recv().await {
            sleep_until(at).await;
            let mut now = *link.borrow_and_update();
            if now.mode == Mode::Cut {
                until_open(&mut link).await?;
                now = *link.borrow_and_update();
            }
            if now.resets != resets {
                // The other end may be gone before.
                let _ = to.write_all(&piece[..piece.len() / 2]).await;
                sleep(HALF_PAUSE).await;
                return Err(Broken);
            }
            let step = match now.mode {
                Mode::Narrow(rate) => usize::try_from(rate / NARROW_PIECES).unwrap_or(1).max(1),
                Mode::Clear | Mode::Cut | Mode::Swallowed | Mode::Late(_) | Mode::Lossy(_) => {
                    piece.len()
                }
            };
            for part in piece.chunks(step) {
                if to.write_all(part).await.is_err() {
                    return Ok(());
                }
                if let Mode::Narrow(rate) = now.mode {
                    sleep(Duration::from_micros(part.len() as u64 * 1_000_000 / rate)).await;
                }
            }
            if self.frames {
                self.shared.note(|passed| passed.frames += 1);
            }
        }
        Ok(())
    }
}

/// Waiting until all that was queued is taken.
trait ClosedWhenEmpty {
    async fn closed_when_empty(self);
}

impl<T> ClosedWhenEmpty for mpsc::Sender<T> {
    async fn closed_when_empty(self) {
        while self.capacity() < self.max_capacity() && !self.is_closed() {
            sleep(HALF_PAUSE).await;
        }
        // The last piece was taken, and is being written.
        sleep(HALF_PAUSE).await;
    }
}

/// Cuts what was read into the preamble and frames, or leaves it as it comes.
struct Splitter {
    buffer: BytesMut,
    frames: bool,
    begun: bool,
}

impl Splitter {
    fn new(frames: bool) -> Splitter {
        Splitter { buffer: BytesMut::new(), frames, begun: false }
    }

    fn room(&mut self) -> &mut BytesMut {
        self.buffer.reserve(READ_BYTES);
        &mut self.buffer
    }

    fn next(&mut self) -> Option<Bytes> {
        let length = match (self.frames, self.begun) {
            (false, _) => self.buffer.len(),
            (true, false) => PREAMBLE_BYTES,
            (true, true) => {
                let header: [u8; HEADER_BYTES] =
                    self.buffer.get(..HEADER_BYTES)?.try_into().ok()?;
                HEADER_BYTES + u32::from_le_bytes(header) as usize
            }
        };
        if length == 0 || self.buffer.remaining() < length {
            return None;
        }
        self.begun = true;
        Some(self.buffer.split_to(length).freeze())
    }
}
