//! How many sessions the next call writes, when it leaves, and how many calls are in flight: pure functions of what the
//! last call did and of how many sessions wait. A session may have several views in its write.
//!
//! Views that share a call cost fewer commands. So, as a rule, one call is in flight, and arriving views wait for the
//! next. There are three cases:
//!
//! - Redis is far away: a call writes all that wait. After a call of some size there is a short pause, in which the
//!   visitors whom it answered can ask again.
//! - Redis is near: a call writes about half of all, so that Redis works on one half while the visitors of the other
//!   are answered and ask again.
//! - Redis is next door, and few views wait: most of a call's time passes on the way, while neither Redis nor this
//!   process has anything to do. So several calls are in flight. They are smaller, and cost more commands per view; but
//!   a service that bills commands is usually further away.

use std::{ops::RangeInclusive, time::Duration};

/// The most sessions in one call. Redis runs one command at a time, and such a one for about 2 ms.
pub const MAX_BATCH: usize = 512;

/// A call whose old and new values have this many bytes takes no further session. Upstash takes [10 MB in one
/// request](https://upstash.com/docs/redis/troubleshooting/max_request_size_exceeded), and the smallest instance of Cloud
/// Run has 128 MiB.
pub const MAX_CALL_BYTES: usize = 2_000_000;

/// The most calls of a queue in flight.
const MAX_CALLS: usize = 4;

/// Redis is next door if a call takes no longer. Within a zone, a round trip takes 0.1 to 0.3 ms.
const NEXT_DOOR: Duration = Duration::from_micros(500);

/// With larger batches, one call at a time keeps Redis and this process busy.
const MAX_SMALL_BATCH: usize = 8;

/// A call that takes longer is slowed down by the network, or because Redis or this process is busy.
const SLOW: Duration = Duration::from_millis(4);

/// There is a pause only after a call of this many sessions. After smaller ones, on average not even one view would
/// come in an eighth of the call's time. After larger ones, views are cheap already, and this process is busy.
const PAUSING_BATCHES: RangeInclusive<usize> = PAUSE_SHARE as usize..=128;

/// The pause is this share of the time that the last call took.
const PAUSE_SHARE: u32 = 8;

/// The longest pause. The shortest that tokio's timer can do is one or two milliseconds.
const LONGEST_PAUSE: Duration = Duration::from_millis(4);

/// A call that was answered.
#[derive(Clone, Copy, Debug)]
pub struct LastCall {
    /// The sessions that it wrote.
    pub batch: usize,
    /// The time until its reply was read.
    pub took: Duration,
}

impl LastCall {
    fn is_slow(self) -> bool {
        self.took > SLOW
    }

    /// Whether most of its time passed on the way.
    fn leaves_redis_idle(self) -> bool {
        self.took <= NEXT_DOOR && self.batch <= MAX_SMALL_BATCH
    }
}

/// How many calls may be in flight. `last` is the last call that was answered.
pub fn max_calls(last: Option<LastCall>) -> usize {
    match last {
        Some(last) if last.leaves_redis_idle() => MAX_CALLS,
        _ => 1,
    }
}

/// How many of the waiting sessions the next call writes; at least one, if any are waiting. `last` is as above.
pub fn batch_size(waiting: usize, last: Option<LastCall>) -> usize {
    let size = match last {
        // Halfway between the last batch and all, so that calls become similar.
        Some(last) if !last.is_slow() && !last.leaves_redis_idle() => (waiting + last.batch).div_ceil(2),
        _ => waiting,
    };
    size.min(waiting).min(MAX_BATCH)
}

/// How long to wait for more views before the next call.
pub fn pause(last: LastCall) -> Option<Duration> {
    let pauses = last.is_slow() && PAUSING_BATCHES.contains(&last.batch);
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
            (15, Some(call(1, 1)), 8),
            (63, Some(call(1, 1)), 32),
            (32, Some(call(32, 1)), 32),
            (10, Some(call(500, 1)), 10),
            (2000, Some(call(MAX_BATCH, 1)), MAX_BATCH),
            // Redis is next door.
            (15, Some(call(1, 0)), 15),
            (16, Some(call(MAX_SMALL_BATCH + 1, 0)), 13),
            // Redis is far away.
            (63, Some(call(1, 5)), 63),
            (2000, Some(call(1, 5)), MAX_BATCH),
        ] {
            assert_eq!(batch_size(waiting, last), expected, "{waiting} after {last:?}");
        }
    }

    #[test]
    fn calls_in_flight() {
        let took = |took| Some(LastCall { batch: 1, took });
        for (last, expected) in [
            (None, 1),
            (took(NEXT_DOOR), MAX_CALLS),
            (took(NEXT_DOOR + Duration::from_nanos(1)), 1),
            (Some(call(1, 0)), MAX_CALLS),
            (Some(call(MAX_SMALL_BATCH, 0)), MAX_CALLS),
            (Some(call(MAX_SMALL_BATCH + 1, 0)), 1),
            (Some(call(1, 1)), 1),
        ] {
            assert_eq!(max_calls(last), expected, "{last:?}");
        }
    }

    #[test]
    fn pauses() {
        for (last, expected) in [
            (call(64, 4), None),
            (call(1, 100), None),
            (call(7, 16), None),
            (call(8, 16), Some(2)),
            (call(128, 16), Some(2)),
            (call(129, 16), None),
            (call(64, 1000), Some(4)),
        ] {
            assert_eq!(pause(last), expected.map(Duration::from_millis), "{last:?}");
        }
    }
}
