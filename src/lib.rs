//! Page views per visitor, counted exactly, in sessions kept in Redis: a web service for Cloud Run
//! and every other place that runs containers.
//!
//! # Layout
//! A request flows one way: router → session layer → `count_views` → page.
//!
//! - [`config`]: every setting, one struct, from the environment.
//! - [`app`]: what is done with each request, and every route of the service, on one screen.
//! - [`session`]: the session layer, its cookie.
//! - [`views`]: the middleware that counts a view, and the count that a page reads.
//! - [`pages`]: the sentence, as text or as a page.
//! - [`store`]: where sessions and their views live, Redis or this process; time to live.
//! - [`error`]: what a visitor is told when something is wrong.
//! - [`health`]: whether the process serves, whether its store answers.
//! - [`server`]: listener, HTTP timeouts, graceful shutdown.
//! - [`telemetry`]: logs, readable on a terminal, Cloud Logging's JSON on Cloud Run.

pub mod app;
pub mod config;
pub mod error;
pub mod health;
pub mod pages;
pub mod server;
pub mod session;
pub mod store;
pub mod telemetry;
pub mod views;

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
