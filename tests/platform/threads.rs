//! Promise: the service uses every core it is given, with a thread and a link to Redis for each, and a visitor cannot
//! tell: counts are exact and cost the same, on whichever threads a visitor's connections are served. On a machine with
//! one core, most of these tests show the same of one thread.

use std::{
    collections::{HashMap, HashSet},
    fs,
    time::Duration,
};

use fred::{clients::Client, interfaces::ClientLike, types::CustomCommand};
use futures_util::future::join_all;

use crate::common::{
    Redis, Service, Visitor, assert_each_once, behind_proxy, eventually, leave_out, one_core, program, threads,
};

/// More connections than the service gives to one thread before it turns to the next.
const FEW: usize = 10;

/// Visitors with this cookie, each with a connection of their own.
fn connections(number: usize, cookie: Option<String>) -> Vec<Visitor> {
    let visitors = (0..number).map(|_| {
        let mut visitor = Visitor::new();
        visitor.cookie.clone_from(&cookie);
        visitor
    });
    visitors.collect()
}

/// A Redis with a service on it, all of whose threads are connected, and [`FEW`] connections for each thread. Further
/// ones are spread evenly.
async fn start() -> (Redis, Service, Vec<Visitor>) {
    let redis = Redis::start();
    let service = Service::on(&redis);
    service.wait_until_ready().await;
    let few = fill(&service).await;
    (redis, service, few)
}

async fn fill(service: &Service) -> Vec<Visitor> {
    let mut few = connections(FEW * threads(), None);
    for visitor in &mut few {
        assert_eq!(visitor.view(service, "/health/live").await.status, 200);
    }
    few
}

#[tokio::test]
async fn connections_are_spread_evenly_and_each_thread_has_a_link() {
    let (redis, service, mut visitors) = start().await;
    let mut monitor = redis.monitor();
    visitors.extend(connections(FEW * threads(), None));
    for visitor in &mut visitors {
        assert_eq!(visitor.count(&service, "/").await, 1);
    }
    let mut views = HashMap::new();
    for (link, _) in monitor.commands_by_client() {
        *views.entry(link).or_insert(0) += 1;
    }
    // The readiness check's connection may have been one of them.
    let is_even = views.values().all(|views| (2 * FEW - 1..=2 * FEW + 1).contains(views));
    assert!(views.len() == threads() && is_even, "views by link: {views:?}");
    let links = redis.cli(&["CLIENT", "LIST", "TYPE", "normal"]).lines().count() - 2;
    assert_eq!(links, threads(), "beside redis-cli's own two connections");
}

/// Each view comes on a connection of its own, so they come on all threads.
#[tokio::test]
async fn a_visit_of_five_views_costs_as_much_as_on_one_connection() {
    let (redis, service, _few) = start().await;
    let write = if redis.has_ifeq() { 1 } else { 2 };
    let mut monitor = redis.monitor();
    for visit in 0..10 {
        redis.executed();
        let mut first = Visitor::new();
        assert_eq!(first.count(&service, "/").await, 1);
        let mut later = connections(4, first.cookie.clone());
        for (visitor, view) in later.iter_mut().zip(2..) {
            assert_eq!(visitor.count(&service, "/").await, view);
        }
        assert_eq!(redis.executed(), 1 + 4 * write, "commands of visit {visit}");
    }
    let is_write = |command: &str| ["\"SET\"", "\"EVALSHA\""].iter().any(|name| command.starts_with(name));
    let writes = monitor.commands_by_client().into_iter().filter(|(_, command)| is_write(command));
    let links: HashSet<_> = writes.map(|(link, _)| link).collect();
    assert_eq!(links.len(), threads(), "links that the visits were written on");
}

/// What overlaps on several threads joins, as it does on one.
#[tokio::test]
async fn overlapping_views_on_all_threads_are_counted_once_each() {
    const VIEWS: u64 = 2000;
    let (redis, proxy, service, visitor) = behind_proxy().await;
    let _few = fill(&service).await;
    // The latency of a Redis in the same region. Without it, the load of the machine would decide.
    proxy.delay(Duration::from_millis(5));
    redis.executed();
    let tabs = connections(40, visitor.cookie.clone()).into_iter().map(async |mut tab| {
        let mut counts = Vec::new();
        for _ in 0..VIEWS / 40 {
            counts.push(tab.count(&service, "/").await);
        }
        counts
    });
    assert_each_once(join_all(tabs).await.concat(), 3..VIEWS + 3);
    let each = redis.executed() as f64 / VIEWS as f64;
    println!("{each} commands a view");
    assert!(each < 0.5, "{each} commands a view");
}

