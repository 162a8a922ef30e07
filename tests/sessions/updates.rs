//! Promise: what pages keep in a session is not lost. `update` is applied exactly once, as a view is; `insert` and
//! `remove` change their keys and no others.

use std::{sync::LazyLock, time::Duration};

use axum::{
    extract::Path,
    routing::{get, post},
};
use cloud_run_sessions::web::{
    app::{counted, with_session},
    atomic_session::AtomicSession,
    counting::ViewCount,
    error::Error,
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::Barrier;
use tower_sessions::Session;

use crate::common::{self, Redis, Visitor, assert_each_once, session_id};

/// Adds one to a number, and returns it.
async fn add(session: AtomicSession) -> Result<String, Error> {
    let add = |number: &mut u64| {
        *number += 1;
        *number
    };
    session.update("number", add).await.map(|number| number.to_string())
}

/// Adds one to a number that it has read before the session ended.
async fn add_late(session: Session, atomic: AtomicSession) -> Result<String, Error> {
    session.get_value("number").await?;
    LATE.wait().await;
    LATE.wait().await;
    add(atomic).await
}

/// Between its two crossings, the page waits.
static LATE: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(2));

/// As [`add`] on a counted page, with the view's count.
async fn add_counted(session: AtomicSession, ViewCount(count): ViewCount) -> Result<String, Error> {
    Ok(format!("{} you viewed this page {count} times", add(session).await?))
}

/// All that a page does in a row.
async fn mixed(session: Session, atomic: AtomicSession) -> Result<String, Error> {
    session.insert("text", "before").await?;
    let push = |list: &mut Vec<u64>| {
        list.push(1);
        list.len()
    };
    let one = atomic.update("list", push).await?;
    session.insert("text", "after").await?;
    let two = atomic.update("list", push).await?;
    let list: Vec<u64> = session.get("list").await?.unwrap_or_default();
    let text: Option<String> = session.get("text").await?;
    Ok(json!([one, two, list, text]).to_string())
}

/// Adds one to a value that is no number.
async fn mismatched(atomic: AtomicSession) -> Result<String, Error> {
    atomic.update("text", |number: &mut u64| *number += 1).await.map(|()| "changed".to_owned())
}

/// Makes the session larger than it may be.
async fn large(atomic: AtomicSession) -> Result<&'static str, Error> {
    atomic.update("large", |text: &mut String| *text = "secret ".repeat(10_000)).await?;
    Ok("kept")
}

async fn insert_large(session: Session) -> Result<&'static str, Error> {
    session.insert("large", "secret ".repeat(10_000)).await?;
    Ok("kept")
}

async fn set(session: Session, Path((key, value)): Path<(String, String)>) -> Result<&'static str, Error> {
    session.insert(&key, value).await?;
    Ok("set")
}

async fn remove(session: Session, Path(key): Path<String>) -> Result<&'static str, Error> {
    session.remove_value(&key).await?;
    Ok("removed")
}

async fn clear(session: Session) -> &'static str {
    session.clear().await;
    "cleared"
}

/// The value of this key, or null.
async fn show(session: Session, Path(key): Path<String>) -> Result<String, Error> {
    let value: Option<Value> = session.get(&key).await?;
    Ok(json!(value).to_string())
}

/// Reads the session, waits until another request has read it too, and changes a key of its own.
async fn set_together(session: Session, Path(key): Path<String>) -> Result<&'static str, Error> {
    static BOTH: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(2));
    session.get_value("any").await?;
    BOTH.wait().await;
    session.insert(&key, true).await?;
    Ok("set")
}

/// Serves the application with these pages and returns the port.
async fn serve(settings: &[&str]) -> u16 {
    common::serve(settings, |routes, sessions| {
        routes
            .route("/add", with_session(get(add), sessions))
            .route("/add/late", with_session(get(add_late), sessions))
            .route("/counted/add", counted(get(add_counted), sessions))
            .route("/mixed", with_session(get(mixed), sessions))
            .route("/mismatched", with_session(post(mismatched), sessions))
            .route("/large", with_session(get(large), sessions))
            .route("/insert_large", with_session(get(insert_large), sessions))
            .route("/set/{key}/{value}", with_session(get(set), sessions))
            .route("/remove/{key}", with_session(get(remove), sessions))
            .route("/clear", with_session(get(clear), sessions))
            .route("/counted/clear", counted(get(clear), sessions))
            .route("/show/{key}", with_session(get(show), sessions))
            .route("/together/{key}", with_session(get(set_together), sessions))
    })
    .await
}

