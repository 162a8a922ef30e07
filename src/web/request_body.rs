//! The body of a request, of which a page may leave a part.
//!
//! The rest of an HTTP/1 body must be read before the connection can serve the next request. So what the page leaves is
//! read and dropped, within bounds, as by nginx and Node.js.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::{runtime::Handle, time::timeout};

use super::{
    activity::Activity,
    client_stream::{DROPPED_MAX, DROPPING_TIME},
};

/// What a part of a body counts at least: one byte in a chunk of its own costs as much as a kilobyte.
const PART_MIN: usize = 1024;

/// The body of an HTTP/1 request. What the page leaves of it is read and dropped.
pub struct RequestBody {
    /// None only while it is dropped.
    body: Option<Incoming>,
    activity: Arc<Activity>,
    /// Whether the client sends the body only once it is asked to. Reading is asking.
    is_held_back: bool,
}

impl RequestBody {
    /// A body of a request on this connection, perhaps held back (`Expect: 100-continue`).
    pub fn new(body: Incoming, activity: Arc<Activity>, is_held_back: bool) -> Self {
        Self { body: Some(body), activity, is_held_back }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        self.is_held_back = false;
        match &mut self.body {
            Some(body) => {
                let frame = Pin::new(body).poll_frame(context);
                if matches!(frame, Poll::Ready(Some(Err(_)))) {
                    self.activity.note_bytes_left();
                }
                frame
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(body) = self.body.take() else {
            return;
        };
        if body.is_end_stream() {
            self.activity.note_end_of_request();
        } else if self.is_held_back {
            self.activity.note_bytes_left();
        } else if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(read_rest(body, self.activity.clone()));
        }
    }
}

/// Reads a body and drops it.
async fn read_rest(mut body: Incoming, activity: Arc<Activity>) {
    let mut left = DROPPED_MAX;
    let rest = async {
        while let Some(part) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let length = part.ok()?.data_ref().map_or(0, Bytes::len);
            left = left.checked_sub(length.max(PART_MIN))?;
        }
        Some(())
    };
    match timeout(DROPPING_TIME, rest).await {
        Ok(Some(())) => activity.note_end_of_request(),
        _ => activity.note_bytes_left(),
    }
}
