//! What the service promises, one file each, tried on the real program beside real Redis servers.
//!
//! They are one program, so that it is built and linked once and all of them run side by side.

mod common;

mod accessible;
mod bounded;
mod browser;
mod cloud_run;
mod cluster;
mod commands;
mod exact;
mod exactly_once;
mod group_commit;
mod hostile;
mod lifetime;
mod logs;
mod model;
mod outages;
mod own_data;
mod pages;
mod pictures;
mod refused;
mod script;
mod sentinel;
mod sessions;
mod settings;
mod shutdown;
mod timeouts;
mod tls;
mod unavailable;
