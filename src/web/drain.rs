//! What clients send and no page reads: bodies of requests, and all that follows the last one.
//!
//! A server that closes a connection while its client still sends resets it, and the client may never see the response
//! (RFC 9112, 9.6). So both are read and dropped, within bounds:
//! - the rest of a body, after the response is sent. The connection then serves further requests, as with nginx and
//!   Node.js.
//! - if that was too much, or the last request was malformed, what comes after this side has ended the connection.
//!   nginx calls it a lingering close.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    runtime::Handle,
    time::{Sleep, sleep, timeout},
};

use super::activity::Activity;

/// The most bytes that are read and dropped, of a body and again after the last response. It stops a client that would
/// keep the process busy with a body that never ends.
const DROPPED_MAX: usize = 16 * 1024 * 1024;

/// What a part of a body counts at least: one byte in a chunk of its own costs as much as a kilobyte.
const PART_MIN: usize = 1024;

/// The longest time that each of these takes. It stops a client that sends a byte from time to time.
const DROPPING_TIME: Duration = Duration::from_secs(5);

/// The body of an HTTP/1 request. What the page leaves of it is read and dropped.
pub struct RequestBody {
    /// None once it is left to be dropped.
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
            Some(body) => Pin::new(body).poll_frame(context),
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

/// A client's connection. It notes what the client does, and closes only after what the client still sends.
pub struct ClientStream {
    tcp: TcpStream,
    activity: Arc<Activity>,
    /// The last four bytes that came.
    tail: u32,
    closing: Option<Closing>,
}

/// Reading what comes after this side has ended the connection.
struct Closing {
    left: usize,
    /// In a box, because most connections never need it.
    time: Pin<Box<Sleep>>,
}

impl ClientStream {
    /// A new connection.
    pub fn new(tcp: TcpStream, activity: Arc<Activity>) -> Self {
        Self { tcp, activity, tail: 0, closing: None }
    }
}

/// Whether these last bytes are an empty line, which ends the head of a request. hyper accepts lines without CR.
fn is_empty_line(tail: u32) -> bool {
    tail & 0xffff == 0x0a0a || tail & 0xff_ffff == 0x0a_0d0a
}

impl AsyncRead for ClientStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(context, buf))?;
        let came = &buf.filled()[before..];
        if !came.is_empty() {
            let last = &came[came.len().saturating_sub(4)..];
            self.tail = last.iter().fold(self.tail, |tail, byte| tail << 8 | u32::from(*byte));
            self.activity.note_bytes(is_empty_line(self.tail));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(context, bytes);
        self.activity.note_taking(written.is_ready());
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, activity, closing, .. } = &mut *self;
        let mut tcp = Pin::new(tcp);
        let closing = match closing {
            Some(closing) => closing,
            None => {
                ready!(tcp.as_mut().poll_shutdown(context))?;
                if !activity.may_still_send() {
                    return Poll::Ready(Ok(()));
                }
                closing.insert(Closing { left: DROPPED_MAX, time: Box::pin(sleep(DROPPING_TIME)) })
            }
        };
        if closing.time.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut bytes = [MaybeUninit::uninit(); 16 * 1024];
        loop {
            let mut bytes = ReadBuf::uninit(&mut bytes);
            let is_read = ready!(tcp.as_mut().poll_read(context, &mut bytes)).is_ok();
            let length = bytes.filled().len();
            if !is_read || length == 0 || closing.left < length {
                return Poll::Ready(Ok(()));
            }
            closing.left -= length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_line_ends_a_head() {
        for (bytes, expected) in [
            (b"\r\n\r\n", true),
            (b"x\n\r\n", true),
            (b"xx\n\n", true),
            (b"\n\nxx", false),
            (b"xx\r\n", false),
            (b"\r\n\r\r", false),
            (b"\n\r\r\n", false),
        ] {
            assert_eq!(is_empty_line(u32::from_be_bytes(*bytes)), expected, "{bytes:?}");
        }
    }
}
