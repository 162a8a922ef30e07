//! Promise: the in-memory store is bounded. A million visits without a cookie need no more memory than
//! a full store, and the store evicts the sessions that were viewed longest ago.

use std::io::{Read, Write};

use crate::common::{Service, Visitor, connect};

const VISITS: usize = 1_000_000;

/// About as many sessions as the store can hold.
const SESSIONS: usize = 50_000;

/// The limit that the README states for the sessions in memory.
const MEGABYTES: u64 = 40;

/// Sends visits without a cookie, pipelined on one connection. All responses have the same length.
fn visit(service: &Service, visits: usize) {
    const BATCH: usize = 200;
    const REQUEST: &[u8] = b"GET /foo HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut stream = connect(service);
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

/// The most MB that the process has taken so far.
fn peak(service: &Service) -> u64 {
    service.memory("VmHWM") / 1_000_000
}

#[tokio::test]
async fn a_million_visits_stay_within_the_bound() {
    let service = Service::start([]);
    let (mut regular, mut absent) = (Visitor::new(), Visitor::new());
    absent.view(&service, "/").await;
    let empty = peak(&service);
    let mut views = 0;
    // The regular visitor returns before all sessions have been replaced.
    for _ in 0..VISITS / (SESSIONS / 2) {
        views += 1;
        assert_eq!(regular.count(&service, "/").await, views);
        visit(&service, SESSIONS / 2);
    }
    let mut late = Visitor::new();
    late.view(&service, "/").await;
    visit(&service, SESSIONS / 2);
    assert_eq!(late.count(&service, "/").await, 2, "a full store does not keep a new session");
    assert_eq!(absent.count(&service, "/").await, 1, "never evicted");
    let taken = peak(&service) - empty;
    println!("{taken} MB at the peak of {VISITS} visits, beside {empty} MB");
    assert!(taken <= MEGABYTES, "{taken} MB at the peak, beside {empty} MB");
}
