//! Promise: a session ends no earlier than SESSION_TTL after its last view or save, on whichever instance,
//! and no later than a 24th of that and a few seconds more; its views never outlive its record, whatever
//! the instances' clocks show.

use std::time::{Duration, Instant};

use axum::routing::get;
use clap::Parser;
use cloud_run_sessions::{
    app::{self, counted},
    config::Config,
    error::Error,
    server, session,
    store::Store,
};
use tokio::net::TcpListener;
use tower_sessions::Session;

use crate::common::{Redis, Service, Visitor, behind_proxy, session_id};

/// With a window of 6 s.
const TTL: i64 = 144_000;
const LATEST: i64 = TTL + TTL / 24 + 5_000;

fn service(url: &str) -> Service {
    Service::start([("REDIS_URL", url), ("SESSION_TTL", "144")])
}

/// Asserts that record and views live as promised right after a view.
fn assert_lives(redis: &Redis, visitor: &Visitor, what: &str) {
    let id = session_id(visitor.cookie.as_ref().unwrap());
    // In this order, since time goes on in between.
    let record = redis.left(&id);
    let views = redis.left(&format!("v:{{{id}}}"));
    let both = format!("{what}: record {record} ms, views {views} ms");
    // The test's own time, on a busy machine.
    const LATE: i64 = 2_000;
    assert!((TTL - LATE..=LATEST).contains(&record), "{both}");
    assert!(
        views == -2 || (TTL - LATE..=record).contains(&views),
        "{both}"
    );
}

