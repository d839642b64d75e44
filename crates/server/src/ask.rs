//! What the doors need of a node: somewhere to put requests, and their answers.

use std::task::{Context, Poll};

use router::{Reply, Request};

/// The node has stopped: no answer will come. What was asked may or may not have been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node has stopped")]
pub struct Stopped;

/// A node as its doors see it.
pub trait Ask: Clone + Send + Sync + 'static {
    /// The end of a stream that asks.
    type Asking: Asking;
    /// The end of a stream that is answered.
    type Answers: Answers;

    /// Asks, and waits for the answer.
    fn call(&self, request: Request) -> impl Future<Output = Result<Reply, Stopped>> + Send;

    /// For a connection with many requests open, at most `open_max`.
    fn stream(&self, open_max: usize) -> (Self::Asking, Self::Answers);
}

/// The asking end of a stream.
pub trait Asking: Send + Sync + 'static {
    /// Asks; waits only while too many answers are open. `number` comes back with the answer.
    fn send(
        &self,
        number: u64,
        request: Request,
    ) -> impl Future<Output = Result<(), Stopped>> + Send;

    /// Answers in the node's stead.
    fn answer(&self, number: u64, reply: Reply)
    -> impl Future<Output = Result<(), Stopped>> + Send;
}

/// The answering end of a stream.
pub trait Answers: Send + Unpin + 'static {
    /// The next answer, in any order; none when the asking end is gone and nothing more will come.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(u64, Reply)>>;
}
