//! Promise: a view executes a known, small number of Redis commands. Serverless Redis bills executed
//! commands, including those inside scripts.

use crate::common::{Redis, Service, Visitor, session_id};

/// A Redis that has the script in its cache, and an instance on it.
async fn start_warm() -> (Redis, Service) {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    for view in 1..=2 {
        assert_eq!(visitor.count(&service, "/").await, view);
    }
    redis.executed();
    (redis, service)
}

/// Makes these views in sequence and asserts the number of commands executed for each.
async fn assert_commands(redis: &Redis, service: &Service, visitor: &mut Visitor, views: &[(&str, u64)]) {
    for (number, (path, expected)) in views.iter().enumerate() {
        visitor.count(service, path).await;
        let executed = redis.executed();
        assert_eq!(executed, *expected, "view number {}: {path}", number + 1);
    }
}

#[tokio::test]
async fn commands_per_view() {
    let (redis, service) = start_warm().await;
    let mut visitor = Visitor::new();
    let views = [("/foo", 1), ("/foo", 7), ("/foo", 3), ("/bar", 5), ("/bar", 3)];
    assert_commands(&redis, &service, &mut visitor, &views).await;
    // A visitor whose second view is of another page.
    let views = [("/foo", 1), ("/bar", 7), ("/foo", 3), ("/", 5)];
    assert_commands(&redis, &service, &mut Visitor::new(), &views).await;
    // On an instance that has not renewed the session.
    let other = Service::on(&redis);
    other.wait_until_ready().await;
    redis.executed();
    // Its first view of a session is that session's second.
    let mut elsewhere = Visitor::new();
    assert_eq!(elsewhere.count(&service, "/foo").await, 1);
    redis.executed();
    assert_commands(&redis, &other, &mut elsewhere, &[("/foo", 8)]).await;
    let views = [("/foo", 5), ("/foo", 3), ("/foo", 3)];
    assert_commands(&redis, &other, &mut visitor, &views).await;
    // On the instance that has.
    assert_commands(&redis, &service, &mut visitor, &[("/foo", 3)]).await;
}

#[tokio::test]
async fn commands_for_a_visit_of_five_views() {
    let (redis, service) = start_warm().await;
    let mut visitor = Visitor::new();
    for view in 1..=5 {
        assert_eq!(visitor.count(&service, "/foo").await, view);
    }
    assert_eq!(redis.executed(), 17);
}

#[tokio::test]
async fn other_requests_execute_no_command() {
    let (redis, service) = start_warm().await;
    Visitor::new().view(&service, "/unknown").await;
    Visitor::new().view(&service, "/health/live").await;
    assert_eq!(redis.executed(), 0);
}

#[tokio::test]
async fn a_view_is_one_call() {
    let (redis, service) = start_warm().await;
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
    let (redis, service) = start_warm().await;
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    for view in [2, 3] {
        redis.cli(&["SCRIPT", "FLUSH"]);
        let mut monitor = redis.monitor();
        assert_eq!(visitor.count(&service, "/").await, view);
        let commands = monitor.commands();
        assert_eq!(commands.len(), 2, "{commands:#?}");
    }
}

#[tokio::test]
async fn a_session_of_one_view_is_small() {
    let (redis, service) = start_warm().await;
    redis.cli(&["FLUSHALL"]);
    let mut visitor = Visitor::new();
    visitor.view(&service, "/foo").await;
    assert_eq!(redis.keys().len(), 1);
    let id = session_id(&visitor.cookie.unwrap());
    let bytes: u32 = redis.cli(&["MEMORY", "USAGE", &id]).parse().unwrap();
    assert!(bytes <= 200, "{bytes} bytes");
}