#[tokio::test]
async fn each_view_finds_the_session_alive_long_enough() {
    let redis = Redis::start();
    let services = [service(&redis.url()), service(&redis.url())];
    let mut visitor = Visitor::new();
    visitor.count(&services[0], "/").await;
    assert_lives(&redis, &visitor, "the first view");
    let begin = Instant::now();
    let mut views = 1;
    // Over two windows, on both instances.
    while begin.elapsed() < Duration::from_secs(14) {
        views += 1;
        let instance = usize::from(views % 20 == 0);
        assert_eq!(visitor.count(&services[instance], "/").await, views);
        assert_lives(&redis, &visitor, &format!("after {:?}", begin.elapsed()));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn waiting_and_repeating_cost_a_session_nothing() {
    let redis = Redis::start();
    let proxy = crate::common::Proxy::start(&redis).await;
    let service = service(&proxy.url());
    let mut visitor = Visitor::new();
    visitor.count(&service, "/").await;
    proxy.delay(Duration::from_millis(100));
    for view in 2..=5 {
        proxy.lose_answer();
        assert_eq!(visitor.count(&service, "/").await, view);
        assert_lives(&redis, &visitor, "a repeated view");
    }
}

#[tokio::test]
async fn an_instance_renews_what_it_has_not_renewed_itself() {
    let redis = Redis::start();
    let [first, second] = [service(&redis.url()), service(&redis.url())];
    let mut visitor = Visitor::new();
    for view in 1..=2 {
        assert_eq!(visitor.count(&first, "/").await, view);
    }
    // As if the first one's windows had passed.
    let id = session_id(visitor.cookie.as_ref().unwrap());
    redis.cli(&["PEXPIRE", &id, "60000"]);
    redis.cli(&["PEXPIRE", &format!("v:{{{id}}}"), "59000"]);
    assert_eq!(visitor.count(&second, "/").await, 3);
    assert_lives(&redis, &visitor, "renewed by the second instance");
}

#[tokio::test]
async fn an_instance_remembers_only_what_redis_has_answered() {
    let (redis, proxy, first, mut visitor) = behind_proxy().await;
    let service = service(&proxy.url());
    let id = session_id(visitor.cookie.as_ref().unwrap());
    let views = format!("v:{{{id}}}");
    redis.cli(&["PEXPIRE", &id, "60000"]);
    redis.cli(&["PEXPIRE", &views, "59000"]);
    drop(first);
    service.ready().await;
    // The calls that renew the session are lost, until they are given up.
    proxy.keep_losing_calls(true);
    assert_eq!(visitor.view(&service, "/").await.status, 503);
    proxy.keep_losing_calls(false);
    assert_eq!(visitor.count(&service, "/").await, 3);
    assert_lives(&redis, &visitor, "renewed");
}

#[tokio::test]
async fn a_clock_that_is_a_minute_off_changes_nothing() {
    let redis = Redis::start();
    for off in ["-60s", "+60s", "-1d"] {
        let settings = [
            ("REDIS_URL", redis.url()),
            ("SESSION_TTL", "144".to_owned()),
            ("LD_PRELOAD", libfaketime()),
            ("FAKETIME", off.to_owned()),
            // The clock of the date alone; time passes as it does.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        let settings = settings.iter().map(|(name, value)| (*name, value.as_str()));
        let service = Service::start(settings);
        let mut visitor = Visitor::new();
        for view in 1..=3 {
            assert_eq!(visitor.count(&service, "/").await, view);
            assert_lives(&redis, &visitor, &format!("clock {off}, view {view}"));
        }
    }
}

/// Debian's package faketime.
fn libfaketime() -> String {
    let folders = std::fs::read_dir("/usr/lib").unwrap();
    let files = folders.map(|folder| folder.unwrap().path().join("faketime/libfaketime.so.1"));
    let file = files.into_iter().find(|file| file.exists());
    file.expect("libfaketime, see tests/run")
        .display()
        .to_string()
}

/// The views of a session have ended, its record has not quite: it is over.
#[tokio::test]
async fn the_last_moment_of_a_record_is_no_second_beginning() {
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
    assert_eq!(redis.left(&id), -2, "the record is left");
    assert_eq!(redis.left(&format!("v:{{{id}}}")), -2, "views are left");
    assert_eq!(visitor.count(&service, "/").await, 2);
}

async fn save(session: Session) -> Result<&'static str, Error> {
    session.insert("saved", true).await?;
    Ok("saved")
}

async fn load(session: Session) -> Result<String, Error> {
    Ok(format!("{:?}", session.get::<bool>("saved").await?))
}

/// Serves the service with pages that save and load, without counting. Gives its port.
async fn with_pages(settings: &[&str]) -> u16 {
    let settings = [&["cloud-run-sessions", "--rust-log=off"], settings].concat();
    let config = Config::try_parse_from(settings).unwrap();
    let store = Store::open(&config);
    let layer = || session::layer(&store, &config);
    let app = app::router(&store, &config)
        .route("/save", get(save).route_layer(layer()))
        .route("/load", get(load).route_layer(layer()))
        .route("/counted/save", counted(get(save), &store, &config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(server::serve(listener, app, std::future::pending()));
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
        assert_lives(&redis, &visitor, path);
        assert_eq!(visitor.view(&first, "/load").await.body, "Some(true)");
        // One that has renewed it lately leaves both as they are.
        assert_eq!(visitor.view(&first, path).await.body, "saved");
        assert_lives(&redis, &visitor, path);
        assert_eq!(visitor.count(&first, "/").await, 3);
    }
}

/// A page has loaded the session, and it ends before the page saves it.
#[tokio::test]
async fn a_save_revives_no_session() {
    use tower_sessions::{SessionStore, session::Id};
    let redis = Redis::start();
    let url = redis.url();
    let settings = [
        "cloud-run-sessions",
        "--session-ttl=144",
        "--redis-url",
        &url,
    ];
    let open = || Store::open(&Config::try_parse_from(settings).unwrap());
    // The one has renewed it, the other has not.
    let (this, other) = (open(), open());
    let mut record = tower_sessions::session::Record {
        id: Id::default(),
        data: Default::default(),
        expiry_date: time::OffsetDateTime::now_utc(),
    };
    this.create(&mut record).await.unwrap();
    let id = record.id.to_string();
    // Its views would have ended by now.
    redis.cli(&["PEXPIRE", &id, "900"]);
    other.save(&record).await.unwrap();
    assert!(redis.left(&id) <= 900, "revived in its last moment");
    redis.cli(&["DEL", &id]);
    for store in [this, other] {
        store.save(&record).await.unwrap();
        assert_eq!(redis.left(&id), -2, "revived");
        assert!(store.load(&record.id).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn looking_at_a_session_of_the_embedded_store_does_not_renew_it() {
    const TTL: Duration = Duration::from_secs(2);
    let service = with_pages(&["--session-ttl=2"]).await;
    let mut visitor = Visitor::new();
    visitor.view(&service, "/save").await;
    let begin = Instant::now();
    while visitor.view(&service, "/load").await.body == "Some(true)" {
        assert!(begin.elapsed() < 3 * TTL, "it lives on");
        tokio::time::sleep(TTL / 20).await;
    }
    assert!(
        begin.elapsed() > TTL - TTL / 10,
        "ended after {:?}",
        begin.elapsed()
    );
}
