//! The service in this process, with pages that a test adds.

use axum::Router;
use clap::Parser;
use cloud_run_sessions::{
    config::Config,
    store::Store,
    web::{app, server, session::Sessions},
};
use tokio::{net::TcpListener, runtime::Handle};

/// Serves the application with these settings and pages. Returns the port.
pub async fn serve(settings: &[&str], add_pages: impl FnOnce(Router, &Sessions) -> Router) -> u16 {
    let settings = [&["cloud-run-sessions", "--rust-log=off"], settings].concat();
    let config = Config::try_parse_from(settings).unwrap();
    let runtime = Handle::current();
    let store = Store::open(&config, std::slice::from_ref(&runtime)).remove(0);
    let sessions = Sessions::new(&store, &config);
    let routes = add_pages(app::router(&store, &config), &sessions);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(server::serve(listener, vec![(runtime, app::service(routes))], std::future::pending()));
    port
}
