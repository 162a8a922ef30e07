//! Promise: a connection is closed if its client sends no request, never completes one, or takes no response. Between
//! two requests it may rest for longer than load balancers keep theirs. An HTTP/2 client is told before (GOAWAY).

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use axum::{body::Bytes, routing::get};

use crate::common::{
    Service, TIMEOUT, connect,
    http2::{ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, REQUEST, SETTINGS, frame, read_frame},
    libfaketime, may_connect, serve,
};

/// A client that owes something has this long; then its connection is closed.
const LIMIT: Duration = Duration::from_secs(20);

/// What a busy machine may add to it.
const LATE: Duration = Duration::from_secs(10);

/// Google's load balancers keep an idle connection for 600 s.
const BALANCER: Duration = Duration::from_secs(600);

/// What a connection may rest.
const REST: Duration = Duration::from_secs(650);

/// The clock of some services runs faster than the test's, by this factor.
const SPEED: u32 = 25;

const LIVE: &[u8] = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Its end does not look like that of a request.
const FORM: &[u8] = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nitem=";

fn in_a_hurry() -> Service {
    Service::start([("LD_PRELOAD", libfaketime().as_str()), ("FAKETIME", &format!("+0 x{SPEED}"))])
}

/// Sends a request and reads the response.
fn live(stream: &mut TcpStream) {
    stream.write_all(LIVE).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"live") {
        let mut bytes = [0; 1024];
        let read = stream.read(&mut bytes).unwrap();
        assert_ne!(read, 0, "closed after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&bytes[..read]);
    }
}

/// Asserts that since `begin` the limit has passed, and not much more.
fn assert_at_limit(begin: Instant, what: &str) {
    let took = begin.elapsed();
    assert!((LIMIT..LIMIT + LATE).contains(&took), "{what}: closed after {took:?}");
}

/// Waits until the service closes the connection.
fn wait_for_end(stream: &mut TcpStream, what: &str) {
    let end = stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
    assert_ne!(end, Err(ErrorKind::WouldBlock), "{what} is still connected");
}

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
                let mut stream = connect(&service);
                stream.write_all(beginning).unwrap();
                let beginning = String::from_utf8_lossy(beginning);
                wait_for_end(&mut stream, &beginning);
                assert_at_limit(begin, &beginning);
            });
        }
        scope.spawn(|| {
            let mut stream = connect(&service);
            live(&mut stream);
            // Some time later, the beginning of another.
            thread::sleep(Duration::from_secs(2));
            let begin = Instant::now();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: local").unwrap();
            wait_for_end(&mut stream, "half a request after another");
            assert_at_limit(begin, "half a request after another");
        });
    });
}

#[test]
fn a_connection_rests_for_longer_than_that_of_a_load_balancer() {
    let service = in_a_hurry();
    let [mut resting, mut ending, mut after_form] = [(); 3].map(|()| connect(&service));
    let begin = Instant::now();
    for stream in [&mut resting, &mut ending, &mut after_form] {
        live(stream);
    }
    after_form.write_all(FORM).unwrap();
    assert_ne!(after_form.read(&mut [0; 1024]).unwrap(), 0, "closed instead of an answer to a form");
    thread::sleep(BALANCER / SPEED);
    live(&mut resting);
    live(&mut after_form);
    wait_for_end(&mut ending, "a connection at rest");
    println!("at rest for {:?} of the service's time", begin.elapsed() * SPEED);
    assert!((REST / SPEED..REST / SPEED + LATE).contains(&begin.elapsed()), "{:?}", begin.elapsed());
}

/// A client that does not read has less time than a connection at rest.
#[test]
fn a_client_that_takes_no_response_is_closed_although_it_was_answered_before() {
    let service = Service::start([]);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = connect(&service);
            live(&mut stream);
            // A write fails once the connection is closed, or after so long without any progress. Reading would show the
            // end too, but this client must not read.
            stream.set_write_timeout(Some(LIMIT + LATE)).unwrap();
            let requests = LIVE.repeat(1000);
            let begin = Instant::now();
            let end = loop {
                if let Err(error) = stream.write_all(&requests) {
                    break error.kind();
                }
                assert!(begin.elapsed() < TIMEOUT, "the service takes requests although it can write no more");
            };
            assert_ne!(end, ErrorKind::WouldBlock, "still connected");
        });
        scope.spawn(|| {
            let mut stream = connect_http2(&service, true);
            // From now on, no body may be sent: SETTINGS_INITIAL_WINDOW_SIZE is 0.
            stream.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).unwrap();
            let begin = Instant::now();
            stream.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 3, REQUEST)).unwrap();
            read_goodbyes(&mut stream);
            assert_at_limit(begin, "a response that is not taken");
        });
    });
}

