//! Promise: views that wait while calls are in flight share the next one. The queue is bounded, and
//! a client that disconnects leaves the queue and affects no other.

use std::time::{Duration, Instant};

use axum::{extract::Path, routing::get};
use cloud_run_sessions::web::{app::with_session, error::Error};
use futures_util::future::join_all;
use tower_sessions::Session;

use crate::common::{
    Answer, Proxy, Redis, Service, Visitor, Waiting, assert_each_once, behind_proxy, behind_proxy_in_slow_motion,
    eventually, far_from, may_connect, one_core, serve,
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
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let url = proxy.url();
    // One thread, since each has calls of its own.
    let start = move || Service::launch(&mut one_core([("REDIS_URL", url.as_str())]));
    // The proxy runs on this runtime.
    let service = tokio::task::spawn_blocking(start).await.unwrap();
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
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
            service.wait_until_all_is_read().await;
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
    let fill = async || Waiting::send_all(&service, &visitor, VIEWS).await;
    let counts = counts_of_waiting(&proxy, fill).await;
    let calls = proxy.calls() - before;
    assert_each_once(counts, 3..VIEWS + 3);
    assert!(calls <= 3, "{calls} calls");
}

#[tokio::test]
async fn sessions_that_share_a_call_execute_one_command_each() {
    const VISITORS: u64 = 32;
    /// Two calls, and an `EVAL` that may bring the script.
    const CALLS: u64 = 3;
    let redis = Redis::start();
    let (proxy, service) = far_from(&redis, &[]).await;
    let mut visitors = vec![Visitor::new(); VISITORS as usize];
    join_all(visitors.iter_mut().map(|visitor| visitor.count(&service, "/"))).await;
    redis.executed();
    let waiting = Waiting::send_behind_a_call(&proxy, &service, &visitors).await;
    proxy.open();
    assert_eq!(Waiting::counts(waiting).await, [2; VISITORS as usize]);
    let (executed, expected) = (redis.executed(), VISITORS..=VISITORS + CALLS);
    assert!(expected.contains(&executed), "{executed} commands, {expected:?} expected");
}

/// A call with 512 full sessions would send 67 MB. Upstash takes 10 MB in a request.
#[tokio::test]
async fn a_call_is_bounded_in_bytes() {
    const VISITORS: usize = 60;
    const SIZE: usize = 60_000;
    /// The session that exceeds it is the last.
    const BOUND: usize = 2_000_000;
    async fn keep(session: Session, Path(text): Path<String>) -> Result<(), Error> {
        Ok(session.insert("text", text.repeat(SIZE)).await?)
    }
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    proxy.delay(Duration::from_millis(5));
    let service = serve(&["--redis-url", &proxy.url()], |routes, sessions| {
        routes.route("/keep/{text}", with_session(get(keep), sessions))
    })
    .await;
    let mut visitors = vec![Visitor::new(); VISITORS];
    join_all(visitors.iter_mut().map(|visitor| visitor.count(&service, "/"))).await;
    // First small values become large, then large ones are replaced.
    for (path, sent_by_each) in [("/keep/x", SIZE), ("/keep/y", 2 * SIZE)] {
        let mut monitor = redis.monitor();
        join_all(visitors.iter_mut().map(async |visitor| {
            // A busy machine may not write all of them in time.
            let keep = async || (visitor.view(&service, path).await.status == 200).then_some(());
            eventually("the text is kept", keep).await;
        }))
        .await;
        // "EVALSHA" "…" "16" …
        let commands = monitor.commands();
        let calls = commands.iter().filter_map(|command| command.strip_prefix("\"EVALSHA\" ")?.split('"').nth(3));
        let sessions: Vec<usize> = calls.map(|sessions| sessions.parse().unwrap()).collect();
        let most = BOUND / sent_by_each + 1;
        println!("{path}: {sessions:?} sessions share a call, at most {most}");
        assert!(sessions.iter().all(|sessions| *sessions <= most), "{path}: {sessions:?} share a call, not {most}");
        assert!(sessions.iter().any(|sessions| *sessions > 8), "{path}: {sessions:?} share a call");
    }
}

/// A thousand views of one visitor at once. Nobody starves, however many instances write the session. The second thousand
/// surely overlap, because replies are held back until the service has read them.
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
        let send = async || {
            let sent = services.iter().map(|service| Waiting::send_all(service, &visitor, VIEWS / instances));
            join_all(sent).await.into_iter().flatten().collect()
        };
        assert_each_once(Waiting::counts(send().await).await, 2..VIEWS + 2);
        redis.executed();
        assert_each_once(counts_of_waiting(&proxy, send).await, VIEWS + 2..2 * VIEWS + 2);
        let executed = redis.executed();
        let figures = format!("{VIEWS} views on {instances} instances, {delay} ms from Redis: {executed} commands");
        println!("{figures}");
        assert!(executed <= VIEWS / 10, "{figures}");
    }
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    if !may_connect(MAX_VIEWS) {
        return;
    }
    let (_redis, proxy, service, visitor) = behind_proxy_in_slow_motion().await;
    let fill = async || {
        let waiting = Waiting::send_all(&service, &visitor, MAX_VIEWS).await;
        let begin = Instant::now();
        let refused = visitor.clone().view(&service, "/").await;
        assert_eq!(refused.status, 503, "{refused:?}");
        // A waiting view would be refused after 15 s, 1.5 s by the service's clock.
        assert!(begin.elapsed() < Duration::from_secs(5), "refused after {:?}", begin.elapsed());
        waiting
    };
    counts_of_waiting(&proxy, fill).await;
    visitor.clone().count(&service, "/").await;
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
        let mut waiting = Waiting::send_all(&service, &visitor, 1).await;
        let others = service.sockets();
        drop(Waiting::send_all(&service, &visitor, MAX_VIEWS - 1).await);
        wait_for_disconnects(&service, others).await;
        waiting.extend(Waiting::send_all(&service, &visitor, 1).await);
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
        let mut waiting = Waiting::send_all(&service, &visitor, 1).await;
        waiting.extend(Waiting::send_all(&service, &other, 1).await);
        let others = service.sockets();
        drop(Waiting::send_all(&service, &visitor, 50).await);
        wait_for_disconnects(&service, others).await;
        waiting
    };
    let counts = counts_of_waiting(&proxy, fill).await;
    assert_eq!(visitor.count(&service, "/").await, counts[0] + 1);
    assert_eq!(other.count(&service, "/").await, counts[1] + 1);
}

/// Closes the proxy, sends views by `fill`, and opens it. Returns their counts.
async fn counts_of_waiting(proxy: &Proxy, fill: impl AsyncFnOnce() -> Vec<Waiting>) -> Vec<u64> {
    proxy.close();
    let begin = Instant::now();
    let waiting = fill().await;
    println!("{} views wait after {:?}", waiting.len(), begin.elapsed());
    proxy.open();
    Waiting::counts(waiting).await
}

/// Waits until the service has no more than this number of connections.
async fn wait_for_disconnects(service: &Service, others: usize) {
    eventually("the clients' connections are closed", async || (service.sockets() <= others).then_some(())).await;
}
