//! Frames to other nodes: one connection for each peer and lane, made when there is something to
//! send.
//!
//! Frames may be lost, and are: where a peer cannot be reached what waits for it is dropped, and
//! where it takes too slowly the newest are. The protocol repeats what matters.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::Address;
use base::limits::PEER_QUEUE_BYTES_MAX;
use bytes::{Buf, Bytes};
use replica_group::turn::{Frame, Lane};
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::frames::{FrameWriter, PREAMBLE};
use crate::stats::Stats;

const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Sent data that nobody acknowledged for so long ends the connection. Without this the kernel
/// tries for a quarter of an hour, ever less often, and a healed network would not be noticed.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Bytes laid out for one round of writes.
const ROUND_BYTES_MAX: usize = 1 << 20;
/// Pieces in one system call.
const SLICES_MAX: usize = 64;

/// The connections to all peers.
pub(crate) struct Peers {
    links: BTreeMap<(Address, Lane), Arc<Link>>,
    stats: Arc<Stats>,
}

/// What one connection's task and the turn share.
#[derive(Default)]
struct Link {
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    bytes: usize,
}

impl Peers {
    pub(crate) fn new(stats: Arc<Stats>) -> Peers {
        Peers { links: BTreeMap::new(), stats }
    }

    /// Queues a frame; the connection's task runs when the turn is over, and so writes all frames
    /// of the turn together.
    pub(crate) fn send(&mut self, frame: Frame, tasks: &mut JoinSet<()>) {
        let link = self.links.entry((frame.to, frame.lane)).or_insert_with_key(|(to, _)| {
            let link = Arc::new(Link::default());
            tasks.spawn(keep_sending(to.clone(), link.clone(), self.stats.clone()));
            link
        });
        if link.lock().push(frame.bytes) {
            link.filled.notify_one();
        } else {
            self.stats.frames_dropped.add(1);
        }
    }
}

impl Queue {
    fn push(&mut self, frame: Bytes) -> bool {
        if self.bytes + frame.len() > PEER_QUEUE_BYTES_MAX {
            return false;
        }
        self.bytes += frame.len();
        self.frames.push_back(frame);
        true
    }

    fn pop(&mut self) -> Option<Bytes> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_empty(&self) -> bool {
        self.lock().frames.is_empty()
    }

    /// Drops what waits, and says how much that was.
    fn clear(&self) -> u64 {
        std::mem::take(&mut *self.lock()).frames.len() as u64
    }

    async fn until_filled(&self) {
        while self.is_empty() {
            self.filled.notified().await;
        }
    }
}

async fn keep_sending(to: Address, link: Arc<Link>, stats: Arc<Stats>) {
    let mut backoff = BACKOFF_MIN;
    let mut reachable = true;
    loop {
        link.until_filled().await;
        let error = match dial(&to).await {
            Ok(stream) => {
                stats.peer_connections.add(1);
                if !reachable {
                    tracing::info!("peer {to} is reachable again");
                    reachable = true;
                }
                let since = Instant::now();
                let error = send_all(stream, &link, &stats).await;
                // One that ends at once was refused, and is not to be tried in a tight loop.
                if since.elapsed() > BACKOFF_MAX {
                    backoff = BACKOFF_MIN;
                }
                error
            }
            Err(error) => {
                stats.peer_dials_failed.add(1);
                stats.frames_dropped.add(link.clear());
                error
            }
        };
        if reachable {
            tracing::info!("no connection to peer {to} ({error}); trying until there is one");
            reachable = false;
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

async fn dial(to: &Address) -> io::Result<TcpStream> {
    let stream = timeout(DIAL_TIMEOUT, TcpStream::connect(to.as_str())).await??;
    stream.set_nodelay(true)?;
    sockopt::set_tcp_user_timeout(&stream, SILENCE_MAX.as_millis() as u32)?;
    Ok(stream)
}

/// Until the connection breaks; returns why.
async fn send_all(stream: TcpStream, link: &Link, stats: &Stats) -> io::Error {
    let (mut from, mut to) = stream.into_split();
    let sending = async {
        to.write_all(&PREAMBLE).await?;
        let mut writer = FrameWriter::default();
        loop {
            link.until_filled().await;
            let mut bytes = 0;
            while bytes < ROUND_BYTES_MAX {
                let Some(frame) = link.lock().pop() else { break };
                bytes += frame.len();
                stats.frames_sent.add(1);
                writer.push(&frame);
            }
            stats.frame_bytes_sent.add(bytes as u64);
            write_chunks(&mut to, writer.take()).await?;
        }
    };
    let ended: io::Result<std::convert::Infallible> = tokio::select! {
        ended = sending => ended,
        error = until_closed(&mut from) => Err(error),
    };
    match ended {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn write_chunks(to: &mut OwnedWriteHalf, chunks: Vec<Bytes>) -> io::Result<()> {
    let mut chunks = VecDeque::from(chunks);
    while !chunks.is_empty() {
        let slices: Vec<IoSlice<'_>> =
            chunks.iter().take(SLICES_MAX).map(|chunk| IoSlice::new(chunk)).collect();
        let mut written = to.write_vectored(&slices).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(first) = chunks.front_mut() {
            if written < first.len() {
                first.advance(written);
                break;
            }
            written -= first.len();
            chunks.pop_front();
        }
    }
    Ok(())
}

/// A listener never answers, so whatever can be read tells that the connection is over. Else a
/// peer that restarted would be noticed only by losing the next frames.
async fn until_closed(from: &mut OwnedReadHalf) -> io::Error {
    match from.read(&mut [0]).await {
        Ok(0) => io::Error::new(io::ErrorKind::ConnectionReset, "closed by the peer"),
        Ok(_) => io::Error::new(io::ErrorKind::InvalidData, "the peer does not speak our protocol"),
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_to_peers_send_at_once() {
        let listener = crate::bind("127.0.0.1:0").await.unwrap();
        let address = Address::new(&listener.local_addr().unwrap().to_string());
        let stream = dial(&address).await.unwrap();
        assert!(sockopt::tcp_nodelay(&stream).unwrap());
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 3_000);
    }

    #[test]
    fn a_full_queue_drops_the_newest_and_takes_again_when_emptied() {
        let mut queue = Queue::default();
        let big = Bytes::from(vec![0; PEER_QUEUE_BYTES_MAX / 2]);
        assert!(queue.push(big.clone()) && queue.push(big.clone()));
        assert!(!queue.push(Bytes::from_static(b"x")));
        queue.pop().unwrap();
        assert!(queue.push(Bytes::from_static(b"x")));
        assert_eq!(queue.bytes, big.len() + 1);
    }
}
