//! Promise: a session is bounded, at 64 KiB. What would make it larger is refused with a message that says so, loses
//! nothing, and affects nobody else. A session that is larger already, because another program wrote it, can be viewed
//! and made smaller.

use std::collections::HashMap;

use axum::{extract::Path, http::StatusCode, routing::get};
use cloud_run_sessions::web::{
    app::{counted, with_session},
    counting::ViewCount,
    error::Error,
};
use reqwest::Method;
use time::{Duration, OffsetDateTime};
use tower_sessions::{
    Session, SessionStore,
    session::{Id, Record},
};
use tower_sessions_redis_store::RedisStore;

use crate::common::{Answer, BROWSER, Redis, Visitor, serve, session_id};

const MAX_SESSION_BYTES: usize = 64 * 1024;

/// Keeps a text of so many bytes.
async fn keep(session: Session, Path(bytes): Path<usize>) -> Result<&'static str, Error> {
    session.insert("text", "x".repeat(bytes)).await?;
    Ok("kept")
}

/// Like [`keep`], and asks at once whether it could be saved.
async fn keep_now(session: Session, Path(bytes): Path<usize>) -> Result<&'static str, Error> {
    session.insert("text", "x".repeat(bytes)).await?;
    session.save().await?;
    Ok("kept")
}

/// Like [`keep_now`], and answers a failure in its own words.
async fn keep_or_say(session: Session, Path(bytes): Path<usize>) -> Result<&'static str, (StatusCode, &'static str)> {
    let no_room = |_| (StatusCode::INTERNAL_SERVER_ERROR, "my own words");
    session.insert("text", "x".repeat(bytes)).await.map_err(no_room)?;
    session.save().await.map_err(no_room)?;
    Ok("kept")
}

/// The length of the text.
async fn kept(session: Session) -> Result<String, Error> {
    let text: Option<String> = session.get("text").await?;
    Ok(text.unwrap_or_default().len().to_string())
}

/// A page that does not look at its parameter.
async fn named(ViewCount(count): ViewCount) -> String {
    format!("you viewed this page {count} times")
}

async fn start(settings: &[&str]) -> u16 {
    serve(settings, |routes, sessions| {
        routes
            .route("/keep/{bytes}", with_session(get(keep), sessions))
            .route("/keep-now/{bytes}", with_session(get(keep_now), sessions))
            .route("/keep-or-say/{bytes}", with_session(get(keep_or_say), sessions))
            .route("/counted/keep/{bytes}", counted(get(keep).post(named), sessions))
            .route("/kept", with_session(get(kept), sessions))
            .route("/named/{name}", counted(get(named), sessions))
    })
    .await
}

fn assert_refused(answer: &Answer) {
    assert_eq!((answer.status, answer.cookie()), (507, None), "{answer:?}");
    assert!(answer.body.contains("your session is full"), "{answer:?}");
    assert_eq!(answer.header("retry-after"), None, "{answer:?}");
}

async fn bytes_kept(visitor: &mut Visitor, service: u16) -> usize {
    visitor.view(&service, "/kept").await.body.parse().unwrap()
}

#[tokio::test]
async fn a_value_that_is_too_large() {
    let redis = Redis::start();
    for service in [start(&["--redis-url", &redis.url()]).await, start(&[]).await] {
        let (mut visitor, mut other) = (Visitor::new(), Visitor::new());
        for visitor in [&mut visitor, &mut other] {
            assert_eq!(visitor.count(&service, "/").await, 1);
            assert_eq!(visitor.view(&service, "/keep/60000").await.body, "kept");
        }
        for (refusals, bytes) in [(1, MAX_SESSION_BYTES), (2, 1_000_000), (3, MAX_SESSION_BYTES - 1)] {
            assert_refused(&visitor.view(&service, &format!("/keep/{bytes}")).await);
            // The view counts, whatever becomes of the page's data.
            let counted = format!("/counted/keep/{bytes}");
            assert_refused(&visitor.view(&service, &counted).await);
            let after = visitor.request(Method::POST, &service, &counted, "*/*").await;
            assert_eq!(after.count(), 2);
            assert_eq!(bytes_kept(&mut visitor, service).await, 60_000);
            assert_eq!(visitor.count(&service, "/").await, 1 + refusals);
        }
        assert_eq!(visitor.view(&service, "/keep-now/70000").await.status, 507);
        assert_eq!(visitor.view(&service, "/keep-or-say/70000").await.body, "my own words");
        assert_eq!(bytes_kept(&mut visitor, service).await, 60_000);
        let html = visitor.request(Method::GET, &service, "/keep/70000", BROWSER).await;
        assert_refused(&html);
        assert!(html.body.contains("What it holds is not affected."), "{html:?}");
        assert_eq!((other.count(&service, "/").await, bytes_kept(&mut other, service).await), (2, 60_000));
        assert_eq!(visitor.view(&service, "/keep/100").await.body, "kept");
        assert_eq!(bytes_kept(&mut visitor, service).await, 100);
        // A session that would begin too large does not begin.
        let mut new = Visitor::new();
        assert_refused(&new.view(&service, "/keep/70000").await);
        assert_refused(&new.view(&service, "/counted/keep/70000").await);
        assert_eq!(new.count(&service, "/").await, 1);
    }
    assert_eq!(redis.keys().len(), 3, "a session that nobody has");
}

