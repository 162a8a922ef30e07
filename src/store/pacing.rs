//! How many views the next call counts, and when it leaves: pure functions of what the last call did.
//!
//! While a call is in flight, arriving views wait for the next one. When Redis is near, a call counts about half
//! of all: Redis counts one half while this process answers the other. When Redis is far away, both halves
//! would only wait in turn, so a call counts all of them, and leaves after a short pause, in which visitors
//! who were just answered can ask again.

use std::time::Duration;

/// The most views in one call. Redis runs one command at a time, and is then busy for about 2 ms.
pub const MAX_BATCH: usize = 512;

/// A call that takes longer is slowed down by the network, or because Redis or this process is busy.
const SLOW: Duration = Duration::from_millis(4);

/// There is no pause after a larger batch: its views are cheap already, and this process is busy.
const MAX_PAUSING_BATCH: usize = 128;

/// The pause is this share of the time that the last call took.
const PAUSE_SHARE: u32 = 8;

/// The longest pause. The shortest that tokio's timer can do is one or two milliseconds.
const LONGEST_PAUSE: Duration = Duration::from_millis(4);

/// A call that was answered.
#[derive(Clone, Copy, Debug)]
pub struct LastCall {
    /// The views that it counted.
    pub batch: usize,
    /// The time until its reply was read and its views were answered.
    pub took: Duration,
}

impl LastCall {
    fn is_slow(self) -> bool {
        self.took > SLOW
    }
}

/// How many of the waiting views the next call counts; at least one, if any are waiting. `last` is the
/// call right before it, if that was answered.
pub fn batch_size(waiting: usize, last: Option<LastCall>) -> usize {
    let size = match last {
        // Halfway between the last batch and all, so that calls become similar.
        Some(last) if !last.is_slow() => (waiting + last.batch).div_ceil(2),
        _ => waiting,
    };
    size.min(waiting).min(MAX_BATCH)
}

/// How long the next call waits for more views.
pub fn pause(last: LastCall) -> Option<Duration> {
    let pauses = last.is_slow() && (2..=MAX_PAUSING_BATCH).contains(&last.batch);
    pauses.then(|| LONGEST_PAUSE.min(last.took / PAUSE_SHARE))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn call(batch: usize, millis: u64) -> LastCall {
        LastCall { batch, took: Duration::from_millis(millis) }
    }

    #[test]
    fn batch_sizes() {
        for (waiting, last, expected) in [
            (0, None, 0),
            (1, None, 1),
            (64, None, 64),
            (1000, None, MAX_BATCH),
            // Redis is near.
            (1, Some(call(1, 1)), 1),
            (63, Some(call(1, 1)), 32),
            (32, Some(call(32, 1)), 32),
            (10, Some(call(500, 1)), 10),
            (2000, Some(call(MAX_BATCH, 1)), MAX_BATCH),
            // Redis is far away.
            (63, Some(call(1, 5)), 63),
            (2000, Some(call(1, 5)), MAX_BATCH),
        ] {
            assert_eq!(batch_size(waiting, last), expected, "{waiting} after {last:?}");
        }
    }

    #[test]
    fn pauses() {
        for (last, expected) in [
            (call(64, 4), None),
            (call(1, 100), None),
            (call(2, 16), Some(2)),
            (call(MAX_PAUSING_BATCH, 16), Some(2)),
            (call(MAX_PAUSING_BATCH + 1, 16), None),
            (call(64, 1000), Some(4)),
        ] {
            assert_eq!(pause(last), expected.map(Duration::from_millis), "{last:?}");
        }
    }
}
