//! The body of a response. It counts as untaken until the last byte is on its way to the client.
//!
//! hyper drops a body once it has all of its parts. But h2 keeps a part until the client's windows let it through: so it
//! is the part that counts, not the body.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Buf, Frame, SizeHint};

use super::activity::Untaken;

/// The body of a response that its client is to take.
#[derive(Debug)]
pub struct ResponseBody {
    body: Body,
    /// None once a part is known to be the last, and if the request was refused.
    untaken: Option<Untaken>,
}

/// A part of it.
#[derive(Debug)]
pub struct Part {
    bytes: Bytes,
    untaken: Option<Untaken>,
}

impl ResponseBody {
    /// This body, which `untaken` counts, if given.
    pub fn new(body: Body, untaken: Option<Untaken>) -> Self {
        Self { body, untaken }
    }
}

impl HttpBody for ResponseBody {
    type Data = Part;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Part>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        frame.map_ok(|frame| {
            frame.map_data(|bytes| {
                let untaken = self.untaken.take();
                if !self.body.is_end_stream() {
                    self.untaken = untaken.as_ref().map(Untaken::another);
                }
                Part { bytes, untaken }
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Buf for Part {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
        self.untaken.as_ref().inspect(|untaken| untaken.note_taking());
    }
}
