//! A thread's link to Redis: sending commands, and reconnecting forever.

use std::{mem, sync::Arc, time::Duration};

use fred::{
    prelude::{Client, ClientLike},
    types::{ConnectHandle, Value, config::Config},
};
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use rand::Rng;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep, timeout_at},
};
use tracing::{debug, info, warn};

use super::{
    compare_and_set::{CompareAndSet, SendCommand},
    error::{self, Error, code, without_arguments},
    redis_client::{close_reason, connect, keys_on_all_servers, with_nodes},
    rejection::{rejection, scheme_rejection, sentinel_rejection},
    retry::{ATTEMPT_TIMEOUT, until_answered},
};

/// The longest pause between attempts to connect. It is reached after about 20 attempts in 3 s.
const LONGEST_BACKOFF: Duration = Duration::from_millis(800);

/// How long a Cluster's client is used while a server does not answer: longer than a failover takes with Redis's
/// defaults (15 s until the others give up a master). What is sent to that server meanwhile is kept in memory.
const LONGEST_DEGRADED: Duration = Duration::from_secs(30);

/// A thread's link to Redis, which reconnects forever. A clone is another handle on the same one.
///
/// It uses one fred client at a time, and replaces that when it fails.
#[derive(Clone, Debug)]
pub struct RedisLink {
    state: watch::Sender<State>,
    /// Counts the commands that wait for a client or a reply: each holds a permit, of which there are enough.
    in_flight: Arc<Semaphore>,
    log: Arc<OutageLog>,
    is_clustered: bool,
}

/// The log of the links of all threads. As a rule their clients are lost together, so it has one line when the first is
/// lost, and one when all are there again.
#[derive(Debug, Default)]
pub struct OutageLog(Mutex<Logged>);

#[derive(Debug, Default)]
struct Logged {
    /// How many links need a client.
    unlinked: usize,
    /// Whether any ever had a client.
    was_linked: bool,
    /// Whether all ever had one at the same time.
    was_connected: bool,
    /// The last logged reason for the outage; none once all have a client.
    reason: Option<String>,
}

impl OutageLog {
    /// A link needs a client.
    fn connecting(&self) {
        self.0.lock().unlinked += 1;
    }

    /// It has one.
    fn connected(&self) {
        let mut logged = self.0.lock();
        logged.unlinked -= 1;
        logged.was_linked = true;
        let is_over = logged.unlinked == 0;
        let is_first = is_over && !mem::replace(&mut logged.was_connected, true);
        if is_over && logged.reason.take().is_some() || is_first {
            info!("connected to Redis");
        } else {
            debug!("connected to Redis");
        }
        if is_over {
            error::outage_is_over();
        }
    }

    /// Whether a link ever had a client. Then Redis once took the settings.
    fn was_linked(&self) -> bool {
        self.0.lock().was_linked
    }

    /// Logs why a link has no client: as a warning if it is the outage's first reason, or a later one that says more
    /// (`is_telling`); else at `debug`.
    fn warn(&self, problem: &str, reason: &str, is_telling: bool) {
        let mut logged = self.0.lock();
        if logged.reason.as_ref().is_none_or(|known| is_telling && code(known) != code(reason)) {
            warn!("{problem}: {reason}");
            logged.reason = Some(reason.to_owned());
        } else {
            debug!("{problem}: {reason}");
        }
    }
}

#[derive(Debug)]
enum State {
    Linked(Client),
    /// In a Cluster: linked, but one server fails, for this reason. The client serves the other servers' sessions until
    /// there is a new client.
    Degraded(Client, String),
    /// The client ended while no command waited for it, as hosting providers end idle connections. The next command
    /// asks for a new one.
    Idle,
    /// Not connected, for this reason.
    Lost(String),
    /// Redis rejected a setting before any thread was connected, for this reason.
    Rejected(String),
}

impl State {
    fn client(&self) -> Option<&Client> {
        match self {
            Self::Linked(client) | Self::Degraded(client, _) => Some(client),
            Self::Idle | Self::Lost(_) | Self::Rejected(_) => None,
        }
    }

    fn uses(&self, client: &Client) -> bool {
        self.client().is_some_and(|current| current.id() == client.id())
    }

    /// Why a new client is needed, if so.
    fn problem(&self) -> Option<String> {
        match self {
            Self::Lost(reason) | Self::Degraded(_, reason) => Some(reason.clone()),
            _ => None,
        }
    }
}

