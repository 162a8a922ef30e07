//! Promise: clients that mean harm are closed in time, hold little memory, and keep nobody out.
//!
//! Memory is that of whichever program runs: `PROGRAM=target/release/cloud-run-sessions tests/run attacks` measures the
//! release build.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::common::{
    Service, Visitor, connect, eventually,
    http2::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, HEADERS, PING, PREFACE, REQUEST, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, frame, read_frame,
    },
    may_connect, program,
};

/// A client that does nothing useful is closed after that.
const LIMIT: Duration = Duration::from_secs(20);

/// What a busy machine may add to it.
const LATE: Duration = Duration::from_secs(10);

/// What the whole process may take, whatever clients do. An instance has at least 128 MiB.
const MEGABYTES: u64 = 100;

/// The bound of the service.
const MAX_CONNECTIONS: usize = 1250;

/// A request of a browser: its answer is larger than that to curl.
const VIEW: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\naccept: text/html\r\n\r\n";

/// MB that the process takes now.
fn memory(service: &Service) -> u64 {
    service.memory("VmRSS") / 1_000_000
}

/// A new visitor is served.
async fn assert_served(service: &Service, when: &str) {
    let begin = Instant::now();
    let answer = Visitor::new().view(service, "/").await;
    assert_eq!(answer.status, 200, "{when}: {answer:?}");
    assert!(begin.elapsed() < Duration::from_secs(3), "{when}: served after {:?}", begin.elapsed());
}

async fn assert_all_closed(service: &Service, before: usize) {
    // The service first answers what it can, which takes its time.
    let begin = Instant::now();
    while service.sockets() > before {
        assert!(begin.elapsed() < LIMIT + 7 * LATE, "{} connections are left", service.sockets());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("all connections closed after {:?}", begin.elapsed());
}

/// Writes until the service takes no more.
fn fill(stream: &mut TcpStream, bytes: &[u8]) {
    stream.set_nonblocking(true).unwrap();
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_millis(20) {
        match stream.write(bytes) {
            Ok(_) => since = Instant::now(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
            Err(_) => return,
        }
    }
}

#[tokio::test]
async fn clients_that_never_read_hold_little_and_are_closed() {
    if !may_connect(1000) {
        return;
    }
    let service = Service::start([]);
    let before = service.sockets();
    let requests = VIEW.repeat(100);
    let mut streams: Vec<_> = (0..1000).map(|_| connect(&service)).collect();
    for stream in &streams {
        // The less the kernel takes for the client, the sooner the service has to wait for it.
        SockRef::from(stream).set_recv_buffer_size(4096).unwrap();
        // The less it keeps to send, the sooner a busy service has answered all.
        SockRef::from(stream).set_send_buffer_size(4096).unwrap();
    }
    for part in streams.chunks_mut(250) {
        thread::scope(|scope| {
            for streams in part.chunks_mut(50) {
                scope.spawn(|| streams.iter_mut().for_each(|stream| fill(stream, &requests)));
            }
        });
        assert_served(&service, "beside clients that never read").await;
    }
    let taken = memory(&service);
    println!("{taken} MB with 1,000 clients that never read");
    assert!(taken < MEGABYTES, "{taken} MB");
    assert_all_closed(&service, before).await;
}

/// An HTTP/2 connection with these settings.
fn connect_http2(service: &Service, settings: &[u8]) -> TcpStream {
    let mut stream = connect(service);
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).unwrap();
    stream
}

#[tokio::test]
async fn http2_clients_that_take_nothing_hold_little_and_are_closed() {
    if !may_connect(1000) {
        return;
    }
    let service = Service::start([]);
    let before = service.sockets();
    let requests: Vec<u8> =
        (0..100).flat_map(|n| frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, REQUEST)).collect();
    let mut streams = Vec::new();
    for client in 1..=1000 {
        // Of a response, nothing may be sent or a byte: SETTINGS_INITIAL_WINDOW_SIZE is 0 or 1.
        let mut stream = connect_http2(&service, &[0, 4, 0, 0, 0, u8::from(client % 2 == 0)]);
        stream.write_all(&requests).unwrap();
        streams.push(stream);
        if client % 100 == 0 {
            assert_served(&service, "beside HTTP/2 clients that take nothing").await;
            let taken = memory(&service);
            println!("{taken} MB with {client} HTTP/2 clients that ask 100 times and take nothing");
            assert!(taken < MEGABYTES, "{taken} MB");
        }
    }
    assert_all_closed(&service, before).await;
}

