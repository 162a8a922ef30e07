//! Requests of one visitor that overlap.

use std::{sync::Barrier, thread};

use crate::{client::Visitor, programs::Server};

/// Requests that overlap.
pub const OVERLAPPING: usize = 1000;

/// Sends [`OVERLAPPING`] requests for `path` at once, equally many to each of these instances, and returns how many of
/// them the number on that page shows.
pub fn kept(path: &str, instances: &[&Server]) -> u64 {
    let mut connection = instances[0].connect();
    let mut visitor = Visitor::default();
    let before = visitor.view(&mut connection, path).number();
    let connections: Vec<_> = instances.iter().cycle().take(OVERLAPPING).map(|instance| instance.connect()).collect();
    let start = Barrier::new(OVERLAPPING);
    thread::scope(|scope| {
        for mut connection in connections {
            let (start, cookie) = (&start, visitor.cookie.as_deref());
            let request = move || {
                start.wait();
                // What is refused is not kept.
                let _ = connection.get(path, cookie);
            };
            thread::Builder::new().stack_size(64 * 1024).spawn_scoped(scope, request).unwrap();
        }
    });
    let after = visitor.view(&mut connection, path).number();
    // Without this last request.
    after - before - 1
}
