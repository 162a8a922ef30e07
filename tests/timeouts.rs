//! Promise: a connection is closed if its client sends no request, or never completes one.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use crate::common::{Service, TIMEOUT};

/// The connection is closed by then.
const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn a_connection_without_a_complete_request_is_closed() {
    let service = Service::start([]);
    let beginnings: &[&[u8]] = &[
        b"",
        b"P",
        b"PRI * HTTP/2.0\r\n",
        // The complete HTTP/2 preface, and no request.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: local",
        // A complete request, then the beginning of another.
        b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\nGET / HTTP/1.1\r\n",
    ];
    thread::scope(|scope| {
        for beginning in beginnings {
            scope.spawn(|| {
                let begin = Instant::now();
                let mut stream = TcpStream::connect(("127.0.0.1", service.port)).unwrap();
                stream.set_read_timeout(Some(DEADLINE + TIMEOUT)).unwrap();
                stream.write_all(beginning).unwrap();
                let end = stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
                let beginning = String::from_utf8_lossy(beginning);
                assert_ne!(end, Err(ErrorKind::WouldBlock), "{beginning:?} is still connected");
                assert!(begin.elapsed() < DEADLINE, "{beginning:?}: {:?}", begin.elapsed());
            });
        }
    });
}