/// Reads until a frame of this kind has come.
fn read_until(stream: &mut TcpStream, kind: u8) -> Frame {
    loop {
        let frame = read_frame(stream).expect("a frame");
        if frame.kind == kind {
            return frame;
        }
    }
}

/// Beyond the bound, a connection can have one response that is not taken.
#[test]
fn a_client_that_takes_too_little_is_told() {
    const STREAMS: u32 = 16;
    let service = Service::start([]);
    let settings = |window| [0, 4, 0, 0, 0, window];
    let ask = |number: u32| frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, REQUEST);
    let _others: Vec<_> = (0..80)
        .map(|other| {
            // Half of them take one byte.
            let mut stream = connect_http2(&service, &settings(other % 2));
            for number in 0..STREAMS {
                stream.write_all(&ask(number)).unwrap();
                read_until(&mut stream, HEADERS);
            }
            stream
        })
        .collect();
    let mut stream = connect_http2(&service, &settings(0));
    for number in [0, 1] {
        stream.write_all(&ask(number)).unwrap();
        read_until(&mut stream, HEADERS);
    }
    // It takes the second response.
    stream.write_all(&frame(WINDOW_UPDATE, 0, 3, &1000_u32.to_be_bytes())).unwrap();
    let body = read_until(&mut stream, DATA).payload;
    assert_eq!(String::from_utf8(body).unwrap(), "too many responses are still unread, please try again");
}

#[tokio::test]
async fn a_visitor_gets_in_while_5000_idle_connections_come() {
    if !may_connect(1500) {
        return;
    }
    let service = Service::start([]);
    let mut regular = Visitor::new();
    assert_eq!(regular.count(&service, "/").await, 1);
    let mut idle = VecDeque::new();
    for number in 1..=5000 {
        let mut stream = connect(&service);
        // Half of them were answered once.
        if number % 2 == 0 {
            stream.write_all(VIEW).unwrap();
            assert_ne!(stream.read(&mut [0; 8192]).unwrap(), 0, "connection {number} is not served");
        }
        idle.push_back(stream);
        if number % 500 == 0 {
            assert_served(&service, "beside idle connections").await;
            assert_eq!(regular.count(&service, "/").await, 1 + number / 500);
        }
        if idle.len() > 1500 {
            let mut oldest: TcpStream = idle.pop_front().unwrap();
            let end = oldest.read_to_end(&mut Vec::new());
            assert!(end.is_ok_and(|bytes| bytes == 0), "beyond the bound, an older connection is still open");
        }
    }
    let (taken, left) = (memory(&service), service.sockets());
    println!("{taken} MB and {left} connections after 5,000");
    assert!(taken < MEGABYTES, "{taken} MB");
    // And the listener, and what the runtime has open.
    assert!(left < MAX_CONNECTIONS + 20, "{left} connections");
}

#[tokio::test]
async fn a_visitor_gets_in_when_files_run_out() {
    let limited = program([]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 100; exec \"$0\""]).arg(limited.get_program()).env_clear().env("PORT", "0");
    let service = Service::launch(&mut shell);
    let _idle: Vec<_> = (0..150).map(|_| connect(&service)).collect();
    assert_served(&service, "with too many files open").await;
}