/// It takes longer than a client may take nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_response_is_not_cut_while_its_client_reads() {
    /// So much that the few megabytes which kernels and client buffer are taken last.
    const SIZE: usize = 128 * 1024 * 1024;
    /// The client reads evenly for this long.
    const READING: Duration = LIMIT.saturating_add(Duration::from_secs(5));
    let body = Bytes::from(vec![b'x'; SIZE]);
    let port = serve(&[], |routes, _| routes.route("/large", get(async || body))).await;
    let read = async |client: reqwest::ClientBuilder| {
        let url = format!("http://127.0.0.1:{port}/large");
        let mut response = client.build().unwrap().get(url).send().await.unwrap();
        let (begin, mut size) = (Instant::now(), 0);
        while let Some(part) = response.chunk().await.unwrap_or_else(|error| {
            panic!("{:?}: cut after {size} bytes and {:?}: {error}", response.version(), begin.elapsed())
        }) {
            size += part.len();
            let until = READING.mul_f64(size as f64 / SIZE as f64);
            tokio::time::sleep(until.saturating_sub(begin.elapsed())).await;
        }
        assert_eq!(size, SIZE, "{:?}", response.version());
    };
    let client = reqwest::Client::builder;
    tokio::join!(read(client().http1_only()), read(client().http2_prior_knowledge()));
}

/// A connection that has served a request, or none yet, over HTTP/2.
fn connect_http2(service: &Service, is_answered: bool) -> TcpStream {
    let mut stream = connect(service);
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).unwrap();
    if is_answered {
        stream.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, REQUEST)).unwrap();
        loop {
            let frame = read_frame(&mut stream).expect("a response");
            if frame.kind == DATA && frame.flags & END_STREAM != 0 {
                break;
            }
        }
    }
    stream
}

/// Reads until the service ends the connection, and answers its PINGs. Returns the last stream of each GOAWAY.
fn read_goodbyes(stream: &mut TcpStream) -> Vec<u32> {
    let mut last_streams = Vec::new();
    while let Some(came) = read_frame(stream) {
        match came.kind {
            GOAWAY => {
                assert_eq!(came.payload[4..8], [0; 4], "NO_ERROR");
                last_streams.push(u32::from_be_bytes(came.payload[..4].try_into().unwrap()));
            }
            PING if came.flags & ACK == 0 => drop(stream.write_all(&frame(PING, ACK, 0, &came.payload))),
            _ => {}
        }
    }
    last_streams
}

#[test]
fn an_http_2_client_is_told_before_its_idle_connection_is_closed() {
    let (service, hurried) = (Service::start([]), in_a_hurry());
    thread::scope(|scope| {
        scope.spawn(|| {
            let begin = Instant::now();
            let mut stream = connect_http2(&service, false);
            // The first GOAWAY says that no more streams are welcome, the second that none was taken.
            assert_eq!(read_goodbyes(&mut stream), [u32::MAX >> 1, 0]);
            assert_at_limit(begin, "an idle HTTP/2 connection");
        });
        scope.spawn(|| {
            let mut stream = connect_http2(&hurried, true);
            let begin = Instant::now();
            // The clock runs too fast for the second GOAWAY to be certain.
            assert_eq!(read_goodbyes(&mut stream).first(), Some(&(u32::MAX >> 1)));
            assert!(begin.elapsed() > BALANCER / SPEED, "{:?}", begin.elapsed());
        });
    });
}

#[test]
fn an_http_2_client_is_told_before_its_connection_gives_way() {
    const OTHERS: usize = 1300;
    if !may_connect(OTHERS as u64) {
        return;
    }
    let service = Service::start([]);
    let mut http2 = connect_http2(&service, true);
    let mut resting = connect(&service);
    live(&mut resting);
    let mut others: Vec<_> = (0..OTHERS).map(|_| connect(&service)).collect();
    // If many come at once, there is no time for the second GOAWAY.
    assert_eq!(read_goodbyes(&mut http2).first(), Some(&(u32::MAX >> 1)));
    wait_for_end(&mut resting, "the connection at rest");
    // The newest is served.
    live(others.last_mut().unwrap());
}
