//! The door for other nodes: connections in, frames out to the turn.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base::limits::FRAME_BYTES_MAX;
use bytes::Bytes;
use rustix::net::sockopt;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::frames::{FrameReader, PREAMBLE};
use crate::stats::Stats;

/// Most connections from other nodes at a time; each node has two.
const CONNECTIONS_MAX: usize = 1_024;
/// A connection that does not say what it is within this time is closed.
const PREAMBLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Frames that may wait for the turn.
const WAITING_MAX: usize = 1_024;
/// Bytes of frames that may wait for the turn, in units of [`UNIT_BYTES`]. At least the largest
/// frame fits.
const WAITING_UNITS: usize = 4 * FRAME_BYTES_MAX / UNIT_BYTES;
const UNIT_BYTES: usize = 1 << 10;
/// After an accept failed for want of files or memory, the next try waits so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there already.
    #[error("{address} is taken by another process: stop that process, or choose another port")]
    Taken {
        /// The address.
        address: String,
    },
    /// The system refuses.
    #[error("cannot listen on {address}: {source}")]
    Io {
        /// The address.
        address: String,
        /// The answer.
        source: io::Error,
    },
}

/// Listens on `host:port`. For all doors, so that all fail with the same words.
pub async fn bind(address: &str) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| {
        let address = address.to_string();
        if source.kind() == io::ErrorKind::AddrInUse {
            BindError::Taken { address }
        } else {
            BindError::Io { address, source }
        }
    })
}

/// A frame that waits for the turn, and its share of the bytes that may.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) frame: Bytes,
    _share: OwnedSemaphorePermit,
}

/// The frames of all connections.
pub(crate) fn receive(
    listener: TcpListener,
    stats: Arc<Stats>,
    tasks: &mut JoinSet<()>,
) -> mpsc::Receiver<Received> {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let inbox = Inbox { sender, shares: Arc::new(Semaphore::new(WAITING_UNITS)), stats };
    tasks.spawn(accept(listener, inbox));
    receiver
}

#[derive(Clone, Debug)]
struct Inbox {
    sender: mpsc::Sender<Received>,
    shares: Arc<Semaphore>,
    stats: Arc<Stats>,
}

async fn accept(listener: TcpListener, inbox: Inbox) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("cannot accept a connection from a peer: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!("refused {from} at the peer port: {CONNECTIONS_MAX} connections open");
            continue;
        };
        let inbox = inbox.clone();
        connections.spawn(async move {
            match serve(stream, &inbox).await {
                Ok(()) => {}
                Err(error) => refuse(from, &error),
            }
            drop(place);
        });
    }
}

/// How a connection ended otherwise than by its other end closing it between frames.
#[derive(Debug, thiserror::Error)]
enum Ending {
    #[error("it does not speak this protocol (its first bytes are not DECREEP1)")]
    Preamble,
    #[error("it said nothing for {} s", PREAMBLE_TIMEOUT.as_secs())]
    Silent,
    #[error(transparent)]
    Frame(#[from] crate::frames::FrameError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn refuse(from: SocketAddr, ending: &Ending) {
    match ending {
        // Peers come and go, and each will dial again.
        Ending::Io(error) => tracing::debug!("connection from peer {from} broke: {error}"),
        Ending::Preamble | Ending::Silent | Ending::Frame(_) => {
            tracing::warn!("closed a connection from {from} to the peer port: {ending}");
        }
    }
}

async fn serve(mut stream: TcpStream, inbox: &Inbox) -> Result<(), Ending> {
    notice_silence(&stream)?;
    let mut preamble = [0; PREAMBLE.len()];
    match timeout(PREAMBLE_TIMEOUT, stream.read_exact(&mut preamble)).await {
        Err(_) => return Err(Ending::Silent),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(Ending::Preamble);
        }
        Ok(Err(error)) => return Err(error.into()),
        Ok(Ok(_)) if preamble != PREAMBLE => return Err(Ending::Preamble),
        Ok(Ok(_)) => {}
    }
    let mut reader = FrameReader::default();
    loop {
        if stream.read_buf(reader.room()).await? == 0 {
            return Ok(());
        }
        while let Some(frame) = reader.next()? {
            inbox.stats.frames_received.add(1);
            inbox.stats.frame_bytes_received.add(frame.len() as u64);
            let units = u32::try_from(frame.len().div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
            // Fails only when the turn has ended, and with it all connections.
            let Ok(share) = inbox.shares.clone().acquire_many_owned(units).await else {
                return Ok(());
            };
            if inbox.sender.send(Received { frame, _share: share }).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// A peer whose machine vanished says nothing, for ever; the kernel shall find out.
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}
