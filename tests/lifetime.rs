//! Promise: a session expires no earlier than SESSION_TTL after its last view or save on any instance,
//! and no later than a 24th of SESSION_TTL plus a few seconds after that. Its views never outlive its
//! record. The clocks of the instances have no influence.

use std::time::{Duration, Instant};

use axum::routing::get;
use clap::Parser;
use cloud_run_sessions::{
    config::Config,
    store::Store,
    web::{
        app::{self, counted, with_session},
        error::Error,
        server,
    },
};
use tokio::net::TcpListener;
use tower_sessions::Session;

use crate::common::{Redis, Service, Visitor, behind_proxy, libfaketime, session_id};

/// In ms. The renewal window is 6 s.
const TTL: i64 = 144_000;
const LATEST: i64 = TTL + TTL / 24 + 5_000;

fn service(url: &str) -> Service {
    Service::start([("REDIS_URL", url), ("SESSION_TTL", "144")])
}

/// Asserts the remaining time to live of record and views right after a view.
fn assert_expiry(redis: &Redis, visitor: &Visitor, what: &str) {
    let id = session_id(visitor.cookie.as_ref().unwrap());
    // In this order: time passes between the two commands.
    let record = redis.pttl(&id);
    let views = redis.pttl(&format!("v:{{{id}}}"));
    let both = format!("{what}: record {record} ms, views {views} ms");
    // The time that the test itself takes on a busy machine.
    const LATE: i64 = 2_000;
    assert!((TTL - LATE..=LATEST).contains(&record), "{both}");
    assert!(views == -2 || (TTL - LATE..=record).contains(&views), "{both}");
}