/// Sends by `next` until the service closes the connection. Panics if it does not in time.
fn flood(mut stream: TcpStream, what: &str, mut next: impl FnMut() -> Vec<u8>) {
    let mut answers = stream.try_clone().unwrap();
    // The client reads, so that it is not closed for not reading.
    let reader = thread::spawn(move || while answers.read(&mut [0; 65_536]).is_ok_and(|bytes| bytes > 0) {});
    // What the service neither reads nor refuses for so long is no reason to call the connection closed.
    stream.set_write_timeout(Some(LIMIT + LATE)).unwrap();
    let begin = Instant::now();
    let mut sent = 0;
    let end = loop {
        if let Err(error) = stream.write_all(&next()) {
            break error.kind();
        }
        sent += 1;
        assert!(begin.elapsed() < LIMIT + LATE, "{what}: still open after {sent} writes");
    };
    assert_ne!(end, ErrorKind::WouldBlock, "{what}: still open, and nothing is read, after {sent} writes");
    println!("{what}: closed after {:?} and {sent} writes", begin.elapsed());
    reader.join().unwrap();
}

#[tokio::test]
async fn http2_clients_that_ask_nothing_are_closed() {
    let service = Service::start([]);
    let before = memory(&service);
    let streams = || {
        let mut number = 0;
        move || {
            number += 1;
            2 * number - 1
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            flood(connect_http2(&service, &[]), "answered pings", || {
                thread::sleep(Duration::from_millis(100));
                frame(PING, 0, 0, &[0; 8])
            });
        });
        scope.spawn(|| flood(connect_http2(&service, &[]), "pings", || frame(PING, 0, 0, &[0; 8]).repeat(100)));
        scope.spawn(|| flood(connect_http2(&service, &[]), "settings", || frame(SETTINGS, 0, 0, &[]).repeat(100)));
        scope.spawn(|| {
            let mut stream = streams();
            flood(connect_http2(&service, &[]), "resets", || {
                let stream = stream();
                let request = frame(HEADERS, END_STREAM | END_HEADERS, stream, REQUEST);
                [request, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
            });
        });
        scope.spawn(|| {
            let mut stream = connect_http2(&service, &[]);
            stream.write_all(&frame(HEADERS, END_HEADERS, 1, REQUEST)).unwrap();
            flood(stream, "empty frames", || frame(DATA, 0, 1, &[]).repeat(100));
        });
        scope.spawn(|| {
            let mut stream = connect_http2(&service, &[]);
            stream.write_all(&frame(HEADERS, END_STREAM, 1, REQUEST)).unwrap();
            flood(stream, "endless headers", || frame(CONTINUATION, 0, 1, b"\x40\x01a\x01b".repeat(1000).as_slice()));
        });
        scope.spawn(|| {
            let mut stream = connect(&service);
            stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
            flood(stream, "endless headers over HTTP/1", || b"a: b\r\n".repeat(100));
        });
    });
    let after = memory(&service);
    println!("{before} MB before the floods, {after} MB after");
    assert!(after < before + 20, "{before} MB before the floods, {after} MB after");
    assert_served(&service, "after the floods").await;
}

/// Debian's slowhttptest, in all its modes: slow heads, slow bodies, ranges, slow reading.
#[tokio::test]
async fn slowhttptest_keeps_nobody_out() {
    let service = Service::start([]);
    let url = format!("http://127.0.0.1:{}/", service.port);
    for mode in [&["-H"][..], &["-B"], &["-R"], &["-X", "-k", "3", "-w", "1", "-y", "2", "-n", "5", "-z", "1"]] {
        let mut attack = Command::new("slowhttptest");
        attack.args(mode).args(["-c", "1000", "-r", "1000", "-i", "1", "-l", "6", "-p", "3", "-u", &url]);
        let attack = thread::spawn(move || attack.output().expect("slowhttptest is installed"));
        eventually("the attack has begun", async || (service.sockets() > 300 || attack.is_finished()).then_some(()))
            .await;
        while !attack.is_finished() {
            assert_served(&service, &format!("during slowhttptest {mode:?}")).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let output = attack.join().unwrap();
        assert!(output.status.success(), "{mode:?}: {output:?}");
        let taken = memory(&service);
        println!("{taken} MB after slowhttptest {mode:?}");
        assert!(taken < MEGABYTES, "{taken} MB");
    }
}
