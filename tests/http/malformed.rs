//! Promise: whatever a client sends, it gets a clear response or its connection is closed. The service
//! keeps running, stores only sessions of views, and never adopts a session id from a client.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
};

use crate::common::{Redis, Service, TIMEOUT, session_id};
use proptest::{
    collection::vec,
    prelude::*,
    string::{bytes_regex, string_regex},
    test_runner::{Config, TestRunner},
};

const CASES: u32 = 2000;

fn for_all<S: Strategy>(inputs: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    if let Err(failure) = TestRunner::new(config).run(&inputs, test) {
        panic!("{failure}");
    }
}

/// Sends the bytes on a new connection, closes its write side if `shut_down` is set, and reads until
/// the service closes it.
fn exchange(service: &Service, bytes: &[u8], shut_down: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", service.port)).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    // The service may close the connection before it has read everything.
    let _ = stream.write_all(bytes);
    if shut_down {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer).map_err(|error| error.kind());
    assert_ne!(end, Err(ErrorKind::WouldBlock), "neither answered nor closed: {bytes:?}");
    answer
}

/// Sends one request with this target and these header lines.
fn request(service: &Service, target: &[u8], headers: &[&[u8]]) -> String {
    let mut bytes = [b"GET ", target, b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"].concat();
    for header in headers {
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    String::from_utf8(exchange(service, &bytes, false)).unwrap()
}

fn status(answer: &str) -> u16 {
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    status.unwrap_or_else(|| panic!("no status: {answer:?}")).parse().unwrap()
}

fn set_cookie(answer: &str) -> Option<&str> {
    let (_, cookie) = answer.split_once("set-cookie: ")?;
    cookie.split(';').next()
}

fn stored(redis: &Redis) -> usize {
    redis.keys().len()
}

#[test]
fn cookies() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let cookies = prop_oneof![
        bytes_regex(r"(?s-u:[\t\x20-\x7e\x80-\xff]{0,200})").unwrap(),
        bytes_regex(r"(?s-u:id=[\t\x20-\x7e\x80-\xff]{0,60})").unwrap(),
        bytes_regex(r"id=[A-Za-z0-9_-]{22}(; ?id=[A-Za-z0-9_-]{0,23}){0,9}").unwrap(),
        bytes_regex(r#"(id|__Host-id|Id)="?(%[0-9A-Fa-f]{2}|[A-Za-z0-9+/=_-]){0,30}"?"#).unwrap(),
    ];
    let before = stored(&redis);
    for_all(cookies, |cookie| {
        let header = [b"cookie: ", cookie.as_slice()].concat();
        let answer = request(&service, b"/", &[&header]);
        prop_assert_eq!(status(&answer), 200, "{}", answer);
        prop_assert!(answer.ends_with("you viewed this page 1 times"), "{}", answer);
        let id = session_id(set_cookie(&answer).expect("a fresh session"));
        prop_assert!(!String::from_utf8_lossy(&cookie).contains(&id));
        Ok(())
    });
    assert_eq!(stored(&redis) - before, CASES as usize);
}

#[test]
fn paths() {
    const PAGES: [&str; 3] = ["/", "/foo", "/bar"];
    const HEALTH: [&str; 2] = ["/health/live", "/health/ready"];
    let redis = Redis::start();
    let service = Service::on(&redis);
    let paths = prop_oneof![
        bytes_regex(r"(?s-u:/[\x21-\x7e\x80-\xff]{0,300})").unwrap(),
        bytes_regex(r"(?s-u:[\x21-\x7e\x80-\xff]{1,30})").unwrap(),
        bytes_regex(r"(//?|/\.{1,2}/)?(foo|bar|health|live|%66oo|favicon\.ico)?/{0,2}(\?[a-z&=/]{0,9})?(#[a-z]{0,3})?")
            .unwrap(),
        bytes_regex(r"/[a-z/]{0,9000}").unwrap(),
    ];
    let views = std::cell::Cell::new(0);
    for_all(paths, |path| {
        let answer = request(&service, &path, &[]);
        let path = String::from_utf8_lossy(&path);
        let path = path.split(['?', '#']).next().unwrap();
        let status = status(&answer);
        if status == 200 && PAGES.contains(&path) {
            views.set(views.get() + 1);
        } else {
            prop_assert!([400, 404].contains(&status) || HEALTH.contains(&path), "{} {}", path, answer);
            prop_assert_eq!(set_cookie(&answer), None, "{}", path);
        }
        Ok(())
    });
    assert_ne!(views.get(), 0, "no case was a page");
    assert_eq!(stored(&redis), views.get(), "stored sessions and views differ");
}

#[test]
fn headers() {
    let redis = Redis::start();
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    // On a full Redis, the view of each new visitor fails and is logged with the trace of its headers.
    let service = Service::start([
        ("REDIS_URL", redis.url().as_str()),
        ("K_SERVICE", "sessions"),
        ("GOOGLE_CLOUD_PROJECT", "a-project"),
        ("RUST_LOG", "cloud_run_sessions=debug"),
    ]);
    let known = "accept|cookie|traceparent|x-cloud-trace-context|content-length|transfer-encoding|host\
        |expect|upgrade|connection|te|content-type|sec-purpose|range|x-forwarded-proto";
    let name = prop_oneof![
        string_regex(&format!("({known})")).unwrap(),
        string_regex("[A-Za-z0-9!#$%&'*+.^_`|~-]{1,40}").unwrap(),
    ];
    let value = prop_oneof![
        bytes_regex(r"(?s-u:[\t\x20-\x7e\x80-\xff]{0,200})").unwrap(),
        bytes_regex(r"(text/html|\*/\*|;q=|[0-9.]{0,5}|,| ){0,20}").unwrap(),
        bytes_regex(r"00-[0-9a-fA-F]{32}-[0-9a-f]{16}-0[01]|[0-9a-fg]{31,33}/[0-9]{0,9}(;o=1)?").unwrap(),
        bytes_regex(r"[0-9]{1,30}|chunked|100-continue|h2c|websocket|close|keep-alive").unwrap(),
    ];
    let header = (name, value).prop_map(|(name, value)| [name.as_bytes(), b": ", &value].concat());
    for_all(vec(header, 1..8), |headers| {
        let headers: Vec<_> = headers.iter().map(Vec::as_slice).collect();
        let answer = request(&service, b"/", &headers);
        let status = status(&answer);
        prop_assert!(status == 503 || (400..500).contains(&status), "{}", answer);
        prop_assert_eq!(set_cookie(&answer), None);
        Ok(())
    });
    assert_eq!(stored(&redis), 0);
    let log = service.stop();
    let traced = log.iter().filter(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).expect(line);
        let trace = entry.get("logging.googleapis.com/trace");
        trace.inspect(|trace| {
            let id = trace.as_str().unwrap().strip_prefix("projects/a-project/traces/").unwrap();
            assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{line}");
        });
        trace.is_some()
    });
    assert_ne!(traced.count(), 0, "no case had a trace");
}

#[test]
fn arbitrary_bytes() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let bytes = prop_oneof![
        vec(any::<u8>(), 0..500),
        bytes_regex(r"(?s-u:(GET|HEAD|POST|PRI) (/|\*|http://x/foo) HTTP/[0-2]\.[0-9](\r\n|\n|\x00|:|[a-z]){0,50})")
            .unwrap(),
        // The HTTP/2 preface, followed by arbitrary bytes.
        vec(any::<u8>(), 0..200).prop_map(|rest| [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &rest].concat()),
    ];
    for_all(bytes, |bytes| {
        exchange(&service, &bytes, true);
        Ok(())
    });
    assert_eq!(status(&request(&service, b"/health/live", &[])), 200);
}