/// Changes a setting of Redis over this connection.
async fn set(client: &Client, name: &str, value: &str) {
    let command = CustomCommand::new_static("CONFIG", None, false);
    let () = client.custom(command, vec!["SET", name, value]).await.unwrap();
}

/// A host may allow fewer connections than there are threads.
#[tokio::test]
async fn the_service_is_ready_once_each_thread_has_a_link() {
    const REFUSED: &str = "max number of clients reached";
    let redis = Redis::start_with(&["--maxclients", &threads().to_string()]);
    // This one takes the last link's place.
    let client = redis.client().await;
    let service = Service::start([("REDIS_URL", redis.url().as_str())]);
    let _few = fill(&service).await;
    // Whichever thread is asked, and although the others have a link.
    for mut visitor in connections(2 * threads(), None) {
        assert_eq!(visitor.view(&service, "/health/ready").await.status, 503);
    }
    set(&client, "maxclients", "100").await;
    service.wait_until_ready().await;
    for mut visitor in connections(2 * threads(), None) {
        assert_eq!(visitor.view(&service, "/health/ready").await.status, 200);
    }
    let log = service.stop();
    for line in [REFUSED, "connected to Redis"] {
        assert_eq!(log.iter().filter(|logged| logged.contains(line)).count(), 1, "{line}: {log:#?}");
    }
}

/// What stops the program at its start does not stop it once another thread is connected.
#[tokio::test]
async fn a_thread_that_connects_late_does_not_stop_the_program() {
    if threads() == 1 {
        leave_out("since on one core no thread connects later than another");
        return;
    }
    let redis = Redis::start_with(&["--maxclients", &threads().to_string()]);
    let client = redis.client().await;
    let service = Service::start([("REDIS_URL", redis.url().as_str()), ("RUST_LOG", "debug")]);
    let logged = async |what: &str| {
        let is_logged = || service.log().iter().any(|line| line.contains(what)).then_some(());
        eventually(what, async || is_logged()).await;
    };
    for what in ["max number of clients", "connected to Redis"] {
        logged(what).await;
    }
    set(&client, "requirepass", "another").await;
    set(&client, "maxclients", "100").await;
    logged("NOAUTH").await;
    set(&client, "requirepass", "").await;
    service.wait_until_ready().await;
}

/// MB that the process takes after views on this many connections.
async fn megabytes(service: &Service) -> f64 {
    join_all(connections(200, None).into_iter().map(async |mut visitor| {
        for view in 1..=10 {
            assert_eq!(visitor.count(service, "/").await, view);
        }
    }))
    .await;
    service.memory("VmRSS") as f64 / 1_000_000.0
}

#[tokio::test]
async fn a_further_core_takes_little_memory() {
    const EACH: f64 = 3.0;
    let redis = Redis::start();
    let settings = [("REDIS_URL", redis.url())];
    let settings = || settings.iter().map(|(name, value)| (*name, value.as_str()));
    // One thread, to compare with.
    let one = megabytes(&Service::launch(&mut one_core(settings()))).await;
    let all = megabytes(&Service::launch(&mut program(settings()))).await;
    println!("{one} MB on one core, {all} MB on {}", threads());
    assert!(all <= one + EACH * (threads() - 1) as f64, "{one} MB on one core, {all} MB on {}", threads());
}

#[tokio::test]
async fn one_core_is_served_by_one_thread() {
    let service = Service::launch(&mut one_core([]));
    Visitor::new().count(&service, "/").await;
    let threads = || fs::read_dir(format!("/proc/{}/task", service.id())).unwrap();
    let names = threads().map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")).unwrap());
    let names: Vec<_> = names.collect();
    // The main one, and the log's.
    assert!(names.len() == 2 && !names.iter().any(|name| name.trim() == "serve"), "{names:?}");
}
