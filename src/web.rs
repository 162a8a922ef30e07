//! HTTP: everything between a client's connection and the store.

pub mod app;
pub mod atomic_session;
mod connections;
mod cookie;
mod cross_site;
pub mod error;
pub mod format;
mod forwarded;
pub mod health;
mod host;
mod leftover;
pub mod pages;
mod request_store;
pub mod server;
pub mod session;
pub mod views;
