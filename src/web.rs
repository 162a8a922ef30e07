//! HTTP: everything between a client's connection and the store.

mod activity;
pub mod app;
pub mod atomic_session;
mod client_stream;
mod connections;
mod cookie;
pub mod counting;
mod cross_site;
pub mod error;
pub mod format;
pub mod health;
mod host;
pub mod pages;
mod plain_http;
mod request_body;
mod request_store;
mod response_body;
pub mod route_state;
pub mod server;
pub mod session;
