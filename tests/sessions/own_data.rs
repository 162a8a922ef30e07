//! Promise: pages that are added as in the README keep their data in the session. This data and the
//! views do not affect each other.

use std::time::Duration;

use axum::{extract::Path, http::StatusCode, routing::get};
use cloud_run_sessions::web::{
    app::{counted, with_session},
    atomic_session::AtomicSession,
    counting::ViewCount,
    error::Error,
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tower_sessions::Session;

use crate::common::{self, Proxy, Redis, Visitor, session_id};

/// A sample of every kind of value that a session can hold.
fn values() -> Vec<Value> {
    vec![
        json!("text, Ünïcödé and \"quotes\" / \u{1F980} \u{0}"),
        json!("x".repeat(60_000)),
        json!([0, -1, 1.5, u64::MAX, i64::MIN, 1e300]),
        json!([null, true, false, [], {}, [[[[]]]]]),
        json!({"1": "/bar", "": {"a": {"b": {"c": [1, {"d": null}]}}}}),
        json!((0..1000).collect::<Vec<_>>()),
        json!(null),
    ]
}

/// Stores a value and returns the sentence.
async fn keep(session: Session, Path(index): Path<usize>, ViewCount(count): ViewCount) -> Result<String, Error> {
    session.insert("kept", &values()[index]).await?;
    Ok(format!("you viewed this page {count} times"))
}

/// A value that is nested so deep: lists for one way to store it, maps for the other.
fn nested(way: &str, depth: usize) -> Value {
    match way {
        "insert" => (1..depth).fold(json!([]), |inside, _| json!([inside])),
        _ => (1..depth).fold(json!({}), |inside, _| json!({ "": inside })),
    }
}

/// Stores such a value.
async fn nest(session: Session, atomic: AtomicSession, Path((way, depth)): Path<(String, usize)>) -> Result<(), Error> {
    let nested = nested(&way, depth);
    if way == "insert" {
        return Ok(session.insert("kept", nested).await?);
    }
    atomic.update("kept", move |kept: &mut Value| *kept = nested.clone()).await
}

/// Returns the stored value.
async fn kept(session: Session) -> Result<String, Error> {
    let kept: Option<Value> = session.get("kept").await?;
    Ok(json!(kept).to_string())
}

/// Returns the stored value, or null if it cannot be read.
async fn kept_or_null(session: Session) -> String {
    let kept: Option<Value> = session.get("kept").await.unwrap_or_default();
    json!(kept).to_string()
}

/// Ends the session.
async fn leave(session: Session) -> Result<&'static str, Error> {
    session.flush().await?;
    Ok("gone")
}

/// Ends the session, if there is one, and begins a new one.
async fn begin(session: Session) -> Result<String, Error> {
    session.flush().await?;
    session.insert("begun", true).await?;
    Ok("begun".to_owned())
}

/// Changes the session's id and keeps its data, as a login can do.
async fn cycle(session: Session, ViewCount(count): ViewCount) -> Result<String, Error> {
    session.cycle_id().await?;
    Ok(format!("you viewed this page {count} times"))
}

/// Fails unless the stored value is a number.
async fn number(session: Session) -> Result<String, Error> {
    let number: Option<u64> = session.get("kept").await?;
    Ok(json!(number).to_string())
}

/// Returns an error with its own body.
async fn own() -> (StatusCode, &'static str) {
    (StatusCode::INTERNAL_SERVER_ERROR, "my own words")
}

/// Returns an error without a body.
async fn empty() -> StatusCode {
    StatusCode::INTERNAL_SERVER_ERROR
}

/// Serves the application with these pages and returns the port.
async fn serve(settings: &[&str]) -> u16 {
    common::serve(settings, |routes, sessions| {
        routes
            .route("/own", counted(get(own), sessions))
            .route("/empty", counted(get(empty), sessions))
            .route("/keep/{index}", counted(get(keep), sessions))
            .route("/nest/{way}/{depth}", with_session(get(nest), sessions))
            .route("/kept", counted(get(kept), sessions))
            .route("/kept_or_null", with_session(get(kept_or_null), sessions))
            .route("/number", counted(get(number), sessions))
            .route("/begin", with_session(get(begin), sessions))
            .route("/cycle", counted(get(cycle), sessions))
            .route("/leave", counted(get(leave), sessions))
    })
    .await
}

