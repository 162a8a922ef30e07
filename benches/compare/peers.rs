//! What others do in Rust: axum alone, and tower-sessions as its documentation has it.
//!
//! Both run on one thread, as the service does: on two cores, which wrk and Redis share with it, that
//! was the faster runtime for each.

use std::{collections::HashMap, env};

use axum::{Router, extract::Request, routing::get};
use fred::prelude::{Builder, ClientLike, Config};
use tokio::{net::TcpListener, runtime};
use tower_sessions::{Session, SessionManagerLayer};
use tower_sessions_redis_store::RedisStore;

/// Serves until it is ended.
pub fn serve(peer: &str) {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(async {
        let app = match peer {
            "axum" => axum_alone(),
            "tower-sessions" => tower_sessions().await,
            other => panic!("no peer {other}; allowed: axum, tower-sessions"),
        };
        let port: u16 = env::var("PORT").unwrap().parse().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        axum::serve(listener, app).await.unwrap();
    });
}

/// No session, no Redis.
fn axum_alone() -> Router {
    Router::new().route("/", get(async || "you viewed this page 1 times"))
}

/// The map of views in the session: read, changed, written back.
async fn tower_sessions() -> Router {
    let config = Config::from_url(&env::var("REDIS_URL").unwrap()).unwrap();
    let redis = Builder::from_config(config).build().unwrap();
    redis.init().await.unwrap();
    let sessions = SessionManagerLayer::new(RedisStore::new(redis)).with_secure(false);
    let page = get(async |session: Session, request: Request| {
        let path = request.uri().path().to_owned();
        let views = session.get::<HashMap<String, u64>>("views").await.unwrap();
        let mut views = views.unwrap_or_default();
        let count = views.entry(path).or_default();
        *count += 1;
        let sentence = format!("you viewed this page {count} times");
        session.insert("views", views).await.unwrap();
        sentence
    });
    Router::new()
        .route("/", page.clone())
        .route("/foo", page.clone())
        .route("/bar", page)
        .layer(sessions)
}
