//! Promise: a session ends SESSION_TTL after its last view or save on any instance, and no more than 5 s later. The
//! clocks of the instances have no influence.

use std::time::{Duration, Instant};

use axum::routing::get;
use cloud_run_sessions::web::{
    app::{counted, with_session},
    error::Error,
};
use tower_sessions::Session;

use crate::common::{self, Proxy, Redis, Service, Visitor, Waiting, eventually, far_from, libfaketime, session_id};

/// In ms.
const TTL: i64 = 144_000;
const LATEST: i64 = TTL + 5_000;

fn service(url: &str) -> Service {
    Service::start([("REDIS_URL", url), ("SESSION_TTL", "144")])
}

/// Asserts the remaining time to live right after a view.
fn assert_expiry(redis: &Redis, visitor: &Visitor, what: &str) {
    let left = redis.pttl(&session_id(visitor.cookie.as_ref().unwrap()));
    // The time that the test itself takes on a busy machine.
    const LATE: i64 = 2_000;
    assert!((TTL - LATE..=LATEST).contains(&left), "{what}: {left} ms");
}

/// Lets the session end soon if nothing renews it.
fn let_expire(redis: &Redis, visitor: &Visitor) {
    redis.cli(&["PEXPIRE", &session_id(visitor.cookie.as_ref().unwrap()), "60000"]);
}

#[tokio::test]
async fn every_view_renews_the_session_on_every_instance() {
    let redis = Redis::start();
    let services = [service(&redis.url()), service(&redis.url())];
    let mut visitor = Visitor::new();
    for view in 1..=20 {
        let service = &services[usize::from(view % 3 == 0)];
        assert_eq!(visitor.count(service, "/").await, view);
        assert_expiry(&redis, &visitor, &format!("view {view}"));
        let_expire(&redis, &visitor);
    }
}

#[tokio::test]
async fn views_that_share_a_call_renew_their_sessions() {
    let redis = Redis::start();
    let (proxy, service) = far_from(&redis, &[("SESSION_TTL", "144")]).await;
    let mut visitors = vec![Visitor::new(); 10];
    for visitor in &mut visitors {
        visitor.count(&service, "/").await;
        let_expire(&redis, visitor);
    }
    let before = proxy.calls();
    let waiting = Waiting::send_behind_a_call(&proxy, &service, &visitors).await;
    proxy.open();
    assert_eq!(Waiting::counts(waiting).await, [2; 10]);
    assert_eq!(proxy.calls() - before, 2, "the first view's call, and that of the others");
    visitors[1..].iter().for_each(|visitor| assert_expiry(&redis, visitor, "a view that shared a call"));
}

#[tokio::test]
async fn delays_and_retries_do_not_shorten_a_session() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let service = service(&proxy.url());
    let mut visitor = Visitor::new();
    visitor.count(&service, "/").await;
    proxy.delay(Duration::from_millis(100));
    for view in 2..=5 {
        proxy.lose_reply();
        assert_eq!(visitor.count(&service, "/").await, view);
        assert_expiry(&redis, &visitor, "a retried view");
    }
}

#[tokio::test]
async fn a_wrong_clock_has_no_influence() {
    let redis = Redis::start();
    for off in ["-60s", "+60s", "-1d"] {
        let settings = [
            ("REDIS_URL", redis.url()),
            ("SESSION_TTL", "144".to_owned()),
            ("LD_PRELOAD", libfaketime()),
            ("FAKETIME", off.to_owned()),
            // Only the wall clock is wrong; the monotonic clock is not changed.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        let settings = settings.iter().map(|(name, value)| (*name, value.as_str()));
        let service = Service::start(settings);
        let mut visitor = Visitor::new();
        for view in 1..=3 {
            assert_eq!(visitor.count(&service, "/").await, view);
            assert_expiry(&redis, &visitor, &format!("clock {off}, view {view}"));
        }
    }
}

async fn save(session: Session) -> Result<&'static str, Error> {
    session.insert("saved", true).await?;
    Ok("saved")
}

async fn load(session: Session) -> Result<String, Error> {
    Ok(format!("{:?}", session.get::<bool>("saved").await?))
}

/// Serves the application with additional pages that save and load. Returns the port.
async fn with_pages(settings: &[&str]) -> u16 {
    common::serve(settings, |routes, sessions| {
        routes
            .route("/save", with_session(get(save), sessions))
            .route("/load", with_session(get(load), sessions))
            .route("/counted/save", counted(get(save), sessions))
    })
    .await
}

#[tokio::test]
async fn a_save_renews_the_session_and_reading_does_not() {
    let redis = Redis::start();
    let settings = ["--session-ttl=144", "--redis-url", &redis.url()];
    let (first, second) = (with_pages(&settings).await, with_pages(&settings).await);
    for path in ["/save", "/counted/save"] {
        let mut visitor = Visitor::new();
        for view in 1..=2 {
            assert_eq!(visitor.count(&first, "/").await, view);
        }
        let_expire(&redis, &visitor);
        assert_eq!(visitor.view(&second, path).await.body, "saved");
        assert_expiry(&redis, &visitor, path);
        let_expire(&redis, &visitor);
        assert_eq!(visitor.view(&first, "/load").await.body, "Some(true)");
        let left = redis.pttl(&session_id(visitor.cookie.as_ref().unwrap()));
        assert!(left <= 60_000, "reading renewed the session: {left} ms");
        assert_eq!(visitor.count(&first, "/").await, 3);
        assert_expiry(&redis, &visitor, "a view after a save on another instance");
    }
}

/// A session may end between loading it and saving it.
#[tokio::test]
async fn a_save_does_not_revive_a_session() {
    let redis = Redis::start();
    let settings = ["--session-ttl=144", "--redis-url", &redis.url()];
    // One instance remembers the session, the other does not.
    let (this, other) = (with_pages(&settings).await, with_pages(&settings).await);
    for service in [this, other] {
        let mut visitor = Visitor::new();
        visitor.count(&this, "/").await;
        let id = session_id(visitor.cookie.as_ref().unwrap());
        redis.cli(&["DEL", &id]);
        assert_eq!(visitor.view(&service, "/save").await.body, "saved");
        assert_eq!(redis.pttl(&id), -2, "revived");
    }
}

#[tokio::test]
async fn loading_does_not_renew_a_session_in_the_in_memory_store() {
    const TTL: Duration = Duration::from_secs(2);
    /// The promise, and what a busy machine may add to it.
    const LATEST: Duration = Duration::from_secs(2 + 5 + 5);
    let service = with_pages(&["--session-ttl=2"]).await;
    let mut visitor = Visitor::new();
    let begin = Instant::now();
    visitor.view(&service, "/save").await;
    let load = async || (visitor.view(&service, "/load").await.body != "Some(true)").then_some(());
    eventually("the session ends", load).await;
    let took = begin.elapsed();
    assert!((TTL..LATEST).contains(&took), "ended after {took:?}");
}
