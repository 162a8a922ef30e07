//! Promise: if nobody reads the log, visitors are answered and the process ends as always. Lines are dropped then;
//! their number is logged once lines can be written again, and no other line is missing.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::common::{Process, Redis, Visitor, eventually, free_port, program, run};

/// Bytes that a pipe takes before a write to it blocks.
const PIPE: usize = 65_536;

/// At most this many bytes of lines wait, and as many are being written.
const WAITING: usize = 256 * 1024;

/// How long a process waits for its last lines to be read, and again for its error message.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What a busy machine may add to it.
const LATE: Duration = Duration::from_secs(2);

/// The program with these settings, one of whose outputs, 1 or 2, is a pipe that is full already.
fn with_full_pipe<'a>(output: u8, settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Command {
    let program = program(settings);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("head -c {PIPE} /dev/zero >&{output}; exec \"$0\"")])
        .arg(program.get_program())
        .env_clear()
        .envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    shell
}

/// A service of which nobody reads standard output, and a Redis that refuses each view of a new visitor: the log has a
/// line of some 10 kB for each.
async fn start(redis: &Redis) -> (Process, u16) {
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let port = free_port();
    let settings = [
        ("PORT", port.to_string()),
        ("REDIS_URL", redis.url()),
        ("K_SERVICE", "sessions".to_owned()),
        ("GOOGLE_CLOUD_PROJECT", "p".repeat(10_000)),
        ("RUST_LOG", "debug".to_owned()),
    ];
    let process = Process::spawn(&mut with_full_pipe(1, settings.iter().map(|(name, value)| (*name, value.as_str()))));
    eventually("the service listens", async || reqwest::get(format!("http://127.0.0.1:{port}/health/live")).await.ok())
        .await;
    (process, port)
}

fn visitor() -> Visitor {
    let mut visitor = Visitor::new();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    visitor.headers.insert("traceparent", trace.parse().unwrap());
    visitor
}

#[tokio::test]
async fn visitors_are_answered_and_dropped_lines_are_counted() {
    // 2 MB of lines: more than the pipe takes, and all that waits.
    const VIEWS: usize = 200;
    let redis = Redis::start();
    let (mut process, port) = start(&redis).await;
    let mut visitor = visitor();
    for _ in 0..VIEWS {
        assert_eq!(visitor.view(&port, "/").await.status, 503);
    }
    assert_eq!(visitor.view(&port, "/health/live").await.status, 200);

    let mut lines = BufReader::new(process.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let (mut views, mut bytes, mut longest) = (0, 0, 0);
    let count = |line: &String| {
        let is_view = line.contains("could not be used");
        views += usize::from(is_view);
        bytes += line.len() + 1;
        longest = longest.max(if is_view { line.len() + 1 } else { 0 });
    };
    let dropped = lines.by_ref().inspect(count).find_map(|line| {
        let number = line.split_once(" log lines were dropped")?.0.rsplit_once('"')?.1;
        Some(number.parse::<usize>().unwrap())
    });
    println!("{views} lines of {VIEWS} views, {bytes} bytes, then {dropped:?} dropped");
    assert_eq!(dropped, Some(VIEWS - views));
    let kept = bytes - PIPE;
    assert!((WAITING - longest..2 * WAITING).contains(&kept), "{kept} bytes of lines were kept");

    // From now on, each line is written, also the last one.
    assert_eq!(visitor.view(&port, "/").await.status, 503);
    crate::common::signal(process.0.id(), "TERM");
    assert_eq!(process.wait().code(), Some(0));
    let rest: Vec<_> = lines.collect();
    let count = |part: &str| rest.iter().filter(|line| line.contains(part)).count();
    assert_eq!((count("could not be used"), count("stopped"), count("dropped")), (1, 1, 0), "{}", rest.len());
}

#[tokio::test]
async fn the_process_ends() {
    let redis = Redis::start();
    for views in [0, 200] {
        let (mut process, port) = start(&redis).await;
        let mut visitor = visitor();
        for _ in 0..views {
            assert_eq!(visitor.view(&port, "/").await.status, 503);
        }
        let begin = Instant::now();
        crate::common::signal(process.0.id(), "TERM");
        assert_eq!(process.wait().code(), Some(0));
        println!("after {views} lines, the process ended after {:?}", begin.elapsed());
        assert!((LAST_LINES..LAST_LINES + LATE).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    }
}

#[test]
fn a_process_that_cannot_start_ends() {
    let taken = std::net::TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (settings, expected) in [([("PORT", "http")], 2), ([("PORT", port.as_str())], 1)] {
        for output in [1, 2] {
            let (code, ..) = run(&mut with_full_pipe(output, settings), 2 * LAST_LINES + LATE);
            assert_eq!(code, Some(expected), "{settings:?}");
        }
    }
}
