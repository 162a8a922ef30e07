//! Promise: views that wait while calls are in flight share the next one. The queue is bounded, and
//! a client that disconnects leaves the queue and affects no other.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::common::{
    Answer, Proxy, Redis, Service, Visitor, behind_proxy, behind_proxy_in_slow_motion, eventually, may_connect, threads,
};

/// The maximum number of waiting views.
const MAX_VIEWS: u64 = 1024;

#[tokio::test]
async fn sixty_four_concurrent_clients_share_calls() {
    const VIEWS: u64 = 64 * 30;
    let (_redis, proxy, service, _) = behind_proxy().await;
    // The latency of a Redis in the same region. Without it, the load of the machine would decide.
    proxy.delay(Duration::from_millis(5));
    let mut visitors = vec![Visitor::new(); 64];
    join_all(visitors.iter_mut().map(|visitor| visitor.count(&service, "/"))).await;
    let before = proxy.calls();
    join_all(visitors.into_iter().map(async |mut visitor| {
        for _ in 0..VIEWS / 64 {
            visitor.count(&service, "/").await;
        }
    }))
    .await;
    let calls = proxy.calls() - before;
    let each = calls as f64 / VIEWS as f64;
    // Each alone would be one. How many share a call depends on the threads and on the load of the machine.
    assert!(each <= 0.15, "{calls} calls for {VIEWS} views, {each} per view");
}

#[tokio::test]
async fn next_door_several_calls_are_in_flight() {
    const VISITORS: usize = 8;
    let (_redis, proxy, service, visitor) = behind_proxy().await;
    // Whether the last call was fast enough, the load of the machine decides. So try again.
    for _ in 0..200 {
        service.wait_until_ready().await;
        let mut visitors = vec![Visitor::new(); VISITORS];
        join_all(visitors.iter_mut().map(|visitor| visitor.view(&service, "/"))).await;
        visitor.clone().view(&service, "/foo").await;
        let before = proxy.calls();
        proxy.close();
        let views = visitors.iter_mut().map(|visitor| visitor.view(&service, "/"));
        let open = async {
            eventually("a call", async || (proxy.calls() > before).then_some(())).await;
            wait_until_all_are_read(&service).await;
            let calls = proxy.calls() - before;
            proxy.open();
            calls
        };
        let (answers, calls) = tokio::join!(join_all(views), open);
        if answers.iter().all(|answer| answer.status == 200) && calls > 1 {
            let counts: Vec<_> = answers.iter().map(Answer::count).collect();
            assert_eq!(counts, [2; VISITORS]);
            return;
        }
    }
    panic!("never two calls in flight");
}

/// Of one session, one write is in flight, and all other views join the next.
#[tokio::test]
async fn a_thousand_waiting_views_take_three_round_trips() {
    const VIEWS: u64 = 1000;
    if !may_connect(VIEWS) {
        return;
    }
    let (_redis, proxy, service, visitor) = behind_proxy_in_slow_motion().await;
    let before = proxy.calls();
    // The first call stays in flight until all other views wait.
    let fill = async || connect_and_send(&service, &visitor, VIEWS).await;
    let mut counts = counts_of_waiting(&proxy, fill).await;
    let calls = proxy.calls() - before;
    counts.sort_unstable();
    assert_eq!(counts, (3..VIEWS + 3).collect::<Vec<_>>());
    assert!(calls <= 3, "{calls} calls");
}

#[tokio::test]
async fn sessions_that_share_a_call_execute_one_command_each() {
    const VISITORS: u64 = 32;
    /// The most commands that a thread's calls take beside one for each session. It may make several calls before the
    /// first reply and one or two after it, and an `EVAL` may bring the script.
    const CALLS: u64 = 6;
    let (redis, proxy, service, visitor) = behind_proxy_in_slow_motion().await;
    let mut visitors = vec![Visitor::new(); VISITORS as usize];
    for visitor in &mut visitors {
        visitor.count(&service, "/").await;
    }
    // Calls are then slow, also by the service's clock, so one is in flight at a time.
    proxy.delay(Duration::from_millis(100));
    visitor.clone().count(&service, "/").await;
    redis.executed();
    let executed = Cell::new(0);
    let executed = || {
        executed.set(executed.get() + redis.executed());
        executed.get()
    };
    let fill = async || {
        let mut waiting = connect_and_send(&service, &visitor, 1).await;
        eventually("the first view is executed", async || (executed() > 0).then_some(())).await;
        for visitor in &visitors {
            waiting.push(send(&service, visitor).await);
        }
        wait_until_all_are_read(&service).await;
        waiting
    };
    counts_of_waiting(&proxy, fill).await;
    let (executed, sessions) = (executed(), VISITORS + 1);
    let expected = sessions..=sessions + CALLS * threads() as u64;
    assert!(expected.contains(&executed), "{executed} commands, {expected:?} expected");
}

