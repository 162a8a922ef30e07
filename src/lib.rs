//! Counts page views per visitor, exactly, in sessions kept in Redis: a web service for Cloud Run and every other
//! place that runs containers.
//!
//! # Layout
//! [`web`] is built on [`store`], and both on [`telemetry`] and [`config`]; the log goes to [`output`]. No import runs
//! the other way. In the order in which to read them:
//!
//! 1. `main.rs`: the program, from its settings to its end.
//! 2. [`web::app`]: every route, and what surrounds each request. A request passes through
//!    - [`web::session`], which reads the cookie and gives the session,
//!    - [`web::views`], the middleware that counts the view, and
//!    - [`web::pages`], the handlers; [`web::page`] renders what they say.
//! 3. [`store`]: sessions and their counts, wherever they live.
//!    - `store/redis.rs` and `store/memory.rs`: in Redis, and in this process.
//!    - [`store::committer`]: counting in Redis, and why each view is counted once; `count_views.lua` is its other
//!      half, `pacing.rs` decides how many views share a call.
//!    - [`store::lifetime`]: how long a session lives, and why most views need not renew it.
//!    - `store/connection.rs`: connecting; `store/script.rs`: running scripts; `store/retry.rs`: sending again, and
//!      until when; `store/keys.rs`: the keys in Redis; `store/error.rs`: reading the error texts of Redis and fred.
//! 4. [`web::error`]: each failure's status and words; [`web::server`]: listener, limits and shutdown, for any
//!    service; `web/connections.rs`: which connections may stay; `web/leftover.rs`: what clients send and no page
//!    reads; `web/host.rs` and `web/forwarded.rs`: what a request says of its host and its proxies; [`web::health`],
//!    [`config`], [`telemetry`] and [`output`].
//!
//! `.cargo/` optimizes release builds by a profile of the program under load; `benches/profile` makes it.
//!
//! # Rules
//! - Only `count_views.lua` counts in Redis. Outside `store/`, only [`web::views`] knows that a first view is number 1.
//! - Only `store/keys.rs` knows the names of keys. Only `store/error.rs` and the scripts read texts of errors.
//! - Nothing in `store/` knows HTTP.
//! - Every time to live in Redis comes from `store/lifetime.rs`, also those in the scripts.
//!
//! # Words
//! - *Visitor*: somebody with a browser. *Client*: what they connect with.
//! - *View*: a request, usually a `GET`, that a counted page handles. *Count*: the number of a session's views of one
//!   path.
//! - *Session*: a *record*, which is tower-sessions' data, and its *counts*, a hash beside it from path to count.
//! - *Request* and *response* are HTTP's, *command* and *reply* Redis's.
//! - *Batch*: the views in one call. *Call*: one batch for `count_views.lua`, under one number. *Attempt*: one sending
//!   of a call. *Lane*: the sequence of calls that share one reply key. *Queue*: the views that can share a call; they
//!   leave through one to four lanes.
//! - *Connection*: the handle to Redis, which reconnects for ever. *Link*: the fred client that it uses now.
//! - *Renew*: give a session's keys their full time to live. *Window*: how long that need not be done again.

pub mod config;
pub mod output;
pub mod store;
pub mod telemetry;
pub mod web;

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
