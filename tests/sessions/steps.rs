//! Promise: whatever a page does with its session, and in whatever order, all of it holds.

use std::collections::BTreeMap;

use axum::{extract::Path, routing::get};
use cloud_run_sessions::web::{
    app::{counted, with_session},
    atomic_session::AtomicSession,
    counting::ViewCount,
    error::Error,
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tower_sessions::Session;

use crate::common::{self, Proxy, Redis, Visitor};

/// What a page does: each letter is one step.
const STEPS: &str = "giucfnls";

async fn steps(session: Session, atomic: AtomicSession, Path(steps): Path<String>) -> Result<&'static str, Error> {
    for step in steps.chars() {
        match step {
            'g' => drop(session.get_value("text").await?),
            'i' => session.insert("text", "inserted").await?,
            'u' => atomic.update("number", |number: &mut u64| *number += 1).await?,
            'c' => session.clear().await,
            'f' => session.flush().await?,
            'n' => session.cycle_id().await?,
            'l' => atomic.log_in().await?,
            's' => session.save().await?,
            _ => unreachable!("{step}"),
        }
    }
    Ok("done")
}

async fn show(session: Session) -> Result<String, Error> {
    let mut data = BTreeMap::new();
    for key in ["number", "text"] {
        data.extend(session.get_value(key).await?.map(|value| (key, value)));
    }
    Ok(json!(data).to_string())
}

/// What a visitor's session is before a page's steps, and what it must be after them.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    data: BTreeMap<&'static str, Value>,
    /// Whether the session still has its one view.
    is_counted: bool,
    /// Whether its first id must be of no use any more.
    has_left_id: bool,
    /// Whether it is to get another id, and was not saved since.
    is_leaving: bool,
}

impl Model {
    fn step(&mut self, step: char) {
        match step {
            'i' => _ = self.data.insert("text", json!("inserted")),
            'u' => {
                let number = self.data.get("number").and_then(Value::as_u64).unwrap_or_default();
                self.data.insert("number", json!(number + 1));
                self.is_leaving = false;
            }
            'c' => self.data.clear(),
            'f' => {
                self.data.clear();
                // After `cycle_id`, tower-sessions' `flush` has no id, and does not reach the store.
                self.is_counted &= self.is_leaving;
                self.has_left_id = true;
            }
            'n' | 'l' => (self.has_left_id, self.is_leaving) = (true, self.is_counted),
            's' => self.is_leaving = false,
            _ => {}
        }
    }
}

/// All sequences of up to so many steps.
fn sequences(most: usize) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut last = all.clone();
    for _ in 0..most {
        last = last.iter().flat_map(|begin| STEPS.chars().map(move |step| format!("{begin}{step}"))).collect();
        all.extend_from_slice(&last);
    }
    all.split_off(1)
}

/// A visitor with a session, or with the cookie of one that is over, meets a page with these steps.
async fn assert_all_holds(service: u16, client: &Visitor, steps: &str, has_session: bool) {
    let mut visitor = Visitor::sharing_connections(client);
    let mut model = Model { data: BTreeMap::new(), is_counted: has_session, has_left_id: false, is_leaving: false };
    if has_session {
        assert_eq!(visitor.count(&service, "/").await, 1);
        assert_eq!(visitor.view(&service, "/steps/iu").await.status, 200);
        model.data = [("number", json!(1)), ("text", json!("inserted"))].into();
    } else {
        visitor.cookie = Some("id=AAAAAAAAAAAAAAAAAAAAAA".to_owned());
    }
    let mut before = visitor.clone();
    let answer = visitor.view(&service, &format!("/steps/{steps}")).await;
    assert_eq!(answer.status, 200, "{steps}: {answer:?}");
    steps.chars().for_each(|step| model.step(step));
    let shown: BTreeMap<String, Value> = serde_json::from_str(&visitor.view(&service, "/show").await.body).unwrap();
    let count = visitor.count(&service, "/").await;
    let expected: BTreeMap<_, _> = model.data.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let of = format!("{steps}, with a session: {has_session}");
    assert_eq!((shown, count), (expected, 1 + u64::from(model.is_counted)), "{of}");
    if has_session && model.has_left_id {
        assert_eq!(before.view(&service, "/").await.status, 503, "{of}: the first id is still of use");
    }
}

