//! One stream of numbered requests and their replies.
//!
//! The stream of replies does all the work when it is polled: it gives what is answered, and reads
//! requests while nothing is. Nobody takes replies, nobody reads requests: a client that does not
//! read slows only itself. No request has a task of its own.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use api::v1::{PipelineReply, PipelineRequest};
use client::convert::{Kind, reply_to_proto, request_from_proto};
use router::{Body, ErrorReply, Reply, ReplyHeader, Request};
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use crate::ask::{Answers, Ask, Asking};
use crate::book::Book;

/// Requests of one stream that are read and not answered.
const OPEN_MAX: usize = 4_096;
/// Bytes of keys and values of such requests, beyond which no further request is read.
const OPEN_BYTES_MAX: usize = 64 << 20;

/// The replies of a stream.
pub(crate) struct Pipeline<R> {
    answers: R,
    /// Reads requests and hands them in, until there are no more; answers why it ended otherwise.
    reading: Option<Pin<Box<dyn Future<Output = Option<Status>> + Send>>>,
    /// The status that the stream ends with when all is answered.
    end: Option<Status>,
    open: Arc<Mutex<Open>>,
    book: Arc<Book>,
}

/// The requests that are read and not answered. The node knows each by its place here, which need
/// not be looked up and is unique whatever numbers the client chooses.
#[derive(Debug, Default)]
struct Open {
    entries: Vec<Entry>,
    free: Vec<usize>,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    number: u64,
    kind: Kind,
    bytes: usize,
}

impl Open {
    fn insert(&mut self, entry: Entry) -> u64 {
        self.bytes += entry.bytes;
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.entries.push(entry);
                self.entries.len() - 1
            }
        };
        if let Some(free) = self.entries.get_mut(place) {
            *free = entry;
        }
        place as u64
    }

    fn remove(&mut self, place: u64) -> Option<Entry> {
        let place = usize::try_from(place).ok()?;
        let entry = self.entries.get(place).copied()?;
        self.bytes -= entry.bytes;
        self.free.push(place);
        Some(entry)
    }
}

impl<R: Answers> Pipeline<R> {
    /// The replies to these requests. Reading ends when `stop` becomes true.
    pub(crate) fn new<A, S>(
        ask: &A,
        requests: S,
        book: Arc<Book>,
        mut stop: watch::Receiver<bool>,
    ) -> Pipeline<R>
    where
        A: Ask<Answers = R>,
        S: Stream<Item = Result<PipelineRequest, Status>> + Send + Unpin + 'static,
    {
        let (asking, answers) = ask.stream(OPEN_MAX);
        let open = Arc::new(Mutex::new(Open::default()));
        let read = read(requests, asking, open.clone());
        let reading = async move {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => None,
                end = read => end,
            }
        };
        Pipeline { answers, reading: Some(Box::pin(reading)), end: None, open, book }
    }
}

async fn read<S, Q>(mut requests: S, asking: Q, open: Arc<Mutex<Open>>) -> Option<Status>
where
    S: Stream<Item = Result<PipelineRequest, Status>> + Unpin,
    Q: Asking,
{
    loop {
        // No wake-up is registered: this is polled again after each reply that was taken.
        std::future::poll_fn(|_| {
            if lock(&open).bytes < OPEN_BYTES_MAX { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let PipelineRequest { number, request } = match requests.next().await? {
            Ok(request) => request,
            Err(status) => return Some(status),
        };
        let handed_in = match request_from_proto(request) {
            Ok((request, kind)) => {
                let bytes = payload_bytes(&request);
                let place = lock(&open).insert(Entry { number, kind, bytes });
                asking.send(place, request).await
            }
            Err(error) => {
                let place = lock(&open).insert(Entry { number, kind: Kind::Get, bytes: 0 });
                let reply = Reply { header: ReplyHeader::default(), body: Err(error) };
                asking.answer(place, reply).await
            }
        };
        if handed_in.is_err() {
            return Some(Status::unavailable("the node is stopping: ask another one"));
        }
    }
}

impl<R: Answers> Stream for Pipeline<R> {
    type Item = Result<PipelineReply, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let pipeline = self.get_mut();
        loop {
            match pipeline.answers.poll_next(context) {
                Poll::Ready(Some((place, reply))) => {
                    let Some(entry) = lock(&pipeline.open).remove(place) else { continue };
                    let reply = reply_to_proto(entry.kind, reply, pipeline.book.as_ref());
                    let reply = PipelineReply { number: entry.number, reply: Some(reply) };
                    return Poll::Ready(Some(Ok(reply)));
                }
                Poll::Ready(None) => return Poll::Ready(pipeline.end.take().map(Err)),
                Poll::Pending => {}
            }
            let Some(reading) = &mut pipeline.reading else { return Poll::Pending };
            // The asking end goes with the future; then the answers end when all are given.
            pipeline.end = std::task::ready!(reading.as_mut().poll(context));
            pipeline.reading = None;
        }
    }
}

fn lock(open: &Mutex<Open>) -> std::sync::MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

fn payload_bytes(request: &Request) -> usize {
    match &request.body {
        Body::Kv(op) => op.key().len() + op.value().map_or(0, |value| value.len()),
        Body::Master(_) | Body::Cluster(_) => 0,
    }
}

/// What is said when the node stopped under a request.
pub(crate) fn stopped(is_write: bool) -> ErrorReply {
    let text = "the node is stopping".to_owned();
    if is_write { ErrorReply::OutcomeUnknown(text) } else { ErrorReply::Unavailable(text) }
}
