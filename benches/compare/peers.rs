//! Other Rust programs: axum alone, and tower-sessions. Both as in their documentation, with tokio's
//! default runtime and a pool of six connections; and both tuned for a machine whose two cores they
//! share with wrk and Redis, with one thread and one connection.

use std::{collections::HashMap, env};

use axum::{Router, http::Uri, routing::get, serve::ListenerExt};
use fred::prelude::{Builder, ClientLike, Config};
use tokio::{net::TcpListener, runtime};
use tower_sessions::{Session, SessionManagerLayer};
use tower_sessions_redis_store::RedisStore;

use crate::own_pages::OWN_DATA;

/// Serves until the process is killed.
pub fn serve(peer: &str) {
    let mut runtime = match peer.ends_with("-tuned") {
        true => runtime::Builder::new_current_thread(),
        false => runtime::Builder::new_multi_thread(),
    };
    runtime.enable_all().build().unwrap().block_on(async {
        let app = match peer {
            "axum" | "axum-tuned" => axum_alone(),
            "tower-sessions" => tower_sessions(6).await,
            "tower-sessions-tuned" => tower_sessions(1).await,
            other => panic!("no peer {other}"),
        };
        let port: u16 = env::var("PORT").unwrap().parse().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        // Without it, delayed acknowledgements would hold up clients that pipeline.
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        axum::serve(listener, app).await.unwrap();
    });
}

/// Neither sessions nor Redis.
fn axum_alone() -> Router {
    Router::new().route("/", get(async || "you viewed this page 1 times"))
}

/// The session contains a map of views, which each request loads, changes and saves.
async fn tower_sessions(connections: usize) -> Router {
    let config = Config::from_url(&env::var("REDIS_URL").unwrap()).unwrap();
    let redis = Builder::from_config(config);
    let redis = redis.build_pool(connections).unwrap();
    redis.init().await.unwrap();
    let sessions = SessionManagerLayer::new(RedisStore::new(redis)).with_secure(false);
    let page = get(async |session: Session, uri: Uri| {
        let count = count(&session, uri.path()).await;
        format!("you viewed this page {count} times")
    });
    let read = get(async |session: Session, uri: Uri| {
        let count = count(&session, uri.path()).await;
        let number = session.get::<u64>("number").await.unwrap().unwrap_or_default();
        format!("you changed the number {number} times and viewed this page {count} times")
    });
    let change = get(async |session: Session, uri: Uri| {
        count(&session, uri.path()).await;
        let number = session.get::<u64>("number").await.unwrap().unwrap_or_default() + 1;
        session.insert("number", number).await.unwrap();
        format!("you changed the number {number} times")
    });
    let fill = get(async |session: Session, uri: Uri| {
        count(&session, uri.path()).await;
        session.insert("text", "x".repeat(OWN_DATA)).await.unwrap();
        "kept"
    });
    Router::new()
        .route("/", page.clone())
        .route("/foo", page.clone())
        .route("/bar", page)
        .route("/read", read)
        .route("/change", change)
        .route("/fill", fill)
        .layer(sessions)
}

/// Counts a view of this path.
async fn count(session: &Session, path: &str) -> u64 {
    let views = session.get::<HashMap<String, u64>>("views").await.unwrap();
    let mut views = views.unwrap_or_default();
    let count = views.entry(path.to_owned()).or_default();
    *count += 1;
    let count = *count;
    session.insert("views", views).await.unwrap();
    count
}