/// Two instances on one Redis, and one with the in-memory store.
async fn services(redis: &Redis) -> [Vec<u16>; 2] {
    let url = redis.url();
    let on_redis = ["--redis-url", &url];
    [vec![serve(&on_redis).await, serve(&on_redis).await], vec![serve(&[]).await]]
}

async fn body(visitor: &mut Visitor, service: &u16, path: &str) -> String {
    let answer = visitor.view(service, path).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.body
}

/// Overlapping updates of one visitor: each is applied once, and each gets a number of its own.
async fn assert_all_are_kept(services: &[u16]) {
    const UPDATES: u64 = 1000;
    let mut visitor = Visitor::new();
    assert_eq!(body(&mut visitor, &services[0], "/add").await, "1");
    let updates = (0..100).map(async |n| {
        let mut visitor = visitor.clone();
        let mut numbers = Vec::new();
        for update in 0..UPDATES / 100 {
            let service = services[(n + update) as usize % services.len()];
            numbers.push(body(&mut visitor, &service, "/add").await.parse::<u64>().unwrap());
        }
        numbers
    });
    assert_each_once(join_all(updates).await.concat(), 2..UPDATES + 2);
    assert_eq!(body(&mut visitor, &services[0], "/show/number").await, (UPDATES + 1).to_string());
}

#[tokio::test]
async fn overlapping_updates_are_all_kept() {
    let redis = Redis::start();
    for services in services(&redis).await {
        assert_all_are_kept(&services).await;
    }
}

#[tokio::test]
async fn overlapping_updates_are_all_kept_while_connections_are_cut() {
    let redis = Redis::start();
    let [services, _] = services(&redis).await;
    let updates = async {
        for _ in 0..3 {
            assert_all_are_kept(&services).await;
        }
    };
    let cuts = redis.keep_cutting(Duration::from_millis(10), updates).await;
    println!("{cuts} cuts");
    assert!(cuts >= 3, "{cuts} cuts");
}

