//! The connection to one node: a `Kv.Pipeline` stream, made when it is first needed and made again
//! after it broke.

use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll};

use api::v1::kv_client::KvClient;
use api::v1::{PipelineReply, PipelineRequest, pipeline_reply, pipeline_request};
use base::Micros;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::error::{Error, describe, innermost};
use crate::options::{Options, endpoint};

/// Requests that may wait for the connection to take them; one more counts as not sent.
const QUEUE_MAX: usize = 8_192;
/// The first pause before a broken link is made again; it doubles up to the longest one.
const PAUSE_MIN: Micros = Micros::from_millis(20);
const PAUSE_MAX: Micros = Micros::from_secs(1);

/// The connection to one node. `W` is what the driver keeps of each open request.
pub(crate) struct Link<W> {
    address: String,
    state: State,
    open: HashMap<u64, W>,
    number_last: u64,
    /// Before this a broken link is not made again.
    pause_until: Micros,
    pause: Micros,
    /// Why the link broke last.
    trouble: Option<String>,
}

enum State {
    Closed,
    Connecting { sender: mpsc::Sender<PipelineRequest>, connecting: Connecting },
    Open { sender: mpsc::Sender<PipelineRequest>, replies: Box<Streaming<PipelineReply>> },
}

type Connecting = Pin<Box<dyn Future<Output = Result<Streaming<PipelineReply>, Broken>> + Send>>;

/// How a link broke.
#[derive(Clone, Debug)]
struct Broken {
    /// Nothing that was queued has left this process.
    unsent: bool,
    text: String,
}

/// What a link has to tell. It is looked at once and taken apart, so that its size does not matter.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Event<W> {
    /// It is open.
    Opened,
    /// An answer.
    Reply(W, Option<pipeline_reply::Reply>),
    /// It broke. The open requests will not be answered; where `unsent`, none of them left.
    Broke {
        /// The requests that were open.
        open: Vec<W>,
        /// Whether they surely did not arrive.
        unsent: bool,
    },
}

impl<W> Link<W> {
    pub(crate) fn new(address: String) -> Link<W> {
        Link {
            address,
            state: State::Closed,
            open: HashMap::new(),
            number_last: 0,
            pause_until: Micros(0),
            pause: PAUSE_MIN,
            trouble: None,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Whether a request can be handed in now: it is open, being made, or may be made.
    pub(crate) fn is_usable(&self, now: Micros) -> bool {
        !matches!(self.state, State::Closed) || now >= self.pause_until
    }

    /// When a broken link may be made again.
    pub(crate) fn pause_until(&self) -> Option<Micros> {
        matches!(self.state, State::Closed).then_some(self.pause_until)
    }

    /// Why there is no connection.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Begins to make the connection where there is none.
    pub(crate) fn open(&mut self, now: Micros, options: &Options) {
        if matches!(self.state, State::Closed) && now >= self.pause_until {
            let (sender, receiver) = mpsc::channel(QUEUE_MAX);
            let connecting = Box::pin(connect(self.address.clone(), options.clone(), receiver));
            self.state = State::Connecting { sender, connecting };
        }
    }

    /// Hands a request in; given back when it cannot be sent now.
    pub(crate) fn send(
        &mut self,
        now: Micros,
        options: &Options,
        request: pipeline_request::Request,
        waiter: W,
    ) -> Result<(), W> {
        self.open(now, options);
        let sender = match &self.state {
            State::Closed => return Err(waiter),
            State::Connecting { sender, .. } | State::Open { sender, .. } => sender,
        };
        let number = self.number_last + 1;
        if sender.try_send(PipelineRequest { number, request: Some(request) }).is_err() {
            return Err(waiter);
        }
        self.number_last = number;
        self.open.insert(number, waiter);
        Ok(())
    }

    /// The next thing that happened.
    pub(crate) fn poll(&mut self, now: Micros, context: &mut Context<'_>) -> Poll<Event<W>> {
        loop {
            match &mut self.state {
                State::Closed => return Poll::Pending,
                State::Connecting { connecting, .. } => {
                    match std::task::ready!(connecting.as_mut().poll(context)) {
                        Ok(replies) => {
                            self.opened(replies);
                            return Poll::Ready(Event::Opened);
                        }
                        Err(broken) => return Poll::Ready(self.broke(now, broken)),
                    }
                }
                State::Open { replies, .. } => {
                    let text = match std::task::ready!(Pin::new(replies).poll_next(context)) {
                        Some(Ok(PipelineReply { number, reply })) => {
                            // A number that is not open was answered before: the node errs.
                            let Some(waiter) = self.open.remove(&number) else { continue };
                            return Poll::Ready(Event::Reply(waiter, reply));
                        }
                        Some(Err(status)) => describe(&status),
                        None => "the node has closed the connection".to_owned(),
                    };
                    return Poll::Ready(self.broke(now, Broken { unsent: false, text }));
                }
            }
        }
    }

    fn opened(&mut self, replies: Streaming<PipelineReply>) {
        if let State::Connecting { sender, .. } = std::mem::replace(&mut self.state, State::Closed)
        {
            self.state = State::Open { sender, replies: Box::new(replies) };
        }
        self.pause = PAUSE_MIN;
        self.trouble = None;
    }

    fn broke(&mut self, now: Micros, broken: Broken) -> Event<W> {
        tracing::debug!(node = self.address, reason = broken.text, "a connection broke");
        self.state = State::Closed;
        self.trouble = Some(broken.text);
        self.pause_until = now + self.pause;
        self.pause = Micros(self.pause.0 * 2).min(PAUSE_MAX);
        let mut open: Vec<(u64, W)> = self.open.drain().collect();
        open.sort_by_key(|(number, _)| *number);
        let open = open.into_iter().map(|(_, waiter)| waiter).collect();
        Event::Broke { open, unsent: broken.unsent }
    }
}

async fn connect(
    address: String,
    options: Options,
    receiver: mpsc::Receiver<PipelineRequest>,
) -> Result<Streaming<PipelineReply>, Broken> {
    let unsent = |text| Broken { unsent: true, text };
    let endpoint =
        endpoint(&address, &options).map_err(|error: Error| unsent(error.to_string()))?;
    let channel = endpoint.connect().await.map_err(|error| unsent(innermost(&error)))?;
    let mut kv = KvClient::new(channel).max_decoding_message_size(api::MESSAGE_BYTES_MAX);
    // From here on requests leave while the stream is being opened.
    let replies = kv.pipeline(ReceiverStream::new(receiver)).await;
    replies.map(tonic::Response::into_inner).map_err(|status| {
        let text = describe(&status);
        Broken { unsent: false, text }
    })
}
