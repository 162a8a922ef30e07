//! How long sessions live in Redis, and which of them an instance need not renew for now.
//!
//! A session lives at least `SESSION_TTL` after its last view or save. Renewing it with each view would cost
//! two commands a view. So its keys live longer by a *window*, and an instance that has renewed a session within
//! the window does not renew it again. Times to live are relative and counted by Redis, so the instances' clocks
//! may show any time.
//!
//! Why this is long enough: an instance may skip the renewal of a session if it renewed it at most a window ago. It
//! answers that view at most [`DEADLINE`] later. So when the view is answered, the keys' time to live was set at most
//! `window + DEADLINE` ago, give or take `DRIFT` between the clocks; and the counts end [`MARGIN`] before the record.

use std::{collections::HashSet, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use tower_sessions::session::Id;

use super::retry::DEADLINE;

/// How far the clocks of Redis and of an instance may drift apart over a window: 400 parts in a million of an
/// hour.
const DRIFT: Duration = Duration::from_millis(1500);

/// How much earlier than its record a session's counts end. Before version 7.2, Redis reads its clock for each
/// command inside a script; a script must not take longer than this.
pub const MARGIN: Duration = Duration::from_secs(1);

/// How long Redis keeps the reply to a lane's last call: longer than TCP can deliver a call late.
pub const REPLY_KEPT_FOR: Duration = Duration::from_secs(3600);

const _: () = assert!(REPLY_KEPT_FOR.as_secs() > 100 * DEADLINE.as_secs());

/// The longest window. Over a longer one the clocks would drift further apart, to save hardly anything.
const LONGEST_WINDOW: Duration = Duration::from_secs(3600);

/// The window's share of the time to live.
const WINDOW_SHARE: u32 = 24;

const _: () = assert!(LONGEST_WINDOW.as_millis() / 2500 <= DRIFT.as_millis());

/// The most sessions that an instance remembers: what a hash table of 131,072 slots holds, in 2.2 MB.
const MAX_REMEMBERED: usize = 131_072 / 8 * 7;

/// How long a session's keys live.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    ttl: Duration,
}

impl Lifetime {
    /// For sessions that live at least this long after their last view.
    pub fn new(ttl: Duration) -> Self {
        Self { ttl }
    }

    /// How long a session that was renewed need not be renewed again.
    pub fn window(self) -> Duration {
        (self.ttl / WINDOW_SHARE).min(LONGEST_WINDOW)
    }

    /// How long a record lives after its renewal. Its counts end [`MARGIN`] earlier.
    pub fn of_record(self) -> Duration {
        self.ttl + self.window() + DEADLINE + DRIFT + MARGIN
    }

    /// The same in milliseconds, for Redis.
    pub fn record_millis(self) -> i64 {
        self.of_record().as_millis() as i64
    }
}

/// The sessions that this instance has renewed within the current window. Forgetting one is harmless: it is
/// renewed once more.
#[derive(Debug)]
pub struct Renewed {
    window: Duration,
    current: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    begin: Instant,
    sessions: HashSet<Id>,
}

impl Renewed {
    /// Nothing is renewed yet.
    pub fn new(lifetime: Lifetime) -> Self {
        Self {
            window: lifetime.window(),
            current: Mutex::new(Window { begin: Instant::now(), sessions: HashSet::new() }),
        }
    }

    /// Whether each of these sessions is to be renewed, as of `now`.
    pub fn are_due<'a>(&self, sessions: impl Iterator<Item = &'a Id>, now: Instant) -> Vec<bool> {
        let mut current = self.current.lock();
        if now.duration_since(current.begin) >= self.window {
            current.sessions.clear();
            current.begin = now;
        }
        let is_due = |session| !current.sessions.contains(session);
        sessions.map(is_due).collect()
    }

    /// Remembers sessions that Redis has confirmed to be renewed, by a command that was sent after `since`.
    pub fn remember(&self, sessions: impl Iterator<Item = Id>, since: Instant) {
        let mut current = self.current.lock();
        if since < current.begin {
            return;
        }
        for session in sessions {
            if current.sessions.len() >= MAX_REMEMBERED {
                current.sessions.clear();
            }
            current.sessions.insert(session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn is_due(renewed: &Renewed, session: &Id, now: Instant) -> bool {
        renewed.are_due([session].into_iter(), now)[0]
    }

    #[test]
    fn a_session_ends_within_a_24th_and_seconds() {
        for ttl in [1, 60, 86_400, u32::MAX.into()] {
            let ttl = Duration::from_secs(ttl);
            let life = Lifetime::new(ttl).of_record();
            assert!(life <= ttl + ttl / 24 + Duration::from_secs(5), "{ttl:?}: {life:?}");
        }
    }

    #[test]
    fn what_was_renewed_is_due_again_with_the_next_window() {
        let renewed = Renewed::new(Lifetime::new(24 * HOUR));
        let (session, begin) = (Id::default(), Instant::now());
        assert!(is_due(&renewed, &session, begin));
        renewed.remember([session].into_iter(), begin);
        assert!(!is_due(&renewed, &session, begin + HOUR / 2));
        assert!(is_due(&renewed, &session, begin + HOUR + HOUR / 2));
    }

    #[test]
    fn what_was_sent_in_an_earlier_window_is_not_remembered() {
        let renewed = Renewed::new(Lifetime::new(24 * HOUR));
        let (session, sent) = (Id::default(), Instant::now());
        let answered = sent + HOUR + Duration::from_secs(1);
        assert!(is_due(&renewed, &session, answered));
        renewed.remember([session].into_iter(), sent);
        assert!(is_due(&renewed, &session, answered));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let renewed = Renewed::new(Lifetime::new(24 * HOUR));
        let now = Instant::now();
        renewed.remember((0..1_000_000).map(Id), now);
        let sessions = &renewed.current.lock().sessions;
        assert!(sessions.len() <= MAX_REMEMBERED);
        assert_eq!(sessions.capacity(), MAX_REMEMBERED, "it has grown past its bound");
        assert!(sessions.contains(&Id(999_999)));
    }
}