/// An instance that remembers a full session asks Redis before it refuses.
#[tokio::test]
async fn another_instance_has_made_room() {
    let redis = Redis::start();
    let settings = ["--redis-url", &redis.url()];
    let (first, second) = (start(&settings).await, start(&settings).await);
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&first, "/").await, 1);
    assert_eq!(visitor.view(&first, "/keep/60000").await.body, "kept");
    assert_eq!(visitor.view(&second, "/keep/10").await.body, "kept");
    assert_eq!(visitor.count(&first, &format!("/named/{}", "x".repeat(8000))).await, 1);
}

/// A client chooses the parameter, so it could let its session grow.
#[tokio::test]
async fn a_path_with_a_parameter() {
    let redis = Redis::start();
    for service in [start(&["--redis-url", &redis.url()]).await, start(&[]).await] {
        let (mut visitor, mut other) = (Visitor::new(), Visitor::new());
        assert_eq!(visitor.count(&service, "/").await, 1);
        assert_eq!(other.count(&service, "/").await, 1);
        let path = |name: usize| format!("/named/{name:01000}");
        let mut counted = 0;
        let refused = loop {
            let answer = visitor.view(&service, &path(counted)).await;
            if answer.status != 200 {
                break answer;
            }
            assert_eq!(answer.count(), 1);
            counted += 1;
            assert!(counted < 100, "{counted} paths are counted");
        };
        assert_refused(&refused);
        assert!(counted > 60, "{counted} paths");
        for name in [0, counted / 2, counted - 1] {
            assert_eq!(visitor.count(&service, &path(name)).await, 2);
        }
        assert_refused(&visitor.view(&service, &path(counted)).await);
        assert_eq!((visitor.count(&service, "/").await, other.count(&service, "/").await), (2, 2));
        assert_eq!(other.count(&service, &path(counted)).await, 1);
    }
    for id in redis.keys() {
        let bytes: usize = redis.cli(&["STRLEN", &id]).parse().unwrap();
        assert!(bytes <= MAX_SESSION_BYTES + 100, "{bytes} bytes");
    }
}

#[tokio::test]
async fn a_session_that_is_larger_already() {
    let redis = Redis::start();
    let service = start(&["--redis-url", &redis.url()]).await;
    let data = HashMap::from([("text".to_owned(), "x".repeat(200_000).into())]);
    let mut record = Record { id: Id::default(), data, expiry_date: OffsetDateTime::now_utc() + Duration::hours(1) };
    RedisStore::new(redis.client().await).create(&mut record).await.unwrap();
    let mut visitor = Visitor::with_cookie(format!("id={}", record.id));
    for view in 1..=3 {
        for path in ["/", "/foo", "/bar"] {
            assert_eq!(visitor.count(&service, path).await, view);
        }
    }
    assert_eq!(bytes_kept(&mut visitor, service).await, 200_000);
    assert_refused(&visitor.view(&service, "/keep/200001").await);
    // Smaller, and still too large.
    assert_eq!(visitor.view(&service, "/keep/150000").await.body, "kept");
    assert_eq!(bytes_kept(&mut visitor, service).await, 150_000);
    assert_refused(&visitor.view(&service, "/keep/150001").await);
    assert_eq!(visitor.view(&service, "/keep/10").await.body, "kept");
    assert_eq!(visitor.view(&service, "/keep/50000").await.body, "kept");
    assert_eq!(visitor.count(&service, "/").await, 4);
    assert_eq!(session_id(visitor.cookie.as_ref().unwrap()), record.id.to_string());
}
