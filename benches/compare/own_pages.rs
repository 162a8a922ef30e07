//! The service with more pages, which keep data of their own in the session: its library as anybody would use it. The
//! peers have the same pages.

use axum::{Extension, routing::get};
use clap::Parser;
use cloud_run_sessions::{
    config::Config,
    store::Store,
    web::{
        app::{self, counted},
        error::Error,
        server,
        views::ViewCount,
    },
};
use tokio::{net::TcpListener, runtime};
use tower_sessions::Session;

/// Bytes of own data that a page keeps in the session.
pub const OWN_DATA: usize = 4000;

/// The session's key of a number that [`read`] shows and [`change`] raises.
const NUMBER: &str = "number";

/// Serves on `PORT` until the process is killed, with the settings in the environment.
pub fn serve() {
    let config = Config::try_parse_from(["cloud-run-sessions", "--rust-log=off"]).unwrap();
    runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let store = Store::open(&config);
        store.connected().await.unwrap();
        let routes = app::router(&store, &config)
            .route("/read", counted(get(read), &store, &config))
            .route("/change", counted(get(change), &store, &config))
            .route("/fill", counted(get(fill), &store, &config));
        let listener = TcpListener::bind(("127.0.0.1", config.port)).await.unwrap();
        server::serve(listener, app::service(routes), std::future::pending()).await;
    });
}

/// Reads the session's number.
async fn read(session: Session, Extension(ViewCount(count)): Extension<ViewCount>) -> Result<String, Error> {
    let number: u64 = session.get(NUMBER).await?.unwrap_or_default();
    Ok(format!("you changed the number {number} times and viewed this page {count} times"))
}

/// Adds one to the session's number.
async fn change(session: Session) -> Result<String, Error> {
    let number = add_one(&session).await?;
    Ok(format!("you changed the number {number} times"))
}

/// Adds one to the session's number, and returns it.
async fn add_one(session: &Session) -> Result<u64, Error> {
    let number = session.get(NUMBER).await?.unwrap_or(0) + 1;
    session.insert(NUMBER, number).await?;
    Ok(number)
}

/// Keeps [`OWN_DATA`] bytes in the session.
async fn fill(session: Session) -> Result<&'static str, Error> {
    session.insert("text", "x".repeat(OWN_DATA)).await?;
    Ok("kept")
}