impl RedisLink {
    /// Connects in the background, and has each server checked.
    pub fn open(config: &Config, compare_and_set: Arc<CompareAndSet>, log: &Arc<OutageLog>) -> Self {
        let connecting = State::Lost("not connected yet".to_owned());
        let state = watch::Sender::new(connecting);
        let is_clustered = config.server.is_clustered();
        let this =
            Self { state, in_flight: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)), log: log.clone(), is_clustered };
        log.connecting();
        tokio::spawn(keep_connected(config.clone(), compare_and_set, this.clone()));
        this
    }

    /// Asks each server whether it accepts views now, by one command.
    ///
    /// # Errors
    /// As for [`until_answered`], if one does not.
    pub async fn accepts_views(&self) -> Result<(), Error> {
        let ask = |send_by| {
            self.attempt(send_by, async move |client: Client| {
                let asked = keys_on_all_servers(&client)
                    .into_iter()
                    .map(|key| CompareAndSet::ask_to_write(&client, send_by, key));
                try_join_all(asked).await.map(drop)
            })
        };
        until_answered(ask).await.of_repeatable()
    }

    /// Sends a command once, until `send_by` at the latest.
    async fn attempt<T, F: Future<Output = Result<T, Error>>>(
        &self,
        send_by: Instant,
        command: impl FnOnce(Client) -> F,
    ) -> Result<T, Error> {
        let _in_flight = self.in_flight.try_acquire();
        // Commands wait here, where they are dropped with their requests. fred would queue them without a bound, and
        // send them later.
        let client = timeout_at(send_by, self.client()).await;
        let client = client.map_err(|_| Error::Unreached)?;
        if Instant::now() >= send_by {
            return Err(Error::Unreached);
        }
        let reply = tokio::select! {
            biased;
            reply = command(client.clone()) => reply,
            // fred may miss that a client is lost, and keep a command that is sent after that.
            () = self.lost(&client) => Err(Error::Unanswered),
            () = sleep(ATTEMPT_TIMEOUT) => {
                self.give_up(&client, &format!("no answer within {ATTEMPT_TIMEOUT:?}"));
                Err(Error::Unanswered)
            }
        };
        reply.map_err(|error| match error {
            // Another server may now have the primary's name.
            Error::Refused(reason)
                // Or a Cluster that had one master now has several: the client was made for a single server.
                if error::is_unfit_server(&reason) || self.is_clustered && error::is_moved(&reason) =>
            {
                self.give_up(&client, &reason);
                Error::Unreached
            }
            error => error,
        })
    }

    /// Resolves when there is a client. Asks for one if it ended while it was idle.
    pub async fn client(&self) -> Client {
        if let Some(client) = self.state.borrow().client() {
            return client.clone();
        }
        self.state.send_if_modified(|state| {
            let is_idle = matches!(state, State::Idle);
            if is_idle {
                *state = State::Lost("it was idle".to_owned());
            }
            is_idle
        });
        wait_for(&self.state, |state| state.client().cloned()).await
    }

    /// Resolves when this client is no longer used.
    async fn lost(&self, client: &Client) {
        let is_lost = |state: &State| (!state.uses(client)).then_some(());
        wait_for(&self.state, is_lost).await
    }

    /// Asks for a new client in place of this one, if it is in use and not in doubt already.
    fn give_up(&self, client: &Client, reason: &str) {
        self.state.send_if_modified(|state| {
            let is_news = matches!(state, State::Linked(_)) && state.uses(client);
            if is_news {
                let reason = reason.to_owned();
                *state = if self.is_clustered { State::Degraded(client.clone(), reason) } else { State::Lost(reason) };
            }
            is_news
        });
    }

    /// Resolves when there is a client, or Redis rejects a setting before any thread was connected: then with the reason.
    pub async fn connected(&self) -> Result<(), String> {
        let connected = |state: &State| match state {
            State::Linked(_) | State::Degraded(..) | State::Idle => Some(Ok(())),
            State::Lost(_) => None,
            State::Rejected(reason) => Some(Err(reason.clone())),
        };
        wait_for(&self.state, connected).await
    }

    /// Resolves if Redis rejects a setting before any thread was connected, with the reason.
    pub async fn rejected(&self) -> String {
        let rejected = |state: &State| match state {
            State::Rejected(reason) => Some(reason.clone()),
            _ => None,
        };
        wait_for(&self.state, rejected).await
    }
}