async fn assert_all_hold(settings: &[&str], most: usize) {
    let add_pages = |routes: axum::Router, sessions: &_| {
        routes
            .route("/steps/{steps}", with_session(get(steps), sessions))
            .route("/show", with_session(get(show), sessions))
    };
    let service = common::serve(settings, add_pages).await;
    let client = Visitor::new();
    let all = sequences(most);
    for has_session in [true, false] {
        for some in all.chunks(64) {
            join_all(some.iter().map(|steps| assert_all_holds(service, &client, steps, has_session))).await;
        }
    }
    println!("{} sequences of up to {most} steps", all.len());
}

#[tokio::test]
async fn all_steps_hold_in_redis() {
    let redis = Redis::start();
    assert_all_hold(&["--redis-url", &redis.url()], 3).await;
}

#[tokio::test]
async fn all_steps_hold_in_memory() {
    assert_all_hold(&[], 4).await;
}

/// Logs in, which changes the id at once because of the update, and then keeps a text of so many bytes.
async fn log_in(session: Session, atomic: AtomicSession, Path(bytes): Path<usize>) -> Result<&'static str, Error> {
    atomic.log_in().await?;
    atomic.update("number", |number: &mut u64| *number += 1).await?;
    session.insert("text", "x".repeat(bytes)).await?;
    Ok("logged in")
}

async fn serve_log_in(url: &str) -> u16 {
    common::serve(&["--redis-url", url], |routes, sessions| {
        routes
            .route("/log-in/{bytes}", with_session(get(log_in), sessions))
            .route("/show", with_session(get(show), sessions))
    })
    .await
}

/// The visitor gets the cookie of the session that stands, also with an error.
async fn assert_goes_on(service: u16, visitor: &mut Visitor, path: &str, status: u16, data: &str) {
    let mut before = visitor.clone();
    let answer = visitor.view(&service, path).await;
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(answer.cookie().is_some(), "{answer:?}");
    assert_eq!(visitor.view(&service, "/show").await.body, data);
    assert_eq!(visitor.count(&service, "/").await, 2);
    assert_eq!(before.view(&service, "/").await.status, 503, "the old id is still of use");
}

#[tokio::test]
async fn a_page_that_fails_after_a_login_does_not_lose_the_session() {
    let redis = Redis::start();
    let service = serve_log_in(&redis.url()).await;
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&service, "/").await, 1);
    assert_goes_on(service, &mut visitor, "/log-in/70000", 507, r#"{"number":1}"#).await;
}

#[tokio::test]
async fn a_login_without_a_readable_reply_does_not_lose_the_session() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let service = serve_log_in(&proxy.url()).await;
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&service, "/").await, 1);
    // The call that ends the session under its old id.
    proxy.forge_reply(if redis.has_ifeq() { "IFEQ" } else { "EVALSHA" }, b":7\r\n");
    assert_goes_on(service, &mut visitor, "/log-in/0", 503, "{}").await;
}

#[tokio::test]
async fn the_first_view_is_kept_if_a_page_fails_to_save() {
    let redis = Redis::start();
    let settings = ["--redis-url", &redis.url()];
    let service = common::serve(&settings, |routes, sessions| {
        let page = async |session: Session, ViewCount(count): ViewCount| {
            session.insert("text", "x".repeat(70_000)).await?;
            let is_saved = session.save().await.is_ok();
            session.insert("text", "x").await?;
            Ok::<_, Error>(format!("{count}, saved: {is_saved}"))
        };
        routes.route("/page", counted(get(page), sessions))
    })
    .await;
    let mut visitor = Visitor::new();
    for view in 1..=2 {
        assert_eq!(visitor.view(&service, "/page").await.body, format!("{view}, saved: false"));
    }
}
