//! Promise: a client gets its response although it sends what no page reads: a body, a head that is too long, something
//! malformed. What is read of it is bounded in bytes and time. Only a client that shuts down its sending side may get no
//! response.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use axum::{body::Bytes, routing::post};
use reqwest::Method;

use crate::common::{Nginx, Redis, Service, Visitor, connect, serve};

/// At most this much of a body is read, and as much again after the last response.
const BOUND: usize = 16 * 1024 * 1024;

/// For how long each of these is read.
const TIME: Duration = Duration::from_secs(5);

/// What the kernels of both sides take besides, at most: the last of three numbers.
fn buffered() -> usize {
    let most = ["rmem", "wmem"].map(|name| {
        let sizes = fs::read_to_string(format!("/proc/sys/net/ipv4/tcp_{name}")).unwrap();
        sizes.split_whitespace().last().unwrap().parse::<usize>().unwrap()
    });
    most.iter().sum()
}

/// A body, with the header that announces it.
fn with_length(bytes: usize) -> (String, Vec<u8>) {
    (format!("content-length: {bytes}"), vec![b'x'; bytes])
}

fn in_chunks(bytes: usize) -> (String, Vec<u8>) {
    const CHUNK: usize = 10_000;
    let chunk = [format!("{CHUNK:x}\r\n").as_bytes(), &[b'x'; CHUNK], b"\r\n"].concat();
    let body = [chunk.repeat(bytes / CHUNK), b"0\r\n\r\n".to_vec()].concat();
    ("transfer-encoding: chunked".to_owned(), body)
}

/// Reads a response with its body, and returns the status.
fn read_status(stream: &mut TcpStream) -> u16 {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream
            .read_exact(&mut byte)
            .unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&head)));
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length =
        head.split_once("content-length: ").map_or(0, |(_, rest)| rest.lines().next().unwrap().parse().unwrap());
    stream.read_exact(&mut vec![0; length]).unwrap();
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

/// nginx does the same.
#[test]
fn a_body_is_dropped_and_the_connection_goes_on() {
    let (service, nginx) = (Service::start([]), Nginx::start());
    let bodies = [with_length(10), with_length(1_000_000), with_length(BOUND), in_chunks(1_000_000)];
    thread::scope(|scope| {
        for ((header, body), port) in bodies.iter().flat_map(|body| [(body, service.port), (body, nginx.port)]) {
            scope.spawn(move || {
                let mut stream = connect(&port);
                for (target, status) in [("POST /foo", 405), ("GET /foo", 200), ("PUT /nowhere", 404), ("GET /", 200)] {
                    write!(stream, "{target} HTTP/1.1\r\nhost: x\r\n{header}\r\n\r\n").unwrap();
                    stream.write_all(body).unwrap();
                    let answer = read_status(&mut stream);
                    assert_eq!(answer, status, "{target} {header}");
                }
            });
        }
    });
}

#[test]
fn the_last_response_is_read_whatever_follows_the_request() {
    let service = Service::start([]);
    // More than the kernel takes: the client sends it as long as the service reads.
    let body = "x".repeat(12_000_000);
    for (request, expected) in [
        // The service does not ask for it, so the client should not send it.
        (format!("POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 12000000\r\n\r\n{body}"), 405),
        (format!("GET / HTTP/1.1\r\nhost: x\r\nx: {body}\r\n\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nhost: x y\r\ncontent-length: 12000000\r\n\r\n{body}"), 400),
        (format!("GET / HTTP/1.1\r\n{body}"), 431),
        (format!("not HTTP\r\n\r\n{body}"), 400),
        (format!("POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 12000000\r\n\r\n{body}"), 405),
        (format!("POST / HTTP/1.0\r\ncontent-length: 12000000\r\n\r\n{body}"), 405),
        (format!("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nwrong\r\n{body}"), 405),
    ] {
        let what = &request[..60];
        let mut stream = connect(&service);
        stream.write_all(request.as_bytes()).unwrap_or_else(|error| panic!("{what:?}: {error}"));
        assert_eq!(read_status(&mut stream), expected, "{what:?}");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{what:?}: the connection goes on");
    }
}

/// The page reads the body, until it is malformed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_is_read_although_the_body_that_the_page_reads_is_malformed() {
    let read = async |body: Bytes| body.len().to_string();
    let port = serve(&[], |routes, _| routes.route("/read", post(read))).await;
    let read = move || {
        let mut stream = connect(&port);
        let head = "POST /read HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
        // Whatever of it comes last looks like the end of a request.
        let body = "\n".repeat(12_000_000);
        write!(stream, "{head}wrong\r\n{body}").unwrap();
        assert_eq!(read_status(&mut stream), 400);
    };
    tokio::task::spawn_blocking(read).await.unwrap();
}

