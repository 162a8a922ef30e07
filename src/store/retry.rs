//! Sending a command again until there is a reply.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::Error;

/// A command or call is answered or fails within this time. A request that takes longer gets a 503.
pub const DEADLINE: Duration = Duration::from_millis(2500);

/// No attempt begins later than this: the command fails instead.
pub const RETRY_WINDOW: Duration = Duration::from_millis(1500);

/// How long one attempt waits for its reply: half of [`RETRY_WINDOW`], so that there can be another.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(750);

const _: () = assert!(RETRY_WINDOW.as_millis() + ATTEMPT_TIMEOUT.as_millis() <= DEADLINE.as_millis());

/// The pause after the first attempt. It doubles with each further one, because moving a Cluster's keys takes a while.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(40);

/// The outcome of a command that may have been sent several times.
#[derive(Debug)]
pub struct Answer<T> {
    /// The reply, or the last attempt's error.
    pub reply: Result<T, Error>,
    /// Whether an attempt was not answered: it may have been executed, and may yet be.
    pub is_in_doubt: bool,
}

impl<T> Answer<T> {
    /// The reply to a command that may be executed several times.
    ///
    /// # Errors
    /// [`Error::Unanswered`] if there is no reply and an attempt may have been executed.
    pub fn of_repeatable(self) -> Result<T, Error> {
        self.reply.map_err(|error| if self.is_in_doubt { Error::Unanswered } else { error })
    }
}

/// Makes attempts, the first one at once, until one is answered. None begins later than [`RETRY_WINDOW`] after the
/// first; each is told the time by which it must be sent.
///
/// An attempt that is refused is the last, unless keys are moving, or an earlier one is in doubt.
pub async fn until_answered<T, F: Future<Output = Result<T, Error>>>(
    mut attempt: impl FnMut(Instant) -> F,
) -> Answer<T> {
    let send_by = Instant::now() + RETRY_WINDOW;
    let mut pause = FIRST_PAUSE;
    let mut is_in_doubt = false;
    loop {
        let reply = attempt(send_by).await;
        is_in_doubt |= matches!(reply, Err(Error::Unanswered));
        let is_final = match &reply {
            Ok(_) => true,
            Err(error) => !is_in_doubt && !error.is_passing(),
        };
        if is_final || Instant::now() + pause >= send_by {
            return Answer { reply, is_in_doubt };
        }
        sleep(pause).await;
        pause = LONGEST_PAUSE.min(2 * pause);
    }
}