async fn assert_data_and_counts(service: u16, first_is_kept: bool) {
    for (index, value) in values().iter().enumerate() {
        let keep = format!("/keep/{index}");
        let mut visitor = Visitor::new();
        let (mut keeps, mut roots) = (0, 0);
        if first_is_kept {
            keeps += 1;
            assert_eq!(visitor.count(&service, &keep).await, keeps);
        }
        for _ in 0..3 {
            roots += 1;
            assert_eq!(visitor.count(&service, "/").await, roots, "with the value {value}");
            keeps += 1;
            assert_eq!(visitor.count(&service, &keep).await, keeps, "with the value {value}");
            let kept = visitor.view(&service, "/kept").await;
            assert_eq!(kept.body, value.to_string());
        }
    }
}

#[tokio::test]
async fn own_data_and_views_do_not_affect_each_other() {
    let redis = Redis::start();
    let redis = serve(&["--redis-url", &redis.url()]).await;
    let memory = serve(&[]).await;
    for service in [redis, memory] {
        for first_is_kept in [false, true] {
            assert_data_and_counts(service, first_is_kept).await;
        }
    }
}

/// Sessions with long and with short values share calls, and each keeps its own.
#[tokio::test]
async fn long_and_short_values_share_calls() {
    const VISITORS: usize = 40;
    const VIEWS: u64 = 20;
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let service = serve(&["--redis-url", &proxy.url()]).await;
    // The latency of a Redis in the same region. Without it, the load of the machine would decide.
    proxy.delay(Duration::from_millis(5));
    let kept = |visitor: usize| visitor % values().len();
    let mut visitors = vec![Visitor::new(); VISITORS];
    for (index, visitor) in visitors.iter_mut().enumerate() {
        visitor.count(&service, &format!("/keep/{}", kept(index))).await;
    }
    redis.executed();
    for view in 1..=VIEWS {
        let counts = join_all(visitors.iter_mut().map(|visitor| visitor.count(&service, "/"))).await;
        assert_eq!(counts, [view; VISITORS]);
    }
    let (executed, views) = (redis.executed(), VIEWS * VISITORS as u64);
    println!("{executed} commands for {views} views");
    // Alone in a call, a session costs one command with IFEQ, else two. Those that share a call cost one each, and one
    // more in all.
    assert!(redis.has_ifeq() || executed < views * 3 / 2, "{executed} commands for {views} views: few share calls");
    for (index, visitor) in visitors.iter_mut().enumerate() {
        let value = &values()[kept(index)];
        assert_eq!(visitor.view(&service, "/kept").await.body, value.to_string());
    }
}

/// What could not be read again is not stored.
#[tokio::test]
async fn a_value_that_is_nested_too_deep_is_refused() {
    const DEEPEST: usize = 1000;
    let redis = Redis::start();
    for service in [serve(&["--redis-url", &redis.url()]).await, serve(&[]).await] {
        for way in ["insert", "update"] {
            // As a new visitor, and as one with a session.
            let mut visitor = Visitor::new();
            for (view, too_deep) in (1..).zip([DEEPEST + 1, DEEPEST + 30, 2 * DEEPEST]) {
                let nest = async |visitor: &mut Visitor, depth| {
                    visitor.view(&service, &format!("/nest/{way}/{depth}")).await.status
                };
                assert_eq!(nest(&mut Visitor::new(), too_deep).await, 500, "{way} {too_deep}");
                assert_eq!(nest(&mut visitor, DEEPEST).await, 200, "{way}");
                assert_eq!(nest(&mut visitor, too_deep).await, 500, "{way} {too_deep}");
                let kept = visitor.view(&service, "/kept").await.body;
                assert_eq!(kept, nested(way, DEEPEST).to_string(), "{way} {too_deep}");
                assert_eq!(visitor.count(&service, "/").await, view);
            }
        }
    }
}

#[tokio::test]
async fn an_error_of_an_added_page_looks_like_any_other() {
    let service = serve(&[]).await;
    let mut visitor = Visitor::new();
    visitor.count(&service, "/keep/0").await;
    let answer = visitor.view(&service, "/number").await;
    assert_eq!((answer.status, answer.body.as_str()), (500, "this page does not work"), "{answer:?}");
    // Trying again does not help.
    for (name, value) in [("retry-after", None), ("cache-control", Some("no-store"))] {
        assert_eq!(answer.header(name), value, "{answer:?}");
    }
}

