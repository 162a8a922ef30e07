//! The open connections: how many there may be, on which thread, and which gives way to a new one.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::ready;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::unconstrained,
    time::{sleep, timeout},
};

use super::activity::{Activity, IDLE_TIMEOUT, Requests};

/// The most connections at a time. Cloud Run sends at most 1,000 requests to an instance at once. A connection holds
/// some 20 kB, and 40 kB if its client sends requests and never reads: at most 50 MB in all. The smallest instance of
/// Cloud Run has 128 MiB.
const MAX_CONNECTIONS: usize = 1250;

/// A new connection goes to the first thread with no more than this many. So few do not fill a core, and views on one
/// thread share calls: with eight connections on two threads, a view was measured to cost a third more CPU and 0.2 commands
/// more.
const FILL_FIRST: usize = 8;

/// If no more places than this are free, each new connection makes an idle one end. The new one takes a free place at
/// once, so the idle one has time to end. This stops clients that fill all places and end none.
const SPARE: usize = 50;

/// If every connection is busy, a new one waits this long until they are looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// All connections of the process.
#[derive(Debug)]
pub struct Connections {
    open: Mutex<Open>,
    permits: Arc<Semaphore>,
    requests: Arc<Requests>,
}

#[derive(Debug)]
struct Open {
    connections: HashMap<u64, Arc<Activity>>,
    /// How many of them each thread serves.
    of_threads: Vec<usize>,
    /// The number of the next connection.
    next: u64,
}

/// A connection's place among the others, until it ends.
#[derive(Debug)]
pub struct Place {
    connections: Arc<Connections>,
    number: u64,
    thread: usize,
    /// What happens on the connection.
    pub activity: Arc<Activity>,
    _permit: OwnedSemaphorePermit,
}

impl Connections {
    /// None is open yet on any of these threads.
    pub fn new(threads: usize) -> Arc<Self> {
        let (connections, of_threads) = (HashMap::new(), vec![0; threads]);
        Arc::new(Self {
            open: Mutex::new(Open { connections, of_threads, next: 0 }),
            permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            requests: Arc::default(),
        })
    }

    /// The thread that is to serve the next connection: the first with at most [`FILL_FIRST`], else the one with the
    /// fewest.
    pub fn next_thread(&self) -> usize {
        let open = self.open.lock();
        let fewest = open.of_threads.iter().enumerate().min_by_key(|(_, connections)| FILL_FIRST.max(**connections));
        fewest.map_or(0, |(thread, _)| thread)
    }

    /// A place for a new connection, which this thread will serve. If places are short, the connection that has been
    /// idle longest gives way. If all are busy, the new one waits.
    pub async fn place(self: &Arc<Self>, thread: usize) -> Place {
        let permit = loop {
            if self.permits.available_permits() <= SPARE {
                self.make_room();
            }
            if let Ok(permit) = self.permits.clone().try_acquire_owned() {
                break permit;
            }
            if let Ok(Ok(permit)) = timeout(LOOK_AGAIN, self.permits.clone().acquire_owned()).await {
                break permit;
            }
        };
        let activity = Arc::new(Activity::new(&self.requests));
        let mut open = self.open.lock();
        let number = open.next;
        open.next += 1;
        open.of_threads[thread] += 1;
        open.connections.insert(number, activity.clone());
        Place { connections: self.clone(), number, thread, activity, _permit: permit }
    }

    /// Tells the connection that has been idle longest to end. If no place is free, one that was told once may be told
    /// again, and then ends at once.
    pub fn make_room(&self) {
        let told = if self.permits.available_permits() == 0 { 1 } else { 0 };
        let open = self.open.lock();
        let idle = open.connections.values().filter(|activity| activity.is_idle() && activity.told() <= told);
        let first = idle.min_by_key(|activity| (activity.told() < told, activity.idle_since()));
        first.inspect(|activity| activity.tell_to_end());
    }

    /// Ends each connection once its requests are answered, and returns when all have ended. No new one may come.
    pub async fn stop(&self) {
        {
            let open = self.open.lock();
            let untold = open.connections.values().filter(|activity| activity.told() == 0);
            untold.for_each(|activity| activity.tell_to_end());
        }
        let _ = self.permits.acquire_many(MAX_CONNECTIONS as u32).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock();
        open.connections.remove(&self.number);
        open.of_threads[self.thread] -= 1;
    }
}

impl Place {
    /// Serves the connection until it ends, is idle for too long, or gives way. `end` tells it to end once its requests
    /// are answered; over HTTP/2, its client is told so too.
    pub async fn serve<C: Future + Unpin>(self, mut connection: C, end: impl Fn(&mut C)) {
        let activity = &self.activity;
        let mut is_ending = false;
        loop {
            tokio::select! {
                // First the connection: what has arrived by now makes it busy.
                biased;
                _ = &mut connection => return,
                // It was told to end, then polled above: its farewell is on the way to a client that reads.
                () = ready(()), if is_ending && activity.told() > 1 && activity.is_idle() => return,
                () = activity.wait_until_told() => {}
                // A connection at rest may begin a request at any time, and then has only `IDLE_TIMEOUT`. So look again
                // after that at the latest.
                // Unconstrained: a client that floods the connection uses up the task's budget, and tokio's timer would
                // then never be over.
                () = unconstrained(sleep(activity.left(is_ending).min(IDLE_TIMEOUT))) => {
                    if !activity.left(is_ending).is_zero() {
                        continue;
                    }
                    if is_ending {
                        return;
                    }
                }
            }
            if !is_ending {
                end(&mut connection);
                activity.touch();
                is_ending = true;
            }
        }
    }
}
