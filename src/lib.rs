//! A web service for Cloud Run and other container platforms that counts page views per visitor. It keeps sessions in
//! Redis, and loses no view and no change.
//!
//! # Layout
//! [`program`] runs everything. [`web`] is built on [`store`], and both on [`config`] and [`warnings`]. [`logging`]
//! formats the log, with the [`trace`] that `web` finds in a request, and [`output`] writes it. Nothing imports in the
//! other direction. In the order in which to read them:
//!
//! - `main.rs` and [`program`]: the program, from its settings to its end, and its threads.
//!
//! A request's way:
//! - [`web::app`]: every route, and what surrounds each request.
//! - `web/cookie.rs` reads and makes the cookie.
//! - One of two middlewares: that of [`web::counting`] counts the view, that of [`web::session`] does not. Either way,
//!   [`web::session`] gives the page its session, then saves it and sets the cookie.
//! - [`web::pages`], the handlers, and [`web::format`], which renders what they say. With the types in
//!   [`web::route_state`], a handler that takes an `AtomicSession` or a `ViewCount` compiles only on a route that
//!   provides it. A handler that takes tower-sessions' plain `Session` compiles anywhere, and fails at run time where
//!   there is none.
//! - `web/request_store.rs` is what tower-sessions' `Session` is stored in. [`web::atomic_session`] is for changes that
//!   overlapping requests do not undo.
//! - [`web::error`]: the status code and text of each error. [`web::health`]: the probes.
//!
//! The sessions:
//! - [`store`]: sessions, wherever they live. [`store::change`]: what may be done to one.
//! - [`store::contents`]: what a session holds, and its form in Redis. [`store::ttl`]: how long it lives.
//! - [`store::committer`]: changing sessions in Redis, and why each change is applied once. It is built on
//!   [`store::compare_and_set`], with its script. `pacing.rs` decides how many sessions share a call, `remembered.rs`
//!   keeps the values that were written or read last, `retry.rs` sends again.
//! - `store/redis_link.rs` sends commands, and reconnects. `redis_client.rs` makes and checks one connection,
//!   `addresses.rs` finds the address that answers, `rejection.rs` knows what stops the program at its start.
//!   `error.rs`: what can fail.
//! - `store/memory.rs`: sessions in this process, without Redis.
//!
//! HTTP below the routes:
//! - [`web::server`]: listener, limits and shutdown. `web/connections.rs` decides which connections may stay, from what
//!   `activity.rs` knows of each; `response_body.rs` tells it what clients have taken. `client_stream.rs` and
//!   `request_body.rs`: what clients send and no page reads.
//! - `web/host.rs`, `plain_http.rs` and `cross_site.rs`: what a request says of its host, its protocol and the site that
//!   it comes from.
//!
//! What is `pub` is for the program, for services that are built on it as in `examples/`, and for the tests.
//!
//! `profile/` applies profile-guided optimization to the image's program.
//!
//! # Rules
//! - Only [`store::contents`] knows a value's format; the script knows how a value begins. Pages cannot reach the
//!   service's own entry in it.
//! - All that changes a session goes through [`store::Store`], as a function from what it holds to what it is to hold.
//! - Only `store/error.rs`, `store/rejection.rs` and the script read the texts of Redis's and fred's errors.
//! - Nothing in `store/` knows HTTP.
//! - A request stays on its connection's thread. What threads share is atomic, or behind a lock that is held for moments.
//!
//! # Words
//! - *Visitor*: somebody with a browser. *Client*: what they connect with.
//! - *View*: a request, usually a `GET`, that a counted page handles. *Count*: the number of a session's views of one
//!   path.
//! - *Session*: what the cookie's id names. *Value*: the session as Redis holds it, a record of tower-sessions.
//!   *Contents*: the value, decoded. *Own data*: the part of the contents that pages keep.
//! - *Change*: a function from what a session holds to what it holds next. *Write*: changes of one session that are
//!   stored together.
//! - *Request* and *response* are HTTP's, *command* and *reply* Redis's.
//! - *Call*: the writes of one or more sessions that are sent together. *Attempt*: one sending of it.
//! - *Ended session*: one that a page has ended, or that goes on under another id; a *tombstone* is left for a while.
//! - *Connection*: in `web/`, a client's. *Link*: a thread's handle to Redis, which reconnects forever.
//! - *Instance*: a process of the service, with a thread for each core, at most 16.
//! - *Renew*: give a session its full time to live.

pub mod config;
pub mod logging;
pub mod output;
pub mod program;
pub mod store;
pub mod trace;
pub mod warnings;
pub mod web;

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
