//! How long sessions live in Redis, and which of them need not be renewed for now.
//!
//! A session lives at least `SESSION_TTL` after its last view. To renew it with each view would cost two
//! commands a view, so its keys live longer by a *window*: what an instance has renewed within the window,
//! it need not renew again. Time to live is always relative, counted by Redis's clock alone.

use std::{collections::HashSet, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use tower_sessions::session::Id;

use super::connection;

/// By so much the clocks of Redis and of an instance may differ over a window: 400 parts in a million
/// of an hour. (They need not show the same time.)
const DRIFT: Duration = Duration::from_millis(1500);

/// By so much a session's views end before its record. Redis before 7.2 looks at its clock with each
/// command, even inside a script: it must not take longer than this for one.
pub const MARGIN: Duration = Duration::from_secs(1);

/// The longest window. Beyond it the clocks would drift apart, and there is nothing left to gain.
const LONGEST_WINDOW: Duration = Duration::from_secs(3600);

/// The window's share of the time to live.
const WINDOW_SHARE: u32 = 24;

/// So many sessions are remembered as renewed: what a table of 131,072 places holds, 2.2 MB.
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

    /// For so long a session that was renewed need not be renewed again.
    pub fn window(self) -> Duration {
        (self.ttl / WINDOW_SHARE).min(LONGEST_WINDOW)
    }

    /// The life of a record from its renewal on. Its views end [`MARGIN`] earlier.
    pub fn of_record(self) -> Duration {
        self.ttl + self.window() + connection::DEADLINE + DRIFT + MARGIN
    }
}

/// The sessions that this instance has renewed within the current window. To forget one is harmless: it
/// is renewed once more.
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
    /// None yet.
    pub fn new(lifetime: Lifetime) -> Self {
        Self {
            window: lifetime.window(),
            current: Mutex::new(Window {
                begin: Instant::now(),
                sessions: HashSet::new(),
            }),
        }
    }

    /// For each of these sessions whether it is to be renewed, at this moment.
    pub fn are_due<'a>(&self, sessions: impl Iterator<Item = &'a Id>, now: Instant) -> Vec<bool> {
        let mut current = self.current.lock();
        if now.duration_since(current.begin) >= self.window {
            current.sessions.clear();
            current.begin = now;
        }
        let is_due = |session| !current.sessions.contains(session);
        sessions.map(is_due).collect()
    }

    /// Remembers sessions that Redis says it has renewed, by a command that was sent after this moment.
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
            assert!(
                life <= ttl + ttl / 24 + Duration::from_secs(5),
                "{ttl:?}: {life:?}"
            );
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
        assert_eq!(
            sessions.capacity(),
            MAX_REMEMBERED,
            "it has grown past its bound"
        );
        assert!(sessions.contains(&Id(999_999)));
    }
}
