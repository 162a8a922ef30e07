//! A client's connection: it notes what comes and what is taken, and before it closes reads what is still sent.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::activity::Activity;

/// The most bytes that are read and dropped: so many of a body, and so many again after this side has ended the
/// connection. It stops a client that would keep the process busy with a body that never ends.
pub(super) const DROPPED_MAX: usize = 16 * 1024 * 1024;

/// The longest time that each of the two may take. It stops a client that sends a byte from time to time.
pub(super) const DROPPING_TIME: Duration = Duration::from_secs(5);

/// A client's connection.
///
/// A server that closes a connection while its client still sends resets it, and the client may never see the response
/// (RFC 9112, 9.6). So, once this side has ended the connection, what still comes is read and dropped, within bounds.
/// nginx calls it a lingering close.
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
