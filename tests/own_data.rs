//! Promise: a developer's own page, added as the README does, keeps its data in the session, and
//! neither that data nor the views disturb each other.

use axum::{Extension, extract::Path, routing::get};
use clap::Parser;
use cloud_run_sessions::{
    app::{self, counted},
    config::Config,
    error::Error,
    server, session,
    store::Store,
    views::ViewCount,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_sessions::Session;

use crate::common::{Redis, Visitor, session_id};

/// All that a session can hold.
fn values() -> Vec<Value> {
    vec![
        json!("text, Ünïcödé and \"quotes\" / \u{1F980} \u{0}"),
        json!("x".repeat(70_000)),
        json!([0, -1, 1.5, u64::MAX, i64::MIN, 1e300]),
        json!([null, true, false, [], {}, [[[[]]]]]),
        json!({"1": "/bar", "": {"a": {"b": {"c": [1, {"d": null}]}}}}),
        json!((0..1000).collect::<Vec<_>>()),
        json!(null),
    ]
}

/// Keeps a value, and tells the views.
async fn keep(
    session: Session,
    Path(index): Path<usize>,
    Extension(ViewCount(count)): Extension<ViewCount>,
) -> Result<String, Error> {
    session.insert("kept", &values()[index]).await?;
    Ok(format!("you viewed this page {count} times"))
}

/// Tells what is kept.
async fn kept(session: Session) -> Result<String, Error> {
    let kept: Option<Value> = session.get("kept").await?;
    Ok(json!(kept).to_string())
}

/// Ends the session.
async fn leave(session: Session) -> Result<&'static str, Error> {
    session.flush().await?;
    Ok("gone")
}

/// Begins the session anew, as one does at a login.
async fn begin(session: Session) -> Result<String, Error> {
    session.flush().await?;
    session.insert("begun", true).await?;
    Ok("begun".to_owned())
}

/// Gives the session another id, as one does at a login that keeps what there is.
async fn cycle(
    session: Session,
    Extension(ViewCount(count)): Extension<ViewCount>,
) -> Result<String, Error> {
    session.cycle_id().await?;
    Ok(format!("you viewed this page {count} times"))
}

/// Takes what is kept for a number.
async fn number(session: Session) -> Result<String, Error> {
    let number: Option<u64> = session.get("kept").await?;
    Ok(json!(number).to_string())
}

/// Serves the service with these pages and gives its port.
async fn serve(settings: &[&str]) -> u16 {
    let settings = [&["cloud-run-sessions", "--rust-log=off"], settings].concat();
    let config = Config::try_parse_from(settings).unwrap();
    let store = Store::open(&config);
    let app = app::router(&store, &config)
        .route("/keep/{index}", counted(get(keep), &store, &config))
        .route("/kept", counted(get(kept), &store, &config))
        .route("/number", counted(get(number), &store, &config))
        .route(
            "/begin",
            get(begin).route_layer(session::layer(&store, &config)),
        )
        .route("/cycle", counted(get(cycle), &store, &config))
        .route("/leave", counted(get(leave), &store, &config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(server::serve(listener, app, std::future::pending()));
    port
}

async fn assert_kept_beside_views(service: u16, first_is_kept: bool) {
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
            assert_eq!(
                visitor.count(&service, "/").await,
                roots,
                "with {value} kept"
            );
            keeps += 1;
            assert_eq!(
                visitor.count(&service, &keep).await,
                keeps,
                "with {value} kept"
            );
            let kept = visitor.view(&service, "/kept").await;
            assert_eq!(kept.body, value.to_string());
        }
    }
}

#[tokio::test]
async fn own_data_and_views_live_side_by_side() {
    let redis = Redis::start();
    let redis = serve(&["--redis-url", &redis.url()]).await;
    let memory = serve(&[]).await;
    for service in [redis, memory] {
        for first_is_kept in [false, true] {
            assert_kept_beside_views(service, first_is_kept).await;
        }
    }
}

#[tokio::test]
async fn what_goes_wrong_on_an_added_page_is_told_as_on_all_others() {
    let service = serve(&[]).await;
    let mut visitor = Visitor::new();
    visitor.count(&service, "/keep/0").await;
    let answer = visitor.view(&service, "/number").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("please try again"), "{answer:?}");
    for (name, value) in [("retry-after", "1"), ("cache-control", "no-store")] {
        assert_eq!(answer.header(name), Some(value), "{answer:?}");
    }
}

#[tokio::test]
async fn a_session_that_its_visitor_leaves_is_gone_with_its_views() {
    let redis = Redis::start();
    let on_redis = serve(&["--redis-url", &redis.url()]).await;
    let memory = serve(&[]).await;
    for service in [on_redis, memory] {
        let mut visitor = Visitor::new();
        visitor.view(&service, "/").await;
        visitor.view(&service, "/").await;
        let cookie = visitor.cookie.clone().unwrap();
        assert_eq!(visitor.view(&service, "/leave").await.body, "gone");
        assert_eq!(redis.keys(), [""; 0], "of {}", session_id(&cookie));
        visitor.cookie = Some(cookie.clone());
        assert_eq!(visitor.count(&service, "/").await, 1);
        assert_ne!(visitor.cookie, Some(cookie));
        redis.cli(&["FLUSHALL"]);
    }
}

#[tokio::test]
async fn a_session_that_begins_anew_does_not_take_the_id_that_was_offered() {
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
async fn another_id_begins_the_views_anew_and_keeps_the_data() {
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
            assert_eq!(
                visitor.view(&service, "/kept").await.body,
                values()[0].to_string()
            );
            for path in ["/", "/keep/0"] {
                assert_eq!(
                    visitor.count(&service, path).await,
                    1,
                    "{path} after {first}"
                );
            }
        }
    }
}
