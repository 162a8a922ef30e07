//! Promise: on SIGTERM or Ctrl-C, the program stops accepting connections, answers the requests in
//! flight, closes its Redis connections and exits with 0, well within the 10 s that Cloud Run allows.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::common::{Process, Redis, Service, Visitor, connect, eventually, in_slow_motion, program, signal};

/// The time between SIGTERM and SIGKILL on Cloud Run.
const GRACE_PERIOD: Duration = Duration::from_secs(10);

/// Without views in flight, and after the last one, the program ends well within that. With the slow clock, whatever it
/// would wait for takes longer.
const END: Duration = Duration::from_secs(5);

const VIEW: &[u8] = b"GET /foo HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Reads one response whose body ends with `end`.
fn read_answer(stream: &mut TcpStream, end: &str) -> String {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&answer).ends_with(end) {
        let read = stream.read(&mut buffer).unwrap();
        assert_ne!(read, 0, "closed after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn requests_in_flight_are_answered() {
    const VIEWS: usize = 40;
    for signal in ["TERM", "INT"] {
        let redis = Redis::start();
        // However long this test takes on a busy machine, its views do not reach their deadline.
        let mut service = Service::connected_in_slow_motion(&redis.url());
        // All connections must be accepted first: closing the listener closes its accept queue.
        let mut streams: Vec<_> = (0..VIEWS).map(|_| connect(&service)).collect();
        for stream in &mut streams {
            stream.write_all(VIEW).unwrap();
            read_answer(stream, "times");
        }
        redis.cli(&["CLIENT", "PAUSE", "60000", "WRITE"]);
        for stream in &mut streams {
            stream.write_all(VIEW).unwrap();
        }
        service.wait_until_all_is_read().await;

        let begin = Instant::now();
        service.signal(signal);
        eventually("connections are refused", async || TcpStream::connect(("127.0.0.1", service.port)).err()).await;
        redis.cli(&["CLIENT", "UNPAUSE"]);
        for stream in &mut streams {
            let answer = read_answer(stream, "times");
            assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        }
        assert_eq!(service.wait().code(), Some(0), "{:#?}", service.log());
        assert!(begin.elapsed() < GRACE_PERIOD, "{:?}", begin.elapsed());
        eventually("Redis has no more clients", async || {
            // Except for this redis-cli.
            (redis.cli(&["CLIENT", "LIST"]).lines().count() == 1).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn idle_connections_are_not_waited_for() {
    let mut service = Service::launch(in_slow_motion(&mut program([])));
    let mut streams: Vec<_> = (0..20).map(|_| connect(&service)).collect();
    // Half of them have served a request and are kept alive.
    for stream in &mut streams[..10] {
        stream.write_all(VIEW).unwrap();
        read_answer(stream, "times");
    }
    let begin = Instant::now();
    service.signal("TERM");
    assert_eq!(service.wait().code(), Some(0));
    assert!(begin.elapsed() < END, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn incomplete_requests_are_not_waited_for() {
    let beginnings: [&[u8]; 4] = [
        b"G",
        b"GET / HTTP/1.1\r\nhost:",
        // A complete request, then the beginning of another.
        b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\nGET",
        // HTTP/2: preface and settings, then nothing.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    ];
    let redis = Redis::start();
    // However long this test takes on a busy machine, its view does not reach its deadline.
    let mut service = Service::connected_in_slow_motion(&redis.url());
    let mut view = connect(&service);
    view.write_all(VIEW).unwrap();
    read_answer(&mut view, "times");
    let mut incomplete: Vec<_> = beginnings
        .iter()
        .map(|beginning| {
            let mut stream = connect(&service);
            stream.write_all(beginning).unwrap();
            stream
        })
        .collect();
    redis.cli(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    view.write_all(VIEW).unwrap();
    service.wait_until_all_is_read().await;
    service.signal("TERM");
    eventually("connections are refused", async || TcpStream::connect(("127.0.0.1", service.port)).err()).await;
    // Incomplete requests are dropped; the complete one is still answered.
    for stream in &mut incomplete {
        stream.read_to_end(&mut Vec::new()).expect("an incomplete request is still waited for");
    }
    redis.cli(&["CLIENT", "UNPAUSE"]);
    let begin = Instant::now();
    assert!(read_answer(&mut view, "times").starts_with("HTTP/1.1 200 OK"));
    assert_eq!(service.wait().code(), Some(0));
    println!("{} incomplete requests: exit after {:?}", incomplete.len(), begin.elapsed());
    assert!(begin.elapsed() < END, "{:?}", begin.elapsed());
    let log = service.log();
    assert!(!log.iter().any(|line| line.contains("WARN")), "{log:#?}");
}

/// SIGTERM ends it even while it waits for Redis and does not listen yet, whatever signals follow.
#[tokio::test]
async fn a_start_can_be_ended() {
    let redis = Redis::start();
    signal(redis.id(), "STOP");
    let url = redis.url();
    let mut process = Process::spawn(program([("REDIS_URL", url.as_str())]).stdout(Stdio::null()));
    eventually("the program catches SIGTERM", async || {
        let status = fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
        let caught = status.split_once("SigCgt:").unwrap().1.split_whitespace().next().unwrap();
        let caught = u64::from_str_radix(caught, 16).unwrap();
        (caught >> (15 - 1) & 1 == 1).then_some(())
    })
    .await;
    let begin = Instant::now();
    for name in ["TERM", "TERM", "INT"] {
        signal(process.0.id(), name);
    }
    assert_eq!(process.wait().code(), Some(0));
    assert!(begin.elapsed() < GRACE_PERIOD / 2, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn an_unreachable_or_frozen_redis_does_not_delay_the_exit() {
    let redis = Redis::start();
    let mut services = [(); 2].map(|()| Service::connected_in_slow_motion(&redis.url()));
    for service in &services {
        Visitor::new().view(service, "/").await;
    }
    signal(redis.id(), "STOP");
    let begin = Instant::now();
    services[0].signal("TERM");
    assert_eq!(services[0].wait().code(), Some(0));
    println!("with a frozen or dead Redis: exit after {:?}", begin.elapsed());
    assert!(begin.elapsed() < END, "{:?}", begin.elapsed());

    drop(redis);
    let begin = Instant::now();
    services[1].signal("TERM");
    assert_eq!(services[1].wait().code(), Some(0));
    println!("with a frozen or dead Redis: exit after {:?}", begin.elapsed());
    assert!(begin.elapsed() < END, "{:?}", begin.elapsed());
}
