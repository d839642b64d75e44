//! How doors hand requests to the turn and get their answers.
//!
//! Doors and turn share a thread: a request is a push into a queue that the turn drains, an answer
//! a push back. [`Handle::call`] is for single requests, [`RequestStream`] for a connection with
//! thousands of them open at a time.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc, oneshot};

/// Requests that may wait for the next turn. Doors wait beyond that; how many may be open in all
/// is the machine's to refuse.
const WAITING_MAX: usize = 4_096;

/// The node has stopped, or stops: no answer will come. What was asked may or may not have been
/// done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node has stopped")]
pub struct Stopped;

/// A door's end of the queue of requests.
#[derive(Debug)]
pub struct Handle<Q, P> {
    sender: mpsc::Sender<Submission<Q, P>>,
    stop: Arc<Notify>,
}

/// The turn's end of the queue of requests; it goes into [`run`](crate::run).
#[derive(Debug)]
pub struct Requests<Q, P> {
    pub(crate) receiver: mpsc::Receiver<Submission<Q, P>>,
    pub(crate) stop: Arc<Notify>,
}

#[derive(Debug)]
pub(crate) struct Submission<Q, P> {
    pub(crate) request: Q,
    pub(crate) answer: Answer<P>,
}

/// Where an answer goes. Whoever asked may be gone; then it goes nowhere.
#[derive(Debug)]
pub(crate) enum Answer<P> {
    Call(oneshot::Sender<P>),
    /// The place in the stream's queue was taken when the request was, so that giving the answer
    /// never waits.
    Stream(u64, mpsc::OwnedPermit<(u64, P)>),
}

impl<P> Answer<P> {
    pub(crate) fn give(self, reply: P) {
        match self {
            Answer::Call(sender) => drop(sender.send(reply)),
            Answer::Stream(number, permit) => drop(permit.send((number, reply))),
        }
    }
}

/// A queue of requests: clones of the handle for the doors, the other end for the turn.
pub fn requests<Q, P>() -> (Handle<Q, P>, Requests<Q, P>) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let stop = Arc::new(Notify::new());
    (Handle { sender, stop: stop.clone() }, Requests { receiver, stop })
}

impl<Q, P> Handle<Q, P> {
    /// Asks, and waits for the answer.
    pub async fn call(&self, request: Q) -> Result<P, Stopped> {
        let (sender, receiver) = oneshot::channel();
        let submission = Submission { request, answer: Answer::Call(sender) };
        self.sender.send(submission).await.map_err(|_| Stopped)?;
        receiver.await.map_err(|_| Stopped)
    }

    /// A pair for a connection that has many requests open: requests go in with the caller's
    /// number, answers come out with it in any order. `open_max` bounds the answers that are due
    /// or not taken yet together.
    pub fn stream(&self, open_max: usize) -> (RequestStream<Q, P>, Replies<P>) {
        let (answers, receiver) = mpsc::channel(open_max.max(1));
        (RequestStream { sender: self.sender.clone(), answers }, Replies { receiver })
    }

    /// Asks the node to stop in good order. [`run`](crate::run) returns when it has.
    pub fn stop(&self) {
        self.stop.notify_one();
    }
}

impl<Q, P> Clone for Handle<Q, P> {
    fn clone(&self) -> Handle<Q, P> {
        Handle { sender: self.sender.clone(), stop: self.stop.clone() }
    }
}

/// The asking end of a stream.
#[derive(Debug)]
pub struct RequestStream<Q, P> {
    sender: mpsc::Sender<Submission<Q, P>>,
    answers: mpsc::Sender<(u64, P)>,
}

impl<Q, P> RequestStream<Q, P> {
    /// Asks; waits only while too many answers are open. `number` comes back with the answer.
    pub async fn send(&self, number: u64, request: Q) -> Result<(), Stopped> {
        let permit = self.answers.clone().reserve_owned().await.map_err(|_| Stopped)?;
        let submission = Submission { request, answer: Answer::Stream(number, permit) };
        self.sender.send(submission).await.map_err(|_| Stopped)
    }

    /// Answers at once, in the node's stead: for what the door itself refuses.
    pub async fn answer(&self, number: u64, reply: P) -> Result<(), Stopped> {
        self.answers.send((number, reply)).await.map_err(|_| Stopped)
    }
}

/// The answering end of a stream.
#[derive(Debug)]
pub struct Replies<P> {
    receiver: mpsc::Receiver<(u64, P)>,
}

impl<P> Replies<P> {
    /// The next answer and its request's number; none when the asking end is dropped and all that
    /// was asked is answered, or never will be because the node has stopped.
    pub async fn next(&mut self) -> Option<(u64, P)> {
        self.receiver.recv().await
    }

    /// As [`Replies::next`], in the shape that streams want.
    pub fn poll_next(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<(u64, P)>> {
        self.receiver.poll_recv(context)
    }

    /// An answer that is there already, for doors that write many at once.
    pub fn try_next(&mut self) -> Option<(u64, P)> {
        self.receiver.try_recv().ok()
    }
}
