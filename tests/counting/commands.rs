//! Promise: a view executes a known, small number of Redis commands. Serverless Redis bills executed
//! commands, including those inside scripts.

use std::time::Duration;

use futures_util::future::join_all;

use crate::common::{Redis, Service, Visitor, behind_proxy, session_id};

/// A Redis, an instance on it that has served a visitor, and how many commands a write executes: one if the server knows
/// `SET … IFEQ`, two with the script.
async fn start_warm() -> (Redis, Service, u64) {
    let redis = Redis::start();
    let write = if redis.has_ifeq() { 1 } else { 2 };
    let service = warm(&redis).await;
    redis.executed();
    (redis, service, write)
}

/// An instance that has served a visitor.
async fn warm(redis: &Redis) -> Service {
    let service = Service::on(redis);
    let mut visitor = Visitor::new();
    for view in 1..=2 {
        assert_eq!(visitor.count(&service, "/").await, view);
    }
    service
}

/// Makes this view and asserts the number of commands that it executes.
async fn assert_commands(redis: &Redis, service: &Service, visitor: &mut Visitor, path: &str, expected: u64) {
    let count = visitor.count(service, path).await;
    assert_eq!(redis.executed(), expected, "{path}, viewed {count} times");
}

#[tokio::test]
async fn commands_per_view() {
    let (redis, service, write) = start_warm().await;
    let mut visitor = Visitor::new();
    assert_commands(&redis, &service, &mut visitor, "/foo", 1).await;
    for path in ["/foo", "/foo", "/bar", "/bar", "/", "/foo"] {
        assert_commands(&redis, &service, &mut visitor, path, write).await;
    }
    // On an instance that does not know the session.
    let other = warm(&redis).await;
    redis.executed();
    assert_commands(&redis, &other, &mut visitor, "/foo", 1 + write).await;
    assert_commands(&redis, &other, &mut visitor, "/foo", write).await;
}

#[tokio::test]
async fn commands_for_a_visit_of_five_views() {
    let (redis, service, write) = start_warm().await;
    let mut visitor = Visitor::new();
    for view in 1..=5 {
        assert_eq!(visitor.count(&service, "/foo").await, view);
    }
    assert_eq!(redis.executed(), 1 + 4 * write);
}

/// An instance that finds its memory out of date reads first.
#[tokio::test]
async fn commands_in_turns_on_two_instances() {
    let (redis, service, write) = start_warm().await;
    let services = [service, warm(&redis).await];
    let mut visitor = Visitor::new();
    // Each instance has to be wrong once before it reads first.
    for view in 1..=4 {
        assert_eq!(visitor.count(&services[view as usize % 2], "/").await, view);
    }
    redis.executed();
    for view in 5..=30 {
        assert_commands(&redis, &services[view % 2], &mut visitor, "/", 1 + write).await;
    }
    // Other visitors profit from it at once.
    let mut other = Visitor::new();
    assert_commands(&redis, &services[0], &mut other, "/", 1).await;
    for view in 2..=10 {
        assert_commands(&redis, &services[(view + 1) % 2], &mut other, "/", 1 + write).await;
    }
    // A few views after the last change of instances, memory is trusted again.
    for _ in 0..3 {
        other.count(&services[0], "/").await;
    }
    redis.executed();
    assert_commands(&redis, &services[0], &mut other, "/", write).await;
}

/// No pattern costs more than views in turns, but for the first time that an instance is wrong.
#[tokio::test]
async fn no_pattern_costs_much_more() {
    let (redis, service, write) = start_warm().await;
    let services = [service, warm(&redis).await];
    for pattern in ["001", "0011", "00001", "000111", "0001", "01101"] {
        let mut visitor = Visitor::new();
        visitor.count(&services[0], "/").await;
        redis.executed();
        const VIEWS: usize = 60;
        for instance in pattern.bytes().cycle().take(VIEWS) {
            visitor.count(&services[usize::from(instance - b'0')], "/").await;
        }
        let each = redis.executed() as f64 / VIEWS as f64;
        println!("{pattern}: {each} commands a view");
        assert!(each <= 1.2 * (1 + write) as f64, "{pattern}: {each} commands a view");
    }
}

