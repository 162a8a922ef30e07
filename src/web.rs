//! HTTP: everything between a client's connection and the store.

pub mod app;
mod connections;
pub mod error;
mod forwarded;
pub mod health;
mod host;
mod leftover;
pub mod page;
pub mod pages;
pub mod server;
pub mod session;
pub mod views;