/// A thousand views of one visitor at once. Nobody starves, however many instances write the session.
#[tokio::test]
async fn overlapping_views_of_one_visitor_are_a_few_commands() {
    const VIEWS: u64 = 1000;
    if !may_connect(VIEWS) {
        return;
    }
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    for (instances, delay) in [(1, 0), (2, 0), (2, 5), (4, 5)] {
        proxy.delay(Duration::from_millis(delay));
        let url = proxy.url();
        let start = move || (0..instances).map(|_| Service::connected_in_slow_motion(&url)).collect();
        // The proxy runs on this runtime.
        let services: Vec<_> = tokio::task::spawn_blocking(start).await.unwrap();
        let mut visitor = Visitor::new();
        visitor.count(&services[0], "/").await;
        redis.executed();
        let begin = Instant::now();
        let sent = services.iter().map(|service| connect_and_send(service, &visitor, VIEWS / instances));
        let waiting = join_all(sent).await;
        let sent = begin.elapsed();
        let mut counts = join_all(waiting.into_iter().flatten().map(count)).await;
        let (executed, took) = (redis.executed(), begin.elapsed());
        let figures = format!(
            "{VIEWS} views of one visitor on {instances} instances, {delay} ms from Redis: {executed} commands, \
             sent within {sent:?}, answered within {took:?}"
        );
        println!("{figures}");
        counts.sort_unstable();
        assert_eq!(counts, (2..VIEWS + 2).collect::<Vec<_>>(), "{figures}");
        assert!(executed <= VIEWS / 5, "{figures}");
    }
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    if !may_connect(MAX_VIEWS) {
        return;
    }
    let (redis, proxy, service, visitor) = behind_proxy_in_slow_motion().await;
    let fill = async || {
        let waiting = connect_and_send(&service, &visitor, MAX_VIEWS).await;
        let begin = Instant::now();
        let refused = visitor.clone().view(&service, "/").await;
        assert_eq!(refused.status, 503, "{refused:?}");
        // A waiting view would be refused after 15 s, 1.5 s by the service's clock.
        assert!(begin.elapsed() < Duration::from_secs(5), "refused after {:?}", begin.elapsed());
        waiting
    };
    counts_of_waiting(&proxy, fill).await;
    visitor.clone().count(&service, "/").await;
    drop(redis);
    let log = service.stop();
    let warnings = log.iter().filter(|line| line.contains("too many changes wait"));
    assert_eq!(warnings.count(), 1, "{log:#?}");
}

#[tokio::test]
async fn disconnected_clients_make_room() {
    if !may_connect(MAX_VIEWS) {
        return;
    }
    let (_redis, proxy, service, visitor) = behind_proxy_in_slow_motion().await;
    let fill = async || {
        let mut waiting = connect_and_send(&service, &visitor, 1).await;
        let others = connections(&service);
        drop(connect_and_send(&service, &visitor, MAX_VIEWS - 1).await);
        wait_for_disconnects(&service, others).await;
        waiting.extend(connect_and_send(&service, &visitor, 1).await);
        waiting
    };
    let counts = counts_of_waiting(&proxy, fill).await;
    assert_eq!(counts[1], counts[0] + 1, "{counts:?}");
}

#[tokio::test]
async fn disconnected_clients_are_not_counted() {
    let (_redis, proxy, service, mut visitor) = behind_proxy_in_slow_motion().await;
    let mut other = Visitor::new();
    other.view(&service, "/").await;
    // One view is in flight; behind it wait one client that stays and some that disconnect.
    let fill = async || {
        let mut waiting = connect_and_send(&service, &visitor, 1).await;
        waiting.extend(connect_and_send(&service, &other, 1).await);
        let others = connections(&service);
        drop(connect_and_send(&service, &visitor, 50).await);
        wait_for_disconnects(&service, others).await;
        waiting
    };
    let counts = counts_of_waiting(&proxy, fill).await;
    assert_eq!(visitor.count(&service, "/").await, counts[0] + 1);
    assert_eq!(other.count(&service, "/").await, counts[1] + 1);
}

/// Closes the proxy, sends views by `fill`, and opens it. Returns their counts.
async fn counts_of_waiting(proxy: &Proxy, fill: impl AsyncFnOnce() -> Vec<TcpStream>) -> Vec<u64> {
    proxy.close();
    let begin = Instant::now();
    let waiting = fill().await;
    println!("{} views wait after {:?}", waiting.len(), begin.elapsed());
    proxy.open();
    join_all(waiting.into_iter().map(count)).await
}

/// Sends `views` requests, each on its own connection, and waits until the service has read them.
async fn connect_and_send(service: &Service, visitor: &Visitor, views: u64) -> Vec<TcpStream> {
    let mut waiting = Vec::new();
    for view in 1..=views {
        waiting.push(send(service, visitor).await);
        // Often enough that the accept queue does not fill up, and after the last one.
        if view % 500 == 0 || view == views {
            wait_until_all_are_read(service).await;
        }
    }
    waiting
}

/// Sends a request on a connection of its own.
async fn send(service: &Service, visitor: &Visitor) -> TcpStream {
    let cookie = visitor.cookie.as_deref().unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: localhost\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(("127.0.0.1", service.port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn answer(mut waiting: TcpStream) -> String {
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn count(waiting: TcpStream) -> u64 {
    let answer = answer(waiting).await;
    let (_, count) = answer.split_once("you viewed this page ").unwrap_or_else(|| panic!("{answer}"));
    count.split(' ').next().unwrap().parse().unwrap()
}

/// Waits until the service has read all requests so far. It accepts connections in order, so theirs are accepted before
/// this one.
async fn wait_until_all_are_read(service: &Service) {
    let live = Visitor::new().view(service, "/health/live").await;
    assert_eq!(live.status, 200);
    eventually("all requests are read", async || (service.unread() == 0).then_some(())).await;
}

/// Waits until the service has no more than this number of connections.
async fn wait_for_disconnects(service: &Service, others: usize) {
    eventually("the clients' connections are closed", async || (connections(service) <= others).then_some(())).await;
}

/// The number of the service's open files. Here, only clients' connections change it.
fn connections(service: &Service) -> usize {
    let files = std::fs::read_dir(format!("/proc/{}/fd", service.id()));
    files.unwrap().count()
}