/// Two programs could see the end of such a request in different places: what follows may be a body for one, and a
/// request for the other (request smuggling). nginx ends the connection as well.
#[test]
fn what_follows_an_ambiguous_request_is_none() {
    const CHUNKED: &str = "transfer-encoding: chunked";
    let redis = Redis::start();
    let (service, nginx) = (Service::on(&redis), Nginx::start());
    let heads = [
        "content-length: 4\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 4",
        "content-length: 4, 4",
        "content-length: 4\r\ncontent-length: 5",
        "content-length: +4",
        "content-length: 0x4",
        "content-length: 18446744073709551620",
        "transfer-encoding: chunked, gzip",
        "transfer-encoding: identity",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding : chunked",
        "transfer-encoding:\r\n chunked",
    ];
    let bodies = ["0x2\r\nxx\r\n0\r\n\r\n", "2\r\nxxXX0\r\n\r\n", "-1\r\nxx\r\n", "10000000000000002\r\nxx\r\n"];
    let requests = heads.map(|head| (head, "0\r\n\r\n")).into_iter().chain(bodies.map(|body| (CHUNKED, body)));
    for (head, body) in requests {
        for port in [service.port, nginx.port] {
            let mut stream = connect(&port);
            // In one piece, before the connection ends.
            let request = format!("POST /foo HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n{body}{VIEW}\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap_or_else(|error| panic!("{head:?} {body:?}: {error}"));
            let statuses: Vec<_> = answer.matches("HTTP/1.1 ").collect();
            assert_eq!(statuses.len(), 1, "{head:?} {body:?}: {answer:?}");
            assert!(!answer.contains("HTTP/1.1 200"), "{head:?} {body:?}: {answer:?}");
        }
    }
    assert_eq!(redis.keys(), [""; 0]);
}

#[test]
fn a_client_that_waits_to_be_asked_is_not_asked() {
    let service = Service::start([]);
    let mut stream = connect(&service);
    write!(stream, "POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1000000\r\n\r\n").unwrap();
    assert_eq!(read_status(&mut stream), 405);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn what_is_read_is_bounded_in_bytes() {
    let service = Service::start([]);
    let buffered = buffered();
    // First a body and what follows the response, then only the latter.
    for (head, bound) in [
        ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n", 2 * BOUND),
        ("GET / HTTP/1.1\r\nx: ", BOUND),
    ] {
        let mut stream = connect(&service);
        write!(stream, "{head}").unwrap();
        let mut answers = stream.try_clone().unwrap();
        let status = thread::spawn(move || read_status(&mut answers));
        let part = [b'x'; 65_536];
        let mut sent = 0;
        while stream.write_all(&part).is_ok() {
            sent += part.len();
            assert!(sent < bound + buffered, "{head:?}: {sent} bytes are taken");
        }
        println!("{head:?}: closed after {sent} bytes");
        assert!(sent >= bound, "{head:?}: only {sent} bytes are taken");
        assert!([405, 431].contains(&status.join().unwrap()));
    }
}

#[test]
fn what_is_read_is_bounded_in_time() {
    let service = Service::start([]);
    let mut stream = connect(&service);
    let begin = Instant::now();
    write!(stream, "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n").unwrap();
    assert_eq!(read_status(&mut stream), 405);
    while stream.write_all(b"x").is_ok() {
        // The body, what follows the response, and what a busy machine adds.
        assert!(begin.elapsed() < 2 * TIME + TIME, "a slow body is still read");
        thread::sleep(Duration::from_millis(50));
    }
    println!("a slow body: closed after {:?}", begin.elapsed());
    assert!(begin.elapsed() >= 2 * TIME, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn over_http_2_a_body_that_nobody_reads_is_refused() {
    let service = Service::start([]);
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    for _ in 0..5 {
        let request = client.request(Method::POST, format!("http://127.0.0.1:{}/foo", service.port));
        let response = request.body(vec![b'x'; 1_000_000]).send().await.unwrap();
        assert_eq!(response.status(), 405);
        assert_eq!(response.text().await.unwrap(), "this page does not accept this method");
    }
}

const VIEW: &str = "GET / HTTP/1.1\r\nhost: x\r\n";

/// Sends a view and shuts the sending side down. Returns what comes until the service ends the connection.
fn view_and_shut_down(service: &Service, cookie: &str) -> String {
    let mut stream = connect(service);
    write!(stream, "{VIEW}cookie: {cookie}\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// It cannot be told from a client that has gone: it may get no answer, and its view may be counted, once. nginx as a
/// proxy and axum do the same.
#[tokio::test]
async fn a_client_that_shuts_down_its_sending_side_has_gone() {
    const GONE: u64 = 20;
    let redis = Redis::start();
    for service in [Service::on(&redis), Service::start([])] {
        let mut visitor = Visitor::new();
        assert_eq!(visitor.count(&service, "/").await, 1);
        let cookie = visitor.cookie.clone().unwrap();
        let mut counted = 0;
        for _ in 0..GONE {
            let answer = view_and_shut_down(&service, &cookie);
            assert!(answer.is_empty() || answer.contains("you viewed this page "), "{answer:?}");
            counted += u64::from(!answer.is_empty());
        }
        let count = visitor.count(&service, "/").await;
        assert!((2 + counted..=2 + GONE).contains(&count), "{count} after {counted} of {GONE} answers");
        assert_eq!(visitor.count(&service, "/").await, count + 1);
    }
}
