//! Warnings that do not flood the log.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tracing::{debug, warn};

const MINUTE: Duration = Duration::from_secs(60);

/// When each kind of problem was last logged.
static LOGGED: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());

/// The next problem of this kind is a warning, however recent the last one was.
pub fn warn_anew(kind: &str) {
    LOGGED.lock().remove(kind);
}

/// Warns at most once a minute per kind of problem; repeats go to debug.
pub fn warn_once_a_minute(kind: &str, problem: fmt::Arguments<'_>) {
    let now = Instant::now();
    let mut logged = LOGGED.lock();
    if logged.get(kind).is_some_and(|at| now - *at < MINUTE) {
        debug!("{problem}");
    } else {
        logged.insert(kind.to_owned(), now);
        warn!("{problem}");
    }
}
