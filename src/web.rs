//! HTTP: everything between a client's connection and the store.

mod activity;
pub mod app;
pub mod atomic_session;
mod connections;
mod cookie;
mod cross_site;
mod drain;
pub mod error;
pub mod format;
mod forwarded;
pub mod health;
mod host;
pub mod page_state;
pub mod pages;
mod request_store;
pub mod server;
pub mod session;
pub mod views;
