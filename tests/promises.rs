//! The promises of the service, one file each, tested with the real program and real Redis servers; and the simulation.
//!
//! One test binary: linked once, and all tests run in parallel.

mod common;

/// Each view and each change counts exactly once, at a known cost.
mod counting {
    mod commands;
    mod concurrent;
    mod exactly_once;
    mod forms;
    mod group_commit;
    mod model;
}

/// What a session holds, and when it begins and ends.
mod sessions {
    mod cookie;
    mod full_sessions;
    mod lifetime;
    mod logins;
    mod memory_bound;
    mod own_data;
    mod records;
    mod steps;
    mod updates;
}

/// Requests and connections, also those of clients that mean harm.
mod http {
    mod attacks;
    mod hosts;
    mod malformed;
    mod pages;
    mod routes;
    mod timeouts;
    mod unread_input;
}

/// Redis alone, in a Cluster, behind Sentinel and over TLS: when it fails, refuses, or replies nonsense.
mod redis {
    mod cluster;
    mod outages;
    mod refused;
    mod replies;
    mod sentinel;
    mod tls;
}

/// The process: its settings, its log, its start and its end, and what Cloud Run asks of it.
mod platform {
    mod cloud_run;
    mod logs;
    mod settings;
    mod shutdown;
    mod threads;
    mod unread_log;
}

/// The page in a real browser.
mod browser {
    mod accessible;
    mod navigation;
    mod pictures;
}

/// The protocol in a deterministic world.
mod simulation;
