//! Visitors who view a page again and again while something happens to their store.

use std::{
    ops::RangeFrom,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use super::{PATIENCE, Service, Visitor};

/// Between an answer and the visitor's next view, so that the machine has time for the servers.
const PAUSE: Duration = Duration::from_millis(5);

/// What a visitor saw.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// When it was asked for.
    pub begin: Instant,
    /// How long the answer took.
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

/// The visitors, each with one view at a time. A test that does something meanwhile needs a runtime
/// of several threads.
pub struct Load {
    over: Arc<AtomicBool>,
    visitors: Vec<Coming>,
}

struct Coming {
    seen: Arc<Mutex<Vec<View>>>,
    visitor: JoinHandle<Visitor>,
}

impl Load {
    /// Has these visitors view `/foo` until they are stopped, each on all the services by turns.
    pub fn start(services: &[Service], visitors: &[Visitor]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ports: Vec<_> = services.iter().map(|service| service.port).collect();
        let visitors = visitors.iter().map(|visitor| {
            let seen = Arc::default();
            let coming = come(
                visitor.clone(),
                ports.clone(),
                over.clone(),
                Arc::clone(&seen),
            );
            let visitor = tokio::spawn(coming);
            Coming { seen, visitor }
        });
        Self {
            visitors: visitors.collect(),
            over,
        }
    }

    /// Waits until each visitor got the page on so many views that they asked for from now on.
    pub async fn served(&self, views: usize) {
        self.served_to(0.., views).await;
    }

    /// The same, of these visitors alone.
    pub async fn served_to(&self, visitors: RangeFrom<usize>, views: usize) {
        let begin = Instant::now();
        for Coming { seen, .. } in &self.visitors[visitors] {
            loop {
                let late = begin.elapsed() > PATIENCE;
                {
                    let seen = seen.lock().unwrap();
                    let new = seen.iter().rev().take_while(|view| view.begin > begin);
                    if new.filter(|view| view.status == 200).count() >= views {
                        break;
                    }
                    assert!(
                        !late,
                        "a visitor did not get the page {views} times within {PATIENCE:?}, but: {:#?}",
                        &seen[seen.len().saturating_sub(5)..]
                    );
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Has the visitors go once they have their answers. Gives each with what they saw.
    pub async fn stop(mut self) -> Vec<(Visitor, Vec<View>)> {
        self.over.store(true, Relaxed);
        let mut all = Vec::new();
        for Coming { seen, visitor } in &mut self.visitors {
            let visitor = visitor.await.unwrap();
            all.push((visitor, seen.lock().unwrap().clone()));
        }
        all
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for Coming { visitor, .. } in &self.visitors {
            visitor.abort();
        }
    }
}

async fn come(
    mut visitor: Visitor,
    ports: Vec<u16>,
    over: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<View>>>,
) -> Visitor {
    for port in ports.iter().cycle() {
        if over.load(Relaxed) {
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
