//! Promise: whatever happens to Redis or to this instance, visitors get an answer in time, the log has
//! one line for it, and the service is back by itself.

use std::{
    fs,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::net::TcpListener;

use crate::common::{
    Answer, PATIENCE, Proxy, Redis, Service, Visitor, eventually, free_port, signal,
};

/// By then a view is answered.
const PROMISE: Duration = Duration::from_secs(3);

/// By then pages are there again, from the return of Redis on.
const BACK: Duration = Duration::from_secs(2);

/// Asserts that all is 503 in time, but that the process lives.
async fn assert_away(service: &Service, visitor: &Visitor) {
    for (mut visitor, path) in [
        (visitor.clone(), "/"),
        (Visitor::new(), "/foo"),
        (Visitor::new(), "/health/ready"),
    ] {
        let begin = Instant::now();
        let answer = visitor.view(service, path).await;
        assert_eq!(answer.status, 503, "{path}: {answer:?}");
        assert!(
            begin.elapsed() < PROMISE,
            "{path} took {:?}",
            begin.elapsed()
        );
        println!("{}: 503 after {:?}", test(), begin.elapsed());
    }
    assert_eq!(
        Visitor::new().view(service, "/health/live").await.status,
        200
    );
}

/// Views until there is a page, which must be in time. 503s are answers until then.
async fn back(
    service: &Service,
    visitor: &mut Visitor,
    since: Instant,
    promise: Duration,
) -> Answer {
    let answer = eventually("a page", async || {
        let answer = visitor.view(service, "/").await;
        assert!([200, 503].contains(&answer.status), "{answer:?}");
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert!(
        since.elapsed() < promise,
        "back after {:?}",
        since.elapsed()
    );
    println!("{}: back after {:?}", test(), since.elapsed());
    answer
}

/// The name of the test at hand.
fn test() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}

fn count_lines(log: &[String], part: &str) -> usize {
    log.iter().filter(|line| line.contains(part)).count()
}

/// Asserts that an outage was one line, and its end another.
fn assert_two_lines(log: &[String], outage: &str) {
    assert_eq!(count_lines(log, outage), 1, "{outage}: {log:#?}");
    assert_eq!(count_lines(log, "WARN"), 1, "{log:#?}");
    let connected = if outage == "cannot be reached" { 1 } else { 2 };
    assert_eq!(
        count_lines(log, "Redis is connected"),
        connected,
        "{log:#?}"
    );
}

#[tokio::test]
async fn redis_is_away_at_the_start() {
    let port = free_port();
    let service = Service::start([("REDIS_URL", format!("redis://127.0.0.1:{port}").as_str())]);
    assert_away(&service, &Visitor::new()).await;
    let _redis = Redis::start_on(port);
    let since = Instant::now();
    let mut visitor = Visitor::new();
    assert_eq!(back(&service, &mut visitor, since, BACK).await.count(), 1);
    assert_eq!(visitor.view(&service, "/health/ready").await.status, 200);
    assert_two_lines(&service.stop(), "cannot be reached");
}

#[tokio::test]
async fn redis_is_killed_and_comes_back_empty() {
    let redis = Redis::start();
    let port = redis.port;
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    for view in 1..=2 {
        assert_eq!(visitor.count(&service, "/").await, view);
    }
    drop(redis);
    assert_away(&service, &visitor).await;
    let old = visitor.cookie.clone();
    let _redis = Redis::start_on(port);
    let since = Instant::now();
    // What was kept is gone: a new session, not an error.
    assert_eq!(back(&service, &mut visitor, since, BACK).await.count(), 1);
    assert_ne!(visitor.cookie, old);
    assert_eq!(visitor.count(&service, "/").await, 2);
    assert_two_lines(&service.stop(), "Redis is lost");
}

/// The memory of the process, in bytes.
fn memory(service: &Service) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", service.id())).unwrap();
    let resident = status.split_once("VmRSS:").unwrap().1;
    let kilobytes: u64 = resident.split_whitespace().next().unwrap().parse().unwrap();
    kilobytes * 1024
}

#[tokio::test]
async fn redis_is_frozen_under_800_requests() {
    const REQUESTS: u32 = 800;
    /// By then all is well, from the thaw on.
    const WELL: Duration = Duration::from_secs(1);
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    let ask = async |visitor: &Visitor| {
        let views = (0..REQUESTS).map(async |n| {
            // New visitors among them.
            let mut visitor = if n % 4 == 0 {
                Visitor::of(visitor)
            } else {
                visitor.clone()
            };
            let begin = Instant::now();
            let answer = visitor.view(&service, "/").await;
            (answer.status, begin.elapsed())
        });
        join_all(views).await
    };
    // As many connections as there will be, with all going well.
    ask(&visitor).await;
    let mut bytes = vec![memory(&service)];
    signal(redis.id(), "STOP");
    for round in 1..=3 {
        let answers = ask(&visitor).await;
        let slowest = answers.iter().map(|(_, elapsed)| elapsed).max().unwrap();
        println!("{}: 503 after {slowest:?} at most", test());
        assert!(
            answers.iter().all(|(status, _)| *status == 503),
            "round {round}"
        );
        assert!(
            *slowest < PROMISE,
            "round {round}: an answer took {slowest:?}"
        );
        bytes.push(memory(&service));
    }
    signal(redis.id(), "CONT");
    let since = Instant::now();
    back(&service, &mut visitor, since, WELL).await;
    let answers = ask(&visitor).await;
    assert!(answers.iter().all(|(status, _)| *status == 200));
    assert!(
        since.elapsed() < WELL,
        "all is well after {:?}",
        since.elapsed()
    );
    println!("{}: bytes before, and after each round: {bytes:?}", test());
    assert!(bytes[3].saturating_sub(bytes[0]) < 20_000_000, "{bytes:?}");
    let grown = bytes[3].saturating_sub(bytes[1]);
    assert!(grown < 1_000_000, "it grows with each round: {bytes:?}");
}

#[tokio::test]
async fn this_instance_is_frozen_while_redis_hangs_up() {
    const PROMISE: Duration = Duration::from_millis(500);
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    for view in 1..=5 {
        assert_eq!(visitor.count(&service, "/").await, view);
        signal(service.id(), "STOP");
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        signal(service.id(), "CONT");
        // The first view after the thaw is of a new visitor, then of one who returns.
        let begin = Instant::now();
        if view % 2 == 0 {
            assert_eq!(Visitor::new().count(&service, "/").await, 1);
        }
        assert_eq!(visitor.clone().view(&service, "/bar").await.count(), view);
        assert!(begin.elapsed() < PROMISE, "{:?}", begin.elapsed());
        println!("{}: answered after {:?}", test(), begin.elapsed());
    }
}

#[tokio::test]
async fn a_connection_dies_without_a_word() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let service = Service::start([("REDIS_URL", proxy.url().as_str())]);
    let mut visitor = Visitor::new();
    for view in 1..=4 {
        let begin = Instant::now();
        assert_eq!(visitor.count(&service, "/").await, view);
        // New visitors come all the time, so that there is always something to send.
        assert_eq!(Visitor::new().count(&service, "/").await, 1);
        assert!(begin.elapsed() < PROMISE, "{:?}", begin.elapsed());
        println!("{}: answered after {:?}", test(), begin.elapsed());
        proxy.silence();
    }
}

