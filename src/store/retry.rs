//! Sending a command again until there is a reply.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::Error;

/// A command or call is answered or fails within this time. A request that takes longer gets a 503.
pub const DEADLINE: Duration = Duration::from_millis(2500);

/// No attempt begins later than this; then the command fails.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How long one attempt waits for its reply: half of the patience, so that there can be another.
pub const UNRESPONSIVE: Duration = Duration::from_millis(750);

const _: () = assert!(PATIENCE.as_millis() + UNRESPONSIVE.as_millis() <= DEADLINE.as_millis());

/// The pause before the next attempt doubles from the shortest to the longest. Moving the keys of a Cluster takes
/// a while.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(40);

/// Makes attempts, the first one at `begin`, until one is answered. Each is told the time by which it must be sent.
///
/// # Errors
/// [`Error::Refused`] at once, unless keys are moving, or an earlier attempt may still arrive. After [`PATIENCE`], the
/// last error, or [`Error::Unanswered`] if an attempt may still arrive; this one also if the reply is read after
/// [`DEADLINE`], because this process was frozen.
pub async fn until_answered<T, F: Future<Output = Result<T, Error>>>(
    begin: Instant,
    mut attempt: impl FnMut(Instant) -> F,
) -> Result<T, Error> {
    let send_by = begin + PATIENCE;
    let mut pause = SHORTEST_PAUSE;
    // What to say if there is no time for another attempt.
    let mut last = Error::Unreached;
    let mut may_arrive = false;
    // After a long freeze of this process, the kept reply may have expired, and Redis would count the call again.
    while Instant::now() < send_by {
        last = match attempt(send_by).await {
            Err(Error::Unanswered) => {
                may_arrive = true;
                Error::Unanswered
            }
            Err(_) if may_arrive => Error::Unanswered,
            Err(error) if error.is_moving() || matches!(error, Error::Unreached) => error,
            // Redis starts the time to live at the attempt; it is promised from the reply.
            Ok(_) if begin.elapsed() > DEADLINE => Error::Unanswered,
            reply => return reply,
        };
        sleep(pause).await;
        pause = LONGEST_PAUSE.min(2 * pause);
    }
    Err(last)
}