#[tokio::test]
async fn a_flushed_session_is_deleted_with_its_views() {
    let redis = Redis::start();
    let on_redis = serve(&["--redis-url", &redis.url()]).await;
    let memory = serve(&[]).await;
    for service in [on_redis, memory] {
        let mut visitor = Visitor::new();
        for path in ["/", "/", "/keep/0"] {
            visitor.view(&service, path).await;
        }
        let cookie = visitor.cookie.clone().unwrap();
        assert_eq!(visitor.view(&service, "/leave").await.body, "gone");
        // For a while, a request that was in flight meanwhile is told to try again.
        visitor.cookie = Some(cookie.clone());
        assert_eq!(visitor.view(&service, "/").await.status, 503);
        redis.cli(&["DEL", &session_id(&cookie)]);
        if service == on_redis {
            assert_eq!(visitor.count(&service, "/").await, 1);
            assert_ne!(visitor.cookie, Some(cookie));
            assert_eq!(visitor.view(&service, "/kept").await.body, "null");
        }
    }
}

#[tokio::test]
async fn a_new_session_does_not_adopt_the_id_of_the_client() {
    let redis = Redis::start();
    let redis = serve(&["--redis-url", &redis.url()]).await;
    let memory = serve(&[]).await;
    for service in [redis, memory] {
        let offered = "id=AAAAAAAAAAAAAAAAAAAAAA";
        let mut visitor = Visitor::with_cookie(offered);
        assert_eq!(visitor.view(&service, "/begin").await.body, "begun");
        assert_ne!(visitor.cookie.as_deref(), Some(offered));
    }
}

#[tokio::test]
async fn a_new_id_keeps_the_counts_and_the_data() {
    let redis = Redis::start();
    let redis = serve(&["--redis-url", &redis.url()]).await;
    let memory = serve(&[]).await;
    for service in [redis, memory] {
        for first in ["/", "/keep/0", "/cycle"] {
            let mut visitor = Visitor::new();
            visitor.view(&service, first).await;
            visitor.view(&service, "/").await;
            visitor.view(&service, "/keep/0").await;
            let old = visitor.cookie.clone();
            visitor.view(&service, "/cycle").await;
            assert_ne!(visitor.cookie, old);
            assert_eq!(visitor.view(&service, "/kept").await.body, values()[0].to_string());
            for path in ["/", "/keep/0"] {
                let before = 1 + u64::from(path == first);
                assert_eq!(visitor.count(&service, path).await, before + 1, "{path} after {first}");
            }
        }
    }
}

#[tokio::test]
async fn a_page_keeps_its_own_500() {
    let service = serve(&[]).await;
    for (path, body) in [("/own", "my own words"), ("/empty", "")] {
        let mut with_session = Visitor::new();
        with_session.view(&service, "/").await;
        for visitor in [&mut Visitor::new(), &mut with_session] {
            let answer = visitor.view(&service, path).await;
            assert_eq!((answer.status, answer.body.as_str()), (500, body), "{path}");
            assert_eq!(answer.header("retry-after"), None, "{path}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_session_that_cannot_be_saved_is_a_503() {
    let redis = Redis::start();
    let service = serve(&["--redis-url", &redis.url()]).await;
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    // /begin does not count, so only saving the session fails.
    let answer = visitor.view(&service, "/begin").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("please try again"), "{answer:?}");
    assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
}

/// The page would show an empty session, though the visitor has another one by now.
#[tokio::test]
async fn a_page_that_ignores_errors_does_not_answer_for_a_session_that_was_ended() {
    let redis = Redis::start();
    for settings in [&["--redis-url", &redis.url()][..], &[]] {
        let service = serve(settings).await;
        let mut visitor = Visitor::new();
        visitor.count(&service, "/keep/3").await;
        let mut late = visitor.clone();
        assert_eq!(visitor.view(&service, "/leave").await.body, "gone");
        let answer = late.view(&service, "/kept_or_null").await;
        assert!(answer.status == 503 && answer.body.contains("has just changed"), "{answer:?}");
    }
}