#[tokio::test]
async fn redis_is_full() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&service, "/").await, 1);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for _ in 0..3 {
        for mut visitor in [visitor.clone(), Visitor::new()] {
            assert_eq!(visitor.view(&service, "/").await.status, 503);
        }
    }
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    // What is refused is not counted.
    assert_eq!(visitor.count(&service, "/").await, 2);
    assert_eq!(Visitor::new().count(&service, "/").await, 1);
    let log = service.stop();
    assert_eq!(count_lines(&log, "OOM"), 1, "{log:#?}");
    assert_eq!(count_lines(&log, "WARN"), 1, "{log:#?}");
}

#[tokio::test]
async fn redis_gets_another_password() {
    let mut redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&service, "/").await, 1);
    redis.cli(&["CONFIG", "SET", "requirepass", "another"]);
    redis.cli_options = ["--no-auth-warning", "-a", "another"]
        .map(str::to_owned)
        .into();
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    // It was right once, so it may be right again: the program lives, and says why it does not serve.
    assert_away(&service, &visitor).await;
    redis.cli(&["CONFIG", "SET", "requirepass", ""]);
    let since = Instant::now();
    assert_eq!(back(&service, &mut visitor, since, BACK).await.count(), 2);
    let log = service.stop();
    assert_eq!(count_lines(&log, "NOAUTH"), 1, "{log:#?}");
    assert_eq!(count_lines(&log, "WARN"), 2, "{log:#?}");
}