#[tokio::test]
async fn updates_and_views_overlap() {
    let redis = Redis::start();
    for services in services(&redis).await {
        let mut visitor = Visitor::new();
        visitor.view(&services[0], "/counted/add").await;
        let views = (0..200).map(async |n| {
            let body = body(&mut visitor.clone(), &services[n % services.len()], "/counted/add").await;
            let numbers: Vec<_> = body.split(' ').filter_map(|word| word.parse::<u64>().ok()).collect();
            (numbers[0], numbers[1])
        });
        let (mut numbers, mut counts): (Vec<_>, Vec<_>) = join_all(views).await.into_iter().unzip();
        numbers.sort_unstable();
        counts.sort_unstable();
        assert_eq!(numbers, (2..202).collect::<Vec<_>>());
        assert_eq!(counts, (2..202).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_page_sees_its_own_changes_in_order() {
    let redis = Redis::start();
    for services in services(&redis).await {
        // A new visitor, and one with a session.
        let mut visitor = Visitor::new();
        for visit in [0, 2] {
            let expected = json!([visit + 1, visit + 2, vec![1; visit + 2], "after"]).to_string();
            assert_eq!(body(&mut visitor, &services[0], "/mixed").await, expected);
        }
        assert_eq!(body(&mut visitor, &services[0], "/show/list").await, "[1,1,1,1]");
        assert_eq!(body(&mut visitor, &services[0], "/show/text").await, "\"after\"");
    }
}

#[tokio::test]
async fn a_visitor_whose_session_is_over_begins_a_new_one() {
    let redis = Redis::start();
    let [services, _] = services(&redis).await;
    let mut visitor = Visitor::new();
    for number in ["1", "2"] {
        assert_eq!(body(&mut visitor, &services[0], "/add").await, number);
    }
    redis.cli(&["FLUSHALL"]);
    let old = visitor.cookie.clone();
    for number in ["1", "2"] {
        assert_eq!(body(&mut visitor, &services[0], "/add").await, number);
    }
    assert_ne!(visitor.cookie, old);
}

#[tokio::test]
async fn overlapping_changes_of_different_keys_lose_nothing() {
    let redis = Redis::start();
    for services in services(&redis).await {
        let mut visitor = Visitor::new();
        body(&mut visitor, &services[0], "/set/first/x").await;
        let pair = ["one", "two"];
        for round in 0..20 {
            let sets = pair.iter().zip(services.iter().cycle()).map(async |(key, service)| {
                body(&mut visitor.clone(), service, &format!("/together/{key}{round}")).await
            });
            join_all(sets).await;
            for key in pair {
                assert_eq!(body(&mut visitor, &services[0], &format!("/show/{key}{round}")).await, "true");
            }
        }
        body(&mut visitor, &services[0], "/remove/one7").await;
        for (key, value) in [("one7", "null"), ("two7", "true"), ("one8", "true"), ("first", "\"x\"")] {
            assert_eq!(body(&mut visitor, &services[0], &format!("/show/{key}")).await, value, "{key}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_and_loses_nothing() {
    let redis = Redis::start();
    for services in services(&redis).await {
        let service = &services[0];
        let mut visitor = Visitor::new();
        assert_eq!(visitor.count(service, "/").await, 1);
        body(&mut visitor, service, "/set/text/kept").await;
        let mismatched = visitor.request(reqwest::Method::POST, service, "/mismatched", "*/*").await;
        assert_eq!(mismatched.status, 500, "{mismatched:?}");
        for path in ["/large", "/insert_large"] {
            let answer = visitor.view(service, path).await;
            assert_eq!(answer.status, 507, "{answer:?}");
            assert!(answer.body.contains("full"), "{answer:?}");
        }
        assert_eq!(body(&mut visitor, service, "/show/text").await, "\"kept\"");
        assert_eq!(body(&mut visitor, service, "/show/large").await, "null");
        assert_eq!(visitor.count(service, "/").await, 2);
    }
}

/// A page can neither read, nor change, nor remove what the service itself keeps in the session.
#[tokio::test]
async fn the_services_own_entry_is_out_of_reach() {
    let redis = Redis::start();
    for services in services(&redis).await {
        let service = &services[0];
        let mut visitor = Visitor::new();
        assert_eq!(visitor.count(service, "/").await, 1);
        body(&mut visitor, service, "/set/text/x").await;
        assert_eq!(body(&mut visitor, service, "/show/%23").await, "null");
        assert_eq!(visitor.view(service, "/set/%23/x").await.status, 500);
        body(&mut visitor, service, "/remove/%23").await;
        assert_eq!(visitor.count(service, "/").await, 2);
        for (clear, count) in [("/clear", 3), ("/counted/clear", 4)] {
            assert_eq!(body(&mut visitor, service, clear).await, "cleared");
            assert_eq!(body(&mut visitor, service, "/show/text").await, "null");
            assert_eq!(visitor.count(service, "/").await, count);
            body(&mut visitor, service, "/set/text/x").await;
        }
    }
}

#[tokio::test]
async fn commands_executed() {
    let redis = Redis::start();
    let write = if redis.has_ifeq() { 1 } else { 2 };
    let [services, _] = services(&redis).await;
    let [service, another] = &services[..] else { panic!("{services:?}") };
    let mut visitor = Visitor::new();
    body(&mut visitor, service, "/counted/add").await;
    body(&mut visitor, service, "/counted/add").await;
    redis.executed();
    for (service, path, expected) in [
        (service, "/add", write),
        (service, "/counted/add", 2 * write),
        // Reading takes one on a page that is not counted.
        (service, "/show/number", 1),
        (service, "/set/text/x", 1 + write),
        (service, "/set/text/x", 1),
        // What the page has saved already is not saved again.
        (service, "/mixed", 1 + 4 * write),
        (another, "/show/number", 1),
        // It remembers what it has read.
        (another, "/add", write),
    ] {
        body(&mut visitor, service, path).await;
        let executed = redis.executed();
        assert_eq!(executed, expected, "{path}");
    }
    let id = session_id(visitor.cookie.as_ref().unwrap());
    assert_eq!(redis.keys(), [id]);
}

/// A session that is over stays over: the next one takes nothing of what the page has read of it.
#[tokio::test]
async fn a_session_expires_between_a_read_and_an_update() {
    let redis = Redis::start();
    let service = serve(&["--redis-url", &redis.url()]).await;
    let mut visitor = Visitor::new();
    for number in ["1", "2"] {
        assert_eq!(body(&mut visitor, &service, "/add").await, number);
    }
    let expire = async {
        LATE.wait().await;
        redis.cli(&["DEL", &redis.keys()[0]]);
        LATE.wait().await;
    };
    let (number, ()) = futures_util::future::join(body(&mut visitor, &service, "/add/late"), expire).await;
    assert_eq!(number, "1");
    assert_eq!(body(&mut visitor, &service, "/add").await, "2");
}
