//! Promise: what a view costs in Redis, whose serverless kind bills the commands that are executed, those
//! inside a script among them.

use crate::common::{Redis, Service, Visitor, session_id};

/// A Redis that knows the script, and an instance on it.
async fn warm() -> (Redis, Service) {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    for view in 1..=2 {
        assert_eq!(visitor.count(&service, "/").await, view);
    }
    redis.executed();
    (redis, service)
}

/// Asserts how many commands each of these views takes, one after the other.
async fn assert_costs(
    redis: &Redis,
    service: &Service,
    visitor: &mut Visitor,
    views: &[(&str, u64)],
) {
    for (number, (path, expected)) in views.iter().enumerate() {
        visitor.count(service, path).await;
        let executed = redis.executed();
        assert_eq!(executed, *expected, "view {} of these: {path}", number + 1);
    }
}

#[tokio::test]
async fn executed_for_each_view() {
    let (redis, service) = warm().await;
    let mut visitor = Visitor::new();
    let views = [
        ("/foo", 1),
        ("/foo", 7),
        ("/foo", 3),
        ("/bar", 5),
        ("/bar", 3),
    ];
    assert_costs(&redis, &service, &mut visitor, &views).await;
    // The second view is of another page.
    let views = [("/foo", 1), ("/bar", 7), ("/foo", 3), ("/", 5)];
    assert_costs(&redis, &service, &mut Visitor::new(), &views).await;
    // An instance that has not renewed the session.
    let other = Service::on(&redis);
    other.ready().await;
    redis.executed();
    let views = [("/foo", 5), ("/foo", 3), ("/foo", 3)];
    assert_costs(&redis, &other, &mut visitor, &views).await;
    // The first has.
    assert_costs(&redis, &service, &mut visitor, &[("/foo", 3)]).await;
}

#[tokio::test]
async fn executed_for_a_visit_of_five_views() {
    let (redis, service) = warm().await;
    let mut visitor = Visitor::new();
    for view in 1..=5 {
        assert_eq!(visitor.count(&service, "/foo").await, view);
    }
    assert_eq!(redis.executed(), 17);
}

#[tokio::test]
async fn no_view_executes_nothing() {
    let (redis, service) = warm().await;
    Visitor::new().view(&service, "/unknown").await;
    Visitor::new().view(&service, "/health/live").await;
    assert_eq!(redis.executed(), 0);
}

#[tokio::test]
async fn a_view_is_one_call() {
    let (redis, service) = warm().await;
    let mut monitor = redis.monitor();
    let mut visitor = Visitor::new();
    for view in ["first", "second", "third", "fourth"] {
        visitor.view(&service, "/foo").await;
        let commands = monitor.commands();
        assert_eq!(commands.len(), 1, "the {view} view: {commands:#?}");
    }
}

#[tokio::test]
async fn a_flushed_script_cache_costs_one_call_once() {
    let (redis, service) = warm().await;
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
    let (redis, service) = warm().await;
    redis.cli(&["FLUSHALL"]);
    let mut visitor = Visitor::new();
    visitor.view(&service, "/foo").await;
    assert_eq!(redis.keys().len(), 1);
    let id = session_id(&visitor.cookie.unwrap());
    let bytes: u32 = redis.cli(&["MEMORY", "USAGE", &id]).parse().unwrap();
    assert!(bytes <= 200, "{bytes} bytes");
}
