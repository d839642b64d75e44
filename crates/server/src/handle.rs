//! The runtime's handle of a node, as the doors ask it.

use std::task::{Context, Poll};

use router::{Reply, Request};
use runtime::{Handle, Replies, RequestStream};

use crate::ask::{Answers, Ask, Asking, Stopped};

impl Ask for Handle<Request, Reply> {
    type Asking = RequestStream<Request, Reply>;
    type Answers = Replies<Reply>;

    async fn call(&self, request: Request) -> Result<Reply, Stopped> {
        Handle::call(self, request).await.map_err(|_| Stopped)
    }

    fn stream(&self, open_max: usize) -> (Self::Asking, Self::Answers) {
        Handle::stream(self, open_max)
    }
}

impl Asking for RequestStream<Request, Reply> {
    async fn send(&self, number: u64, request: Request) -> Result<(), Stopped> {
        RequestStream::send(self, number, request).await.map_err(|_| Stopped)
    }

    async fn answer(&self, number: u64, reply: Reply) -> Result<(), Stopped> {
        RequestStream::answer(self, number, reply).await.map_err(|_| Stopped)
    }
}

impl Answers for Replies<Reply> {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(u64, Reply)>> {
        Replies::poll_next(self, context)
    }
}
