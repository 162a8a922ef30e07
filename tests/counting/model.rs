//! Promise: for any sequence of views and faults, visitors see the counts of a simple model: a map.

use std::collections::HashMap;

use futures_util::future::join_all;
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tokio::runtime::Runtime;

use crate::common::{Proxy, Redis, Service, Visitor, session_id};

const VISITORS: usize = 3;
const PATHS: [&str; 3] = ["/", "/foo", "/bar"];
const INSTANCES: usize = 2;

/// A view: indices into the visitors, `PATHS` and the instances.
#[derive(Clone, Debug)]
struct View {
    visitor: usize,
    path: usize,
    instance: usize,
}

#[derive(Clone, Debug)]
enum Event {
    View(View),
    /// Concurrent views, while all connections are cut this number of times.
    Concurrent(Vec<View>, u8),
    LostCall,
    LostReply,
    Expiry(usize),
    Restart(usize),
    FlushScriptCache,
    FlushRedis,
}

fn view() -> impl Strategy<Value = View> {
    let view = (0..VISITORS, 0..PATHS.len(), 0..INSTANCES);
    view.prop_map(|(visitor, path, instance)| View { visitor, path, instance })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => view().prop_map(Event::View),
        4 => (vec(view(), 2..20), 0..4u8).prop_map(|(views, cuts)| Event::Concurrent(views, cuts)),
        2 => Just(Event::LostCall),
        2 => Just(Event::LostReply),
        2 => (0..VISITORS).prop_map(Event::Expiry),
        1 => (0..INSTANCES).prop_map(Event::Restart),
        1 => Just(Event::FlushScriptCache),
        1 => Just(Event::FlushRedis),
    ]
}

/// The service and the model.
struct World {
    redis: Redis,
    proxy: Proxy,
    services: Vec<Service>,
    visitors: Vec<Visitor>,
    /// The model: the counts of each visitor's session by path, or `None` without a session.
    sessions: Vec<Option<HashMap<usize, u64>>>,
}

impl World {
    async fn new() -> Self {
        let redis = Redis::start();
        let proxy = Proxy::start(&redis).await;
        let services = (0..INSTANCES).map(|_| start(&proxy)).collect();
        Self { redis, proxy, services, visitors: vec![Visitor::new(); VISITORS], sessions: vec![None; VISITORS] }
    }

    async fn apply(&mut self, event: Event) {
        match event {
            Event::View(view) => self.view(view).await,
            Event::Concurrent(views, cuts) => self.view_concurrently(views, cuts).await,
            Event::LostCall => self.proxy.lose_call(),
            Event::LostReply => self.proxy.lose_reply(),
            Event::Expiry(visitor) => {
                if let Some(cookie) = &self.visitors[visitor].cookie {
                    let id = session_id(cookie);
                    self.redis.cli(&["DEL", &id]);
                }
                self.sessions[visitor] = None;
            }
            Event::Restart(instance) => self.services[instance] = start(&self.proxy),
            Event::FlushScriptCache => drop(self.redis.cli(&["SCRIPT", "FLUSH"])),
            Event::FlushRedis => {
                self.redis.cli(&["FLUSHALL"]);
                self.sessions.fill(None);
            }
        }
    }

    async fn view(&mut self, View { visitor, path, instance }: View) {
        let old = self.visitors[visitor].cookie.clone();
        let count = self.visitors[visitor].count(&self.services[instance], PATHS[path]).await;
        let is_new = self.sessions[visitor].is_none();
        let session = self.sessions[visitor].get_or_insert_default();
        let expected = session.entry(path).or_default();
        *expected += 1;
        assert_eq!(count, *expected, "view of {}", PATHS[path]);
        assert_eq!(self.visitors[visitor].cookie != old, is_new, "session replaced, or not");
    }

    async fn view_concurrently(&mut self, views: Vec<View>, cuts: u8) {
        // Concurrent views without a session would each create one, so create it first.
        for view in &views {
            if self.sessions[view.visitor].is_none() {
                self.view(view.clone()).await;
            }
        }
        let asked = views.iter().map(async |view| {
            let mut visitor = self.visitors[view.visitor].clone();
            let count = visitor.count(&self.services[view.instance], PATHS[view.path]).await;
            ((view.visitor, view.path), count)
        });
        let cut = async {
            for _ in 0..cuts {
                self.redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
                tokio::task::yield_now().await;
            }
        };
        let (counts, ()) = tokio::join!(join_all(asked), cut);
        let mut seen: HashMap<_, Vec<u64>> = HashMap::new();
        for (view, count) in counts {
            seen.entry(view).or_default().push(count);
        }
        for ((visitor, path), mut counts) in seen {
            counts.sort_unstable();
            let session = self.sessions[visitor].as_mut().unwrap();
            let last = session.entry(path).or_default();
            let expected: Vec<_> = (*last + 1..).take(counts.len()).collect();
            assert_eq!(counts, expected, "{} after {last}", PATHS[path]);
            *last += counts.len() as u64;
        }
    }
}

fn start(proxy: &Proxy) -> Service {
    Service::start([("REDIS_URL", proxy.url().as_str())])
}

#[test]
fn the_service_behaves_like_the_model() {
    let config = Config { cases: 50, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let runtime = Runtime::new().unwrap();
    let outcome = TestRunner::new(config).run(&vec(event(), 1..40), |events| {
        let case = async {
            let mut world = World::new().await;
            for event in events {
                world.apply(event).await;
            }
        };
        runtime.block_on(case);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}