#[tokio::test]
async fn every_view_keeps_the_session_alive() {
    let redis = Redis::start();
    let services = [service(&redis.url()), service(&redis.url())];
    let mut visitor = Visitor::new();
    visitor.count(&services[0], "/").await;
    assert_expiry(&redis, &visitor, "the first view");
    let begin = Instant::now();
    let mut views = 1;
    // For more than two windows, on both instances.
    while begin.elapsed() < Duration::from_secs(14) {
        views += 1;
        let instance = usize::from(views % 20 == 0);
        assert_eq!(visitor.count(&services[instance], "/").await, views);
        assert_expiry(&redis, &visitor, &format!("after {:?}", begin.elapsed()));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn delays_and_retries_do_not_shorten_a_session() {
    let redis = Redis::start();
    let proxy = crate::common::Proxy::start(&redis).await;
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
async fn an_instance_renews_a_session_that_another_has_renewed() {
    let redis = Redis::start();
    let [first, second] = [service(&redis.url()), service(&redis.url())];
    let mut visitor = Visitor::new();
    for view in 1..=2 {
        assert_eq!(visitor.count(&first, "/").await, view);
    }
    // As if the windows of the first instance had passed.
    let id = session_id(visitor.cookie.as_ref().unwrap());
    redis.cli(&["PEXPIRE", &id, "60000"]);
    redis.cli(&["PEXPIRE", &format!("v:{{{id}}}"), "59000"]);
    assert_eq!(visitor.count(&second, "/").await, 3);
    assert_expiry(&redis, &visitor, "renewed by the second instance");
}

#[tokio::test]
async fn an_instance_remembers_only_confirmed_renewals() {
    let (redis, proxy, first, mut visitor) = behind_proxy().await;
    let service = service(&proxy.url());
    let id = session_id(visitor.cookie.as_ref().unwrap());
    let views = format!("v:{{{id}}}");
    redis.cli(&["PEXPIRE", &id, "60000"]);
    redis.cli(&["PEXPIRE", &views, "59000"]);
    drop(first);
    service.wait_until_ready().await;
    // All calls that would renew the session are lost until their deadline.
    proxy.keep_losing_calls(true);
    assert_eq!(visitor.view(&service, "/").await.status, 503);
    proxy.keep_losing_calls(false);
    assert_eq!(visitor.count(&service, "/").await, 3);
    assert_expiry(&redis, &visitor, "renewed");
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

/// If the views have expired and the record is about to, the session has ended.
#[tokio::test]
async fn a_record_without_its_views_does_not_restart_the_count() {
    let redis = Redis::start();
    let service = service(&redis.url());
    let mut visitor = Visitor::new();
    for view in 1..=5 {
        assert_eq!(visitor.count(&service, "/").await, view);
    }
    let id = session_id(visitor.cookie.as_ref().unwrap());
    redis.cli(&["DEL", &format!("v:{{{id}}}")]);
    redis.cli(&["PEXPIRE", &id, "990"]);
    assert_eq!(visitor.count(&service, "/").await, 1);
    assert_ne!(session_id(visitor.cookie.as_ref().unwrap()), id);
    assert_eq!(redis.pttl(&id), -2, "the record still exists");
    assert_eq!(redis.pttl(&format!("v:{{{id}}}")), -2, "views still exist");
    assert_eq!(visitor.count(&service, "/").await, 2);
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
    let settings = [&["cloud-run-sessions", "--rust-log=off"], settings].concat();
    let config = Config::try_parse_from(settings).unwrap();
    let store = Store::open(&config);
    let routes = app::router(&store, &config)
        .route("/save", with_session(get(save), &store, &config))
        .route("/load", with_session(get(load), &store, &config))
        .route("/counted/save", counted(get(save), &store, &config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(server::serve(listener, app::service(routes), std::future::pending()));
    port
}

#[tokio::test]
async fn a_save_renews_record_and_views() {
    let redis = Redis::start();
    let settings = ["--session-ttl=144", "--redis-url", &redis.url()];
    let (first, second) = (with_pages(&settings).await, with_pages(&settings).await);
    for path in ["/save", "/counted/save"] {
        let mut visitor = Visitor::new();
        for view in 1..=2 {
            assert_eq!(visitor.count(&first, "/").await, view);
        }
        let id = session_id(visitor.cookie.as_ref().unwrap());
        redis.cli(&["PEXPIRE", &id, "60000"]);
        redis.cli(&["PEXPIRE", &format!("v:{{{id}}}"), "59000"]);
        assert_eq!(visitor.view(&second, path).await.body, "saved");
        assert_expiry(&redis, &visitor, path);
        assert_eq!(visitor.view(&first, "/load").await.body, "Some(true)");
        // An instance that has renewed the session within the window changes neither expiry.
        assert_eq!(visitor.view(&first, path).await.body, "saved");
        assert_expiry(&redis, &visitor, path);
        assert_eq!(visitor.count(&first, "/").await, 3);
    }
}

/// A session may end between loading it and saving it.
#[tokio::test]
async fn a_save_does_not_revive_a_session() {
    use tower_sessions::{SessionStore, session::Id};
    let redis = Redis::start();
    let url = redis.url();
    let settings = ["cloud-run-sessions", "--session-ttl=144", "--redis-url", &url];
    let open = || Store::open(&Config::try_parse_from(settings).unwrap());
    // `this` has renewed the session, `other` has not.
    let (this, other) = (open(), open());
    let mut record = tower_sessions::session::Record {
        id: Id::default(),
        data: Default::default(),
        expiry_date: time::OffsetDateTime::now_utc(),
    };
    this.create(&mut record).await.unwrap();
    let id = record.id.to_string();
    // By now the views would have expired.
    redis.cli(&["PEXPIRE", &id, "900"]);
    other.save(&record).await.unwrap();
    assert!(redis.pttl(&id) <= 900, "revived in its last moment");
    redis.cli(&["DEL", &id]);
    for store in [this, other] {
        store.save(&record).await.unwrap();
        assert_eq!(redis.pttl(&id), -2, "revived");
        assert!(store.load(&record.id).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn loading_does_not_renew_a_session_in_the_embedded_store() {
    const TTL: Duration = Duration::from_secs(2);
    let service = with_pages(&["--session-ttl=2"]).await;
    let mut visitor = Visitor::new();
    visitor.view(&service, "/save").await;
    let begin = Instant::now();
    while visitor.view(&service, "/load").await.body == "Some(true)" {
        assert!(begin.elapsed() < 3 * TTL, "the session does not expire");
        tokio::time::sleep(TTL / 20).await;
    }
    assert!(begin.elapsed() > TTL - TTL / 10, "ended after {:?}", begin.elapsed());
}
