//! Promise: the embedded store is bounded, so a million visits without a cookie do not grow it past
//! what its fullest needs; and the sessions viewed last are the ones it keeps.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use crate::common::{PATIENCE, Service, Visitor};

const VISITS: usize = 1_000_000;

/// The store's bound.
const SESSIONS: usize = 50_000;

/// The README's figure for the whole process, with every session the store can hold.
const MEGABYTES: u64 = 64;

/// Visits without a cookie, on one connection, many in each write. All answers are of one length.
fn visit(service: &Service, visits: usize) {
    const BATCH: usize = 200;
    const REQUEST: &[u8] = b"GET /foo HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut stream = TcpStream::connect(("127.0.0.1", service.port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = vec![0; 4096];
    stream.write_all(REQUEST).unwrap();
    let length = stream.read(&mut answer).unwrap();
    assert!(answer[..length].ends_with(b"you viewed this page 1 times"));
    let requests = REQUEST.repeat(BATCH);
    let mut answers = vec![0; length * BATCH];
    for _ in 0..visits / BATCH {
        stream.write_all(&requests).unwrap();
        stream.read_exact(&mut answers).unwrap();
        assert!(answers.ends_with(b"you viewed this page 1 times"));
    }
}

fn megabytes(service: &Service) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", service.id())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes / 1000
}

#[tokio::test]
async fn a_million_visits() {
    let service = Service::start([]);
    let (mut regular, mut forgotten) = (Visitor::new(), Visitor::new());
    forgotten.view(&service, "/").await;
    let mut views = 0;
    // The regular views again before the store has filled up once.
    for _ in 0..VISITS / (SESSIONS / 2) {
        views += 1;
        assert_eq!(regular.count(&service, "/").await, views);
        visit(&service, SESSIONS / 2);
    }
    let mut late = Visitor::new();
    late.view(&service, "/").await;
    visit(&service, SESSIONS / 2);
    assert_eq!(
        late.count(&service, "/").await,
        2,
        "a full store turns visitors away"
    );
    assert_eq!(forgotten.count(&service, "/").await, 1, "kept for ever");
    let peak = megabytes(&service);
    println!("{peak} MB at the peak of {VISITS} visits");
    assert!(peak < MEGABYTES, "{peak} MB at the peak");
}
