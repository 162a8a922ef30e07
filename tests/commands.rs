//! Promise: what a view costs in Redis, whose serverless kind is billed by the command.

use crate::common::{Redis, Service, Visitor, session_id};

#[tokio::test]
async fn a_view_is_one_command() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    // The first second view has the script loaded; the connection asks for nothing more after that.
    let mut first = Visitor::new();
    first.view(&service, "/").await;
    first.view(&service, "/").await;

    let mut monitor = redis.monitor();
    let mut visitor = Visitor::new();
    visitor.view(&service, "/foo").await;
    let commands = monitor.commands();
    assert_eq!(commands.len(), 1, "a new visitor: {commands:#?}");
    for view in ["second", "third", "fourth"] {
        visitor.view(&service, "/foo").await;
        let commands = monitor.commands();
        assert_eq!(commands.len(), 1, "the {view} view: {commands:#?}");
    }
    visitor.view(&service, "/unknown").await;
    visitor.view(&service, "/health/live").await;
    let commands = monitor.commands();
    assert_eq!(commands.len(), 0, "no view: {commands:#?}");
}

#[tokio::test]
async fn a_flushed_script_cache_costs_one_command_once() {
    let redis = Redis::start();
    let service = Service::on(&redis);
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
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    visitor.view(&service, "/foo").await;
    assert_eq!(redis.keys().len(), 1);
    let id = session_id(&visitor.cookie.unwrap());
    let bytes: u32 = redis.cli(&["MEMORY", "USAGE", &id]).parse().unwrap();
    assert!(bytes <= 200, "{bytes} bytes");
}
