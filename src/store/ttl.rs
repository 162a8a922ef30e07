//! How long sessions live.

use std::time::{Duration, UNIX_EPOCH};

use fred::bytes::Bytes;
use time::OffsetDateTime;
use tower_sessions::session::Id;

use super::{contents::Contents, error::Error, retry::DEADLINE};

/// How long an ended session's id is remembered: longer than requests with it can be in flight.
pub const ENDED_TTL: Duration = Duration::from_secs(30);

/// How long sessions live.
///
/// Every write of a session gives it its time to live again, counted by Redis from the write's arrival. The setting
/// counts from the answer, which comes at most [`DEADLINE`] later. Therefore [`DEADLINE`] is added to it. A session's age
/// is counted by the clocks of the instances.
#[derive(Clone, Copy, Debug)]
pub struct SessionTtl {
    idle: Duration,
    max_age: Option<Duration>,
}

/// This moment by this instance's clock, in seconds since 1970.
pub fn unix_time() -> i64 {
    UNIX_EPOCH.elapsed().unwrap_or_default().as_secs() as i64
}

impl SessionTtl {
    /// For sessions that live for `idle` at least after the answer to their last view or save, and for `max_age` at most
    /// after they have begun.
    pub fn new(idle: Duration, max_age: Option<Duration>) -> Self {
        Self { idle: idle + DEADLINE, max_age }
    }

    /// The longest time to live that a write gives a session.
    pub fn longest(self) -> Duration {
        self.idle
    }

    /// The value of a session that is written now, and its time to live; none if it has reached its maximum
    /// age. If there is such an age, and the session does not know when it began, it begins now.
    ///
    /// # Errors
    /// As for [`Contents::encode`].
    pub fn encode(self, id: &Id, contents: &mut Contents, now: i64) -> Result<Option<(Bytes, Duration)>, Error> {
        if self.max_age.is_some() {
            contents.begun.get_or_insert(now);
        }
        let Some(left) = self.left(contents, now) else { return Ok(None) };
        // Nobody reads a fraction of a second, and it would take four bytes more in Redis.
        let expiry = OffsetDateTime::from_unix_timestamp(now + left.as_secs() as i64).map_err(|_| Error::Unreadable)?;
        Ok(Some((contents.encode(id, expiry)?, left)))
    }

    /// The time that a session has to live if it is written now; none if it has reached its maximum age.
    fn left(self, contents: &Contents, now: i64) -> Option<Duration> {
        if contents.is_ended {
            return Some(ENDED_TTL);
        }
        let (Some(max_age), Some(begun)) = (self.max_age, contents.begun) else { return Some(self.idle) };
        let age = Duration::from_secs(now.saturating_sub(begun).max(0).unsigned_abs());
        max_age.checked_sub(age).filter(|left| !left.is_zero()).map(|left| left.min(self.idle))
    }

    /// Whether the session of this value lives now.
    ///
    /// # Errors
    /// [`Error::Ended`] if it was ended; [`Error::Unreadable`].
    pub fn lives(self, id: &Id, value: &[u8], now: i64) -> Result<bool, Error> {
        let contents = Contents::decode(id, value)?;
        if contents.is_ended { Err(Error::Ended) } else { Ok(self.left(&contents, now).is_some()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn left(ttl: SessionTtl, begun: Option<i64>, now: i64) -> Option<u64> {
        let mut contents = Contents::default();
        contents.begun = begun;
        ttl.left(&contents, now).map(|left| left.as_secs())
    }

    #[test]
    fn a_session_has_a_maximum_age_if_there_is_one() {
        let idle = SessionTtl::new(HOUR, None);
        let aged = SessionTtl::new(HOUR, Some(24 * HOUR));
        for (ttl, begun, now, expected) in [
            (idle, None, 1_000_000, Some(3602)),
            (idle, Some(0), 1_000_000, Some(3602)),
            (aged, None, 1_000_000, Some(3602)),
            (aged, Some(0), 0, Some(3602)),
            (aged, Some(0), 86_400 - 7200, Some(3602)),
            (aged, Some(0), 86_400 - 1800, Some(1800)),
            (aged, Some(0), 86_399, Some(1)),
            (aged, Some(0), 86_400, None),
            (aged, Some(0), 1_000_000, None),
            // Another instance's clock is ahead.
            (aged, Some(60), 0, Some(3602)),
            (aged, Some(i64::MIN), 0, None),
            (aged, Some(i64::MAX), 0, Some(3602)),
        ] {
            assert_eq!(left(ttl, begun, now), expected, "{ttl:?}, begun {begun:?}, now {now}");
        }
    }

    #[test]
    fn a_value_says_when_it_ends() {
        let ttl = SessionTtl::new(HOUR, Some(2 * HOUR));
        let now = unix_time();
        for (age, is_ended, expected) in [
            (Some(0), false, Some(ttl.longest())),
            (Some(5400), false, Some(HOUR / 2)),
            (Some(7200), false, None),
            (None, true, Some(ENDED_TTL)),
        ] {
            let begun = age.map(|age| now - age);
            let mut contents = Contents::default();
            (contents.is_ended, contents.begun) = (is_ended, begun);
            let encoded = ttl.encode(&Id(1), &mut contents, now).unwrap();
            assert_eq!(encoded.as_ref().map(|(_, left)| *left), expected, "{age:?}");
            let Some((value, left)) = encoded else { continue };
            let ends = rmp_serde::from_slice::<tower_sessions::session::Record>(&value).unwrap().expiry_date;
            // In whole seconds.
            assert_eq!(ends.unix_timestamp_nanos(), i128::from(now + left.as_secs() as i64) * 1_000_000_000, "{age:?}");
            let lives = |begun_ago| ttl.lives(&Id(1), &value, now + begun_ago);
            match is_ended {
                true => assert_eq!(lives(0), Err(Error::Ended)),
                false => assert_eq!((lives(0), lives(7200)), (Ok(true), Ok(false))),
            }
        }
        assert_eq!(ttl.longest(), HOUR + DEADLINE);
    }
}
