//! Continuous load: visitors that view a page repeatedly while a test disturbs the store.

use std::{
    ops::RangeFrom,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use super::{Service, TIMEOUT, Visitor};

/// The pause between a response and the visitor's next view. It leaves CPU time for the servers.
const PAUSE: Duration = Duration::from_millis(5);

/// One view and its outcome.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// When the request was sent.
    pub begin: Instant,
    /// The time until the response was complete.
    pub took: Duration,
    pub status: u16,
    /// The number on the page, if there was one.
    pub count: Option<u64>,
}

impl View {
    pub fn end(&self) -> Instant {
        self.begin + self.took
    }
}

/// Visitors in the background, each with one view in flight. Tests that block meanwhile need a
/// multi-threaded runtime.
pub struct Load {
    stop: Arc<AtomicBool>,
    visitors: Vec<Task>,
}

struct Task {
    seen: Arc<Mutex<Vec<View>>>,
    visitor: JoinHandle<Visitor>,
}

impl Load {
    /// Lets these visitors view `/foo` until they are stopped, each on all services in turn.
    pub fn start(services: &[Service], visitors: &[Visitor]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ports: Vec<_> = services.iter().map(|service| service.port).collect();
        let visitors = visitors.iter().map(|visitor| {
            let seen = Arc::default();
            let views = keep_viewing(visitor.clone(), ports.clone(), stop.clone(), Arc::clone(&seen));
            let visitor = tokio::spawn(views);
            Task { seen, visitor }
        });
        Self { visitors: visitors.collect(), stop }
    }

    /// Waits until each visitor has got the page `views` times, for requests sent from now on.
    pub async fn served(&self, views: usize) {
        self.served_to(0.., views).await;
    }

    /// Like [`served`](Self::served), for these visitors only.
    pub async fn served_to(&self, visitors: RangeFrom<usize>, views: usize) {
        let begin = Instant::now();
        for Task { seen, .. } in &self.visitors[visitors] {
            loop {
                let late = begin.elapsed() > TIMEOUT;
                {
                    let seen = seen.lock().unwrap();
                    let new = seen.iter().rev().take_while(|view| view.begin > begin);
                    if new.filter(|view| view.status == 200).count() >= views {
                        break;
                    }
                    assert!(
                        !late,
                        "a visitor did not get the page {views} times within {TIMEOUT:?}, but: {:#?}",
                        &seen[seen.len().saturating_sub(5)..]
                    );
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Stops the visitors after their current view and returns each with all its views.
    pub async fn stop(mut self) -> Vec<(Visitor, Vec<View>)> {
        self.stop.store(true, Relaxed);
        let mut all = Vec::new();
        for Task { seen, visitor } in &mut self.visitors {
            let visitor = visitor.await.unwrap();
            all.push((visitor, seen.lock().unwrap().clone()));
        }
        all
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for Task { visitor, .. } in &self.visitors {
            visitor.abort();
        }
    }
}

async fn keep_viewing(
    mut visitor: Visitor,
    ports: Vec<u16>,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<View>>>,
) -> Visitor {
    for port in ports.iter().cycle() {
        if stop.load(Relaxed) {
            break;
        }
        let begin = Instant::now();
        let answer = visitor.view(port, "/foo").await;
        seen.lock().unwrap().push(View {
            begin,
            took: begin.elapsed(),
            status: answer.status,
            count: (answer.status == 200).then(|| answer.count()),
        });
        tokio::time::sleep(PAUSE).await;
    }
    visitor
}
