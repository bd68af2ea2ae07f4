//! Answers that come piece by piece, while they are made.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::Frame;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::problem::{Body, Problem};

/// The last line of an answer that failed once it had begun.
#[derive(Serialize)]
pub(crate) struct Failed<'a> {
    error: &'a Body,
}

impl Failed<'_> {
    pub(crate) fn of(problem: &Problem) -> Failed<'_> {
        Failed { error: problem.body() }
    }
}

/// A body that comes piece by piece.
pub(crate) struct Pieces(pub(crate) mpsc::Receiver<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let piece = ready!(self.0.poll_recv(cx));
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }
}