#[tokio::test]
async fn redis_becomes_a_replica_and_a_primary_again() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&service, "/").await, 1);
    // Of nobody: it keeps what it has, and takes no writes.
    redis.cli(&["REPLICAOF", "127.0.0.1", &free_port().to_string()]);
    assert_away(&service, &visitor).await;
    redis.cli(&["REPLICAOF", "NO", "ONE"]);
    let since = Instant::now();
    assert_eq!(back(&service, &mut visitor, since, BACK).await.count(), 2);
    let log = service.stop();
    assert_eq!(count_lines(&log, "READONLY"), 1, "{log:#?}");
    assert_two_lines(&log, "Redis is lost");
}

#[tokio::test]
async fn another_redis_takes_over_its_name() {
    let (old, new) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&old).await;
    let service = Service::start([("REDIS_URL", proxy.url().as_str())]);
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&service, "/").await, 1);
    new.cli(&["REPLICAOF", "127.0.0.1", &old.port.to_string()]);
    eventually("the session is replicated", async || {
        (new.keys() == old.keys()).then_some(())
    })
    .await;
    new.cli(&["REPLICAOF", "NO", "ONE"]);
    // The old one lives on, connected, but takes no writes any more.
    old.cli(&["REPLICAOF", "127.0.0.1", &new.port.to_string()]);
    proxy.switch_to(&new);
    assert_eq!(visitor.count(&service, "/").await, 2);
}

#[tokio::test]
async fn redis_is_loading() {
    let redis = Redis::start();
    // While it loads, it answers after each 2 MB: here every half second, for 12 s.
    redis.cli(&["CONFIG", "SET", "rdbcompression", "no"]);
    let fill = "for key = 1, 120 do redis.call('SET', key, string.rep('x', 400000)) end";
    redis.cli(&["EVAL", fill, "0"]);
    redis.cli(&["SAVE"]);
    let redis = redis.restart_with(&["--key-load-delay", "100000"]);
    eventually("it loads", async || {
        redis.cli(&["PING"]).contains("LOADING").then_some(())
    })
    .await;
    let service = Service::on(&redis);
    assert_away(&service, &Visitor::new()).await;
    let mut visitor = Visitor::new();
    eventually("it has loaded", async || {
        redis.cli(&["PING"]).contains("PONG").then_some(())
    })
    .await;
    assert_eq!(
        back(&service, &mut visitor, Instant::now(), BACK)
            .await
            .count(),
        1
    );
    let log = service.stop();
    assert_eq!(count_lines(&log, "LOADING"), 1, "{log:#?}");
    assert_two_lines(&log, "cannot be reached");
}

#[tokio::test]
async fn connecting_is_tried_at_once_and_then_less_often_for_ever() {
    const LONGEST_PAUSE: Duration = Duration::from_secs(1);
    // It accepts, and hangs up at once.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let begin = Instant::now();
    let service = Service::start([("REDIS_URL", url.as_str())]);
    let mut attempts = Vec::new();
    while begin.elapsed() < Duration::from_secs(12) {
        drop(
            tokio::time::timeout(PATIENCE, listener.accept())
                .await
                .expect("another attempt"),
        );
        attempts.push(Instant::now());
    }
    let pauses: Vec<_> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses[0] < Duration::from_millis(100), "{pauses:?}");
    assert!(
        (20..60).contains(&pauses.len()),
        "{} attempts: {pauses:?}",
        pauses.len()
    );
    let last = &pauses[pauses.len() - 8..];
    // The tests' own share of the machine is in it too.
    let longest = LONGEST_PAUSE + Duration::from_millis(200);
    assert!(last.iter().all(|pause| *pause < longest), "{last:?}");
    let spread = *last.iter().max().unwrap() - *last.iter().min().unwrap();
    assert!(spread > Duration::from_millis(60), "no jitter: {last:?}");
    assert_eq!(count_lines(&service.stop(), "WARN"), 1);
}
