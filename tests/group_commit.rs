//! Promise: views that arrive while a call is in flight share the next one; what waits is bounded,
//! and a visitor who hangs up costs nothing more and disturbs no other.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::common::{Proxy, Redis, Service, Visitor, behind_proxy, eventually};

/// So many views may wait.
const MAX_VIEWS: u64 = 2048;

/// The number of the last call, however often it was sent.
fn calls(redis: &Redis) -> u64 {
    let kept = redis.cli(&["GET", &redis.cli(&["KEYS", "calls:*"])]);
    kept.lines().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn sixty_four_in_flight_share_their_calls() {
    const VIEWS: u64 = 64 * 30;
    let (redis, proxy, service, visitor) = behind_proxy().await;
    // As far as a Redis in the same region; without it, what the tests take of the machine decides.
    proxy.delay(Duration::from_millis(5));
    let before = calls(&redis);
    join_all((0..64).map(async |_| {
        for _ in 0..VIEWS / 64 {
            visitor.clone().count(&service, "/").await;
        }
    }))
    .await;
    let calls = calls(&redis) - before;
    let each = calls as f64 / VIEWS as f64;
    assert!(each <= 0.05, "{calls} calls for {VIEWS} views, {each} each");
}

#[tokio::test]
async fn a_thousand_waiting_views_take_three_round_trips() {
    const VIEWS: u64 = 1000;
    let (redis, proxy, service, visitor) = behind_proxy().await;
    proxy.delay(Duration::from_millis(20));
    let before = calls(&redis);
    // The first call is kept in flight until all others wait, which its own deadline allows.
    proxy.close();
    let waiting = connect_and_ask(&service, &visitor, VIEWS).await;
    proxy.open();
    let mut counts = join_all(waiting.into_iter().map(count)).await;
    let calls = calls(&redis) - before;
    counts.sort_unstable();
    assert_eq!(counts, (3..VIEWS + 3).collect::<Vec<_>>());
    assert!(calls <= 3, "{calls} calls, one after the other");
}

#[tokio::test]
async fn views_that_share_a_call_execute_one_command_each() {
    const VIEWS: u64 = 32;
    let (redis, proxy, service, visitor) = behind_proxy().await;
    let fill = async || {
        let in_flight = connect_and_ask(&service, &visitor, 1).await;
        (in_flight, connect_and_ask(&service, &visitor, VIEWS).await)
    };
    let (in_flight, waiting) = filled(&proxy, fill).await;
    // The first one's call was executed before the answer was kept back.
    assert!(redis.executed() >= 3);
    proxy.open();
    join_all(in_flight.into_iter().chain(waiting).map(count)).await;
    assert_eq!(redis.executed(), VIEWS + 2);
}

/// Has `fill` have so many views wait for the closed proxy, before their call is given up: again, if
/// the machine was too busy to be as quick.
async fn filled<T>(proxy: &Proxy, fill: impl AsyncFn() -> T) -> T {
    for _ in 0..20 {
        proxy.close();
        let begin = Instant::now();
        let filled = fill().await;
        if begin.elapsed() < Duration::from_millis(500) {
            return filled;
        }
        println!("too slow: {:?}", begin.elapsed());
        proxy.open();
        drop(filled);
    }
    panic!("the machine is too busy for this test");
}

#[tokio::test]
async fn a_full_queue_answers_at_once() {
    let (redis, proxy, service, visitor) = behind_proxy().await;
    let fill = async || connect_and_ask(&service, &visitor, MAX_VIEWS).await;
    let waiting = filled(&proxy, fill).await;
    let begin = Instant::now();
    let refused = visitor.clone().view(&service, "/").await;
    let elapsed = begin.elapsed();
    assert_eq!(refused.status, 503, "{refused:?}");
    proxy.open();
    join_all(waiting.into_iter().map(answer)).await;
    // Had it waited, it would have been answered with the others.
    assert!(
        elapsed < Duration::from_millis(500),
        "refused after {elapsed:?}"
    );
    visitor.clone().count(&service, "/").await;
    drop(redis);
    let log = service.stop();
    let warnings = log
        .iter()
        .filter(|line| line.contains("too many views wait"));
    assert_eq!(warnings.count(), 1, "{log:#?}");
}

#[tokio::test]
async fn who_hangs_up_makes_room() {
    let (_redis, proxy, service, visitor) = behind_proxy().await;
    let fill = async || {
        let in_flight = connect_and_ask(&service, &visitor, 1).await;
        let others = connections(&service);
        drop(connect_and_ask(&service, &visitor, MAX_VIEWS - 1).await);
        all_have_left(&service, others).await;
        in_flight
    };
    let in_flight = filled(&proxy, fill).await;
    let staying = connect_and_ask(&service, &visitor, 1).await;
    proxy.open();
    let waiting = in_flight.into_iter().chain(staying).map(count);
    let counts = join_all(waiting).await;
    assert_eq!(counts[1], counts[0] + 1, "{counts:?}");
}

#[tokio::test]
async fn who_hangs_up_is_not_counted_and_disturbs_nobody() {
    let (_redis, proxy, service, mut visitor) = behind_proxy().await;
    let mut other = Visitor::new();
    other.view(&service, "/").await;
    proxy.close();
    // One in flight, and behind it some who leave and one who stays.
    let in_flight = connect_and_ask(&service, &visitor, 1).await;
    let staying = connect_and_ask(&service, &other, 1).await;
    let others = connections(&service);
    drop(connect_and_ask(&service, &visitor, 50).await);
    all_have_left(&service, others).await;
    proxy.open();
    let waiting = in_flight.into_iter().chain(staying).map(count);
    assert_eq!(join_all(waiting).await, [3, 2]);
    assert_eq!(visitor.count(&service, "/").await, 4);
}

/// So many requests, each on a connection of its own, which the service has read but not answered.
async fn connect_and_ask(service: &Service, visitor: &Visitor, views: u64) -> Vec<TcpStream> {
    let cookie = visitor.cookie.as_deref().unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nhost: localhost\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n"
    );
    let mut waiting = Vec::new();
    for view in 1..=views {
        let mut stream = TcpStream::connect(("127.0.0.1", service.port))
            .await
            .unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        waiting.push(stream);
        // No more than may wait to be accepted, and all in the end.
        if view % 500 == 0 || view == views {
            all_are_read(service).await;
        }
    }
    waiting
}

async fn answer(mut waiting: TcpStream) -> String {
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn count(waiting: TcpStream) -> u64 {
    let answer = answer(waiting).await;
    let (_, count) = answer
        .split_once("you viewed this page ")
        .unwrap_or_else(|| panic!("{answer}"));
    count.split(' ').next().unwrap().parse().unwrap()
}

/// Waits until the service has read all that it was sent: it has one thread, which takes one connection
/// after the other.
async fn all_are_read(service: &Service) {
    let live = Visitor::new().view(service, "/health/live").await;
    assert_eq!(live.status, 200);
}

/// Waits until the service holds no more connections than these.
async fn all_have_left(service: &Service, others: usize) {
    eventually("all have left", async || {
        (connections(service) <= others).then_some(())
    })
    .await;
}

/// How many connections the service holds, or rather files, of which it opens no others.
fn connections(service: &Service) -> usize {
    let files = std::fs::read_dir(format!("/proc/{}/fd", service.id()));
    files.unwrap().count()
}
