//! Promise: a request that does not name its host as HTTP demands gets 400, neither a session nor a count, and reaches
//! no Redis.

use std::io::{Read, Write};

use crate::common::{
    Nginx, Port, Redis, Service, connect,
    http2::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame, read_frame},
};

/// Sends this head over HTTP/1, and reads until the service ends the connection.
fn answer(service: &impl Port, head: &str) -> String {
    let mut stream = connect(service);
    write!(stream, "{head}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap_or_else(|error| panic!("{head:?}: {error}"));
    answer
}

#[test]
fn over_http_1() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let keys = redis.keys().len();
    redis.executed();
    for head in [
        "GET / HTTP/1.1",
        "GET / HTTP/1.1\r\naccept: text/html",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: a",
        "GET / HTTP/1.1\r\nhost: a\r\nHost: b",
        "GET / HTTP/1.1\r\nhost: a\r\ncookie: id=b\r\nHOST:",
        "GET / HTTP/1.1\r\nhost:",
        "GET / HTTP/1.1\r\nhost: a b",
        "GET / HTTP/1.1\r\nhost: u@a",
        "GET / HTTP/1.1\r\nhost: a/b",
        "GET / HTTP/1.1\r\nhost: http://a",
        "GET / HTTP/1.1\r\nhost: a:b",
        "GET / HTTP/1.1\r\nhost: a:1:2",
        "GET / HTTP/1.1\r\nhost: :80",
        "GET / HTTP/1.1\r\nhost: ::1",
        "GET / HTTP/1.1\r\nhost: [::1",
        "GET / HTTP/1.1\r\nhost: [x]",
        "GET / HTTP/1.1\r\nhost: a%2",
        "GET / HTTP/1.1\r\nhost: \"a\"",
        "GET / HTTP/1.1\r\nhost: ä",
        "GET http://a/ HTTP/1.1",
        "GET http://a/ HTTP/1.1\r\nhost: a b",
        "GET http://u@a/ HTTP/1.1\r\nhost: a",
        "GET /health/ready HTTP/1.1",
        "HEAD / HTTP/1.1",
        "POST /nowhere HTTP/1.1\r\ncontent-length: 0",
        "OPTIONS * HTTP/1.1",
        "GET / HTTP/1.0\r\nhost: a\r\nhost: a",
        "GET / HTTP/1.0\r\nhost: a b",
    ] {
        let answer = answer(&service, head);
        let version = head.lines().next().unwrap().rsplit(' ').next().unwrap();
        assert!(answer.starts_with(&format!("{version} 400 ")), "{head:?}: {answer:?}");
        assert!(!answer.contains("set-cookie"), "{head:?}: {answer:?}");
        let is_head = head.starts_with("HEAD");
        assert_eq!(answer.ends_with("the request needs exactly one valid Host"), !is_head, "{answer:?}");
    }
    // nginx refuses these as well; it takes some hosts that are none, like a:b.
    let nginx = Nginx::start();
    for host in ["", "host: a\r\nhost: a\r\n", "host: a b\r\n", "host: a/b\r\n", "host:\r\n"] {
        let answer = answer(&nginx, &format!("GET / HTTP/1.1\r\n{host}connection: close"));
        assert!(answer.starts_with("HTTP/1.1 400 "), "{host:?}: {answer:?}");
    }
    assert_eq!(redis.executed(), 0, "commands");
    assert_eq!(redis.keys().len(), keys);

    for head in [
        "GET / HTTP/1.1\r\nhost: a",
        "GET / HTTP/1.1\r\nHost:   a.example:8080  ",
        "GET / HTTP/1.1\r\nhost: [::1]:80",
        "GET / HTTP/1.1\r\nhost: 127.0.0.1:80",
        "GET / HTTP/1.1\r\nhost: a_b.c-d",
        "GET / HTTP/1.1\r\nhost: a:",
        // The URI's host counts.
        "GET http://a/ HTTP/1.1\r\nhost: b",
        "GET / HTTP/1.0",
        "GET / HTTP/1.0\r\nhost: a",
    ] {
        let answer = answer(&service, &format!("{head}\r\nconnection: close"));
        assert!(
            answer[8..].starts_with(" 200 ") && answer.ends_with("you viewed this page 1 times"),
            "{head:?}: {answer:?}"
        );
    }
}

/// A header field by HPACK, not indexed.
fn field(name: &str, value: &str) -> Vec<u8> {
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

/// The status of a response over HTTP/2, or none if the stream was refused.
fn status_over_http2(service: &Service, fields: &[(&str, &str)]) -> Option<u16> {
    let mut stream = connect(service);
    let request = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
    let request: Vec<u8> = request.iter().chain(fields).flat_map(|(name, value)| field(name, value)).collect();
    let frames = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END_STREAM | END_HEADERS, 1, &request)];
    stream.write_all(&frames.concat()).unwrap();
    loop {
        let frame = read_frame(&mut stream).expect("a response");
        match (frame.kind, frame.payload.first()) {
            // Statuses of HPACK's static table.
            (HEADERS, Some(0x88)) => return Some(200),
            (HEADERS, Some(0x8c)) => return Some(400),
            (HEADERS | DATA, _) => panic!("{frame:?}"),
            (RST_STREAM | GOAWAY, _) => return None,
            _ => {}
        }
    }
}

#[test]
fn over_http_2() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let before = redis.keys().len();
    redis.executed();
    for fields in [
        &[(":authority", "a"), ("host", "b")][..],
        &[(":authority", "a"), ("host", "a:81")],
        &[(":authority", "a"), ("host", "a"), ("host", "a")],
        &[(":authority", "u@a")],
        &[("host", "a b")],
        &[("host", "")],
        &[("host", "a"), ("host", "b")],
    ] {
        assert_eq!(status_over_http2(&service, fields), Some(400), "{fields:?}");
    }
    // The HTTP/2 library refuses it as malformed.
    assert_eq!(status_over_http2(&service, &[(":authority", "a b")]), None);
    assert_eq!(redis.executed(), 0, "commands");
    assert_eq!(redis.keys().len(), before);

    for fields in [
        &[][..],
        &[(":authority", "a")],
        &[("host", "a")],
        &[(":authority", "a"), ("host", "a")],
        &[(":authority", "a.example:80"), ("host", "A.example")],
    ] {
        assert_eq!(status_over_http2(&service, fields), Some(200), "{fields:?}");
    }
}