impl SendCommand for RedisLink {
    async fn send(
        &self,
        send_by: Instant,
        command: &'static str,
        key: Option<usize>,
        arguments: Vec<Value>,
    ) -> Result<Value, Error> {
        self.attempt(send_by, |client| async move { client.send(send_by, command, key, arguments).await }).await
    }
}

async fn wait_for<T>(state: &watch::Sender<State>, wanted: impl Fn(&State) -> Option<T>) -> T {
    let mut state = state.subscribe();
    loop {
        if let Some(found) = wanted(&state.borrow_and_update()) {
            return found;
        }
        // It fails only without a sender, and `state` was made from one.
        let _ = state.changed().await;
    }
}

/// Connects, and reconnects whenever the client is lost: at once, then with backoff. A client that ends while it is
/// idle is replaced only once a command needs it, because providers also bill the commands that connecting takes. Such an
/// end is logged at `debug` only.
///
/// Logs when the client is lost, or in doubt, and when there is a new one; see [`OutageLog`]. In between it logs errors
/// from Redis and its certificate, but network failures at `debug` only.
async fn keep_connected(config: Config, compare_and_set: Arc<CompareAndSet>, link: RedisLink) {
    let RedisLink { state, in_flight, log, .. } = link;
    let (mut known, mut backoff) = (config.clone(), Duration::ZERO);
    // The last failure for which the URL's scheme was already tested as the cause.
    let mut probed = None;
    // The task of a client in doubt, and since when.
    let mut doubted: Option<(ConnectHandle, Instant)> = None;
    loop {
        match connect(&known, &compare_and_set, !log.was_linked()).await {
            Ok((client, mut end)) => {
                state.send_replace(State::Linked(client.clone()));
                doubted.take().inspect(|(end, _)| end.abort());
                log.connected();
                let (reason, is_idle) = tokio::select! {
                    end = &mut end => {
                        let reason = close_reason(end);
                        let is_idle = in_flight.available_permits() == Semaphore::MAX_PERMITS;
                        state.send_replace(if is_idle { State::Idle } else { State::Lost(reason.clone()) });
                        (reason, is_idle)
                    }
                    reason = wait_for(&state, State::problem) => (reason, false),
                };
                backoff = Duration::ZERO;
                if is_idle {
                    debug!("the idle connection to Redis has ended: {reason}");
                } else if state.borrow().client().is_some() {
                    log.warn("a Redis Cluster node is failing, reconnecting", &reason, false);
                    doubted = Some((end, Instant::now()));
                } else {
                    log.warn("the connection to Redis is lost", &reason, false);
                    end.abort();
                }
                known = with_nodes(&config, &client);
                wait_for(&state, |state| (!matches!(state, State::Idle)).then_some(())).await;
                log.connecting();
            }
            Err(error) => {
                let reason = without_arguments(error.details()).to_owned();
                let is_reply = matches!(error.into(), Error::Refused(_));
                let mut rejection = rejection(&reason);
                if rejection.is_none() && !log.was_linked() {
                    rejection = sentinel_rejection(&config).await;
                    // Once for each reason: it is one more connection.
                    if rejection.is_none() && !is_reply && probed.as_ref() != Some(&reason) {
                        probed = Some(reason.clone());
                        rejection = scheme_rejection(&config).await;
                    }
                }
                // Another thread may have been linked meanwhile.
                if let Some(rejection) = &rejection
                    && !log.was_linked()
                {
                    state.send_replace(State::Rejected(rejection.clone()));
                    return;
                }
                log.warn("Redis cannot be reached", &reason, is_reply || rejection.is_some());
                backoff = LONGEST_BACKOFF.min(backoff * 4 / 3 + Duration::from_millis(1));
                let is_of_no_use = |(end, since): &mut (ConnectHandle, Instant)| {
                    end.is_finished() || since.elapsed() > LONGEST_DEGRADED
                };
                if let Some((end, _)) = doubted.take_if(is_of_no_use) {
                    end.abort();
                    let reason = "a Redis Cluster node did not recover";
                    log.warn("the connection to Redis is lost", reason, true);
                    state.send_replace(State::Lost(reason.to_owned()));
                }
            }
        }
        // With jitter, so that a service's instances do not all reconnect at the same moment.
        let jitter = rand::thread_rng().gen_range(0.5..=1.0);
        sleep(backoff.mul_f64(jitter)).await;
    }
}
