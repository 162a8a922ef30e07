//! The promises of the service, one file each, tested with the real program and real Redis servers.
//!
//! One test binary: linked once, and all tests run in parallel.

mod common;

mod accessible;
mod attacks;
mod bodies;
mod bounded;
mod browser;
mod cloud_run;
mod cluster;
mod commands;
mod exact;
mod exactly_once;
mod forms;
mod full_sessions;
mod group_commit;
mod hostile;
mod hosts;
mod lifetime;
mod logins;
mod logs;
mod model;
mod outages;
mod own_data;
mod pages;
mod pictures;
mod records;
mod refused;
mod replies;
mod sentinel;
mod sessions;
mod settings;
mod shutdown;
mod simulation;
mod timeouts;
mod tls;
mod unread;
mod updates;
