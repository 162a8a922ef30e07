//! The service with more pages, which keep data of their own in the session: its library as anybody would use it. The
//! peers have the same pages.

use axum::routing::get;
use clap::Parser;
use cloud_run_sessions::{
    config::Config,
    store::Store,
    web::{
        app::{self, counted},
        atomic_session::AtomicSession,
        counting::ViewCount,
        error::Error,
        server,
        session::Sessions,
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
        let runtime = runtime::Handle::current();
        let store = Store::open(&config, std::slice::from_ref(&runtime)).remove(0);
        store.connected().await.unwrap();
        let sessions = Sessions::new(&store, &config);
        let routes = app::router(&store, &config)
            .route("/read", counted(get(read), &sessions))
            .route("/change", counted(get(change), &sessions))
            .route("/fill", counted(get(fill), &sessions));
        let listener = TcpListener::bind(("127.0.0.1", config.port)).await.unwrap();
        server::serve(listener, vec![(runtime, app::service(routes))], std::future::pending()).await;
    });
}

/// Reads the session's number.
async fn read(session: Session, ViewCount(count): ViewCount) -> Result<String, Error> {
    let number: u64 = session.get(NUMBER).await?.unwrap_or_default();
    Ok(format!("you changed the number {number} times and viewed this page {count} times"))
}

/// Adds one to the session's number.
async fn change(session: AtomicSession) -> Result<String, Error> {
    let number = session
        .update(NUMBER, |number: &mut u64| {
            *number += 1;
            *number
        })
        .await?;
    Ok(format!("you changed the number {number} times"))
}

/// Keeps [`OWN_DATA`] bytes in the session.
async fn fill(session: Session) -> Result<&'static str, Error> {
    session.insert("text", "x".repeat(OWN_DATA)).await?;
    Ok("kept")
}
