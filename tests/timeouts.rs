//! Promise: who holds a connection and asks nothing, or never ends what they ask, is hung up on.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use crate::common::{PATIENCE, Service};

const PROMISE: Duration = Duration::from_secs(30);

#[test]
fn a_connection_that_asks_nothing_is_closed() {
    let service = Service::start([]);
    let beginnings: &[&[u8]] = &[
        b"",
        b"P",
        b"PRI * HTTP/2.0\r\n",
        // HTTP/2's whole preface, and no request.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: local",
        // A request, and then the beginning of another.
        b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\nGET / HTTP/1.1\r\n",
    ];
    thread::scope(|scope| {
        for beginning in beginnings {
            scope.spawn(|| {
                let begin = Instant::now();
                let mut stream = TcpStream::connect(("127.0.0.1", service.port)).unwrap();
                stream.set_read_timeout(Some(PROMISE + PATIENCE)).unwrap();
                stream.write_all(beginning).unwrap();
                let end = stream
                    .read_to_end(&mut Vec::new())
                    .map_err(|error| error.kind());
                let beginning = String::from_utf8_lossy(beginning);
                assert_ne!(
                    end,
                    Err(ErrorKind::WouldBlock),
                    "{beginning:?} is still connected"
                );
                assert!(
                    begin.elapsed() < PROMISE,
                    "{beginning:?}: {:?}",
                    begin.elapsed()
                );
            });
        }
    });
}