#[tokio::test]
async fn commands_for_a_session_that_is_over() {
    let (redis, service, _) = start_warm().await;
    let mut visitor = Visitor::new();
    visitor.count(&service, "/").await;
    redis.cli(&["FLUSHALL"]);
    redis.executed();
    // The instance remembers the session. With IFEQ, null may mean that the value has changed, so it reads.
    assert_commands(&redis, &service, &mut visitor, "/", 3).await;
    // It does not know this one.
    visitor.cookie = Some("id=AAAAAAAAAAAAAAAAAAAAAA".to_owned());
    assert_commands(&redis, &service, &mut visitor, "/", 2).await;
}

/// 64 connections, each with a view in flight of a visitor of its own.
#[tokio::test]
async fn commands_under_load() {
    let (redis, proxy, service, _) = behind_proxy().await;
    // The latency of a Redis in the same region. Without it, the load of the machine would decide.
    proxy.delay(Duration::from_millis(5));
    let mut visitors = vec![Visitor::new(); 64];
    join_all(visitors.iter_mut().map(|visitor| visitor.count(&service, "/"))).await;
    redis.executed();
    const VIEWS: u64 = 64 * 50;
    join_all(visitors.into_iter().map(async |mut visitor| {
        for _ in 0..VIEWS / 64 {
            visitor.count(&service, "/").await;
        }
    }))
    .await;
    let each = redis.executed() as f64 / VIEWS as f64;
    println!("{each} commands a view");
    assert!(each < 1.5, "{each} commands a view");
}

#[tokio::test]
async fn only_health_ready_executes_a_command_beside_views() {
    let (redis, service, _) = start_warm().await;
    Visitor::new().view(&service, "/unknown").await;
    Visitor::new().view(&service, "/health/live").await;
    assert_eq!(redis.executed(), 0);
    assert_eq!(Visitor::new().view(&service, "/health/ready").await.status, 200);
    assert_eq!(redis.executed(), 1);
}

#[tokio::test]
async fn a_view_is_one_call() {
    let (redis, service, _) = start_warm().await;
    let mut monitor = redis.monitor();
    let mut visitor = Visitor::new();
    for view in ["first", "second", "third", "fourth"] {
        visitor.view(&service, "/foo").await;
        let commands = monitor.commands();
        assert_eq!(commands.len(), 1, "the {view} view: {commands:#?}");
    }
}

#[tokio::test]
async fn a_flushed_script_cache_costs_one_more_call() {
    let (redis, service, _) = start_warm().await;
    // `SET … IFEQ` needs no script. Else EVALSHA fails, and EVAL brings it.
    let calls = if redis.has_ifeq() { 1 } else { 2 };
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    for view in [2, 3] {
        redis.cli(&["SCRIPT", "FLUSH"]);
        let mut monitor = redis.monitor();
        assert_eq!(visitor.count(&service, "/").await, view);
        let commands = monitor.commands();
        assert_eq!(commands.len(), calls, "{commands:#?}");
    }
}

/// As docs/benchmark.md says: after one view, and after views of three pages.
#[tokio::test]
async fn a_session_is_small() {
    let (redis, service, _) = start_warm().await;
    redis.cli(&["FLUSHALL"]);
    let mut visitor = Visitor::new();
    for (paths, most) in [(&["/"][..], 120), (&["/foo", "/bar"], 152)] {
        for path in paths {
            visitor.view(&service, path).await;
        }
        let id = session_id(visitor.cookie.as_ref().unwrap());
        assert_eq!(redis.keys(), std::slice::from_ref(&id));
        let bytes: u32 = redis.cli(&["MEMORY", "USAGE", &id]).parse().unwrap();
        println!("{bytes} bytes after {paths:?}");
        assert!(bytes <= most, "{bytes} bytes after {paths:?}");
    }
}
