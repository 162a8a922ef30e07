//! Promise: on a Redis Cluster the counts are as exact as on a single Redis, even while slots migrate.
//! If a master fails, the service recovers with its replica.

use std::time::{Duration, Instant};

use crate::common::{
    Cluster, Load, Migration, Redis, Service, View, Visitor, assert_each_once, eventually, free_port, session_id,
    signal,
};
use futures_util::future::join_all;
use tokio::time::sleep;

/// Every view is answered by then.
const DEADLINE: Duration = Duration::from_secs(3);

fn instance(cluster: &Cluster) -> Service {
    Service::start([("REDIS_URL", cluster.url().as_str())])
}

fn instances(cluster: &Cluster) -> [Service; 2] {
    [(); 2].map(|()| instance(cluster))
}

/// Visitors after their first view of `/foo`: this number, or more until each master has a session.
async fn visitors(service: &Service, cluster: &Cluster, number: usize) -> Vec<Visitor> {
    // They share connections: a view after another one's comes to the same thread of the service.
    let mut visitors = Vec::new();
    let new = Visitor::new();
    loop {
        let mut visitor = new.clone();
        assert_eq!(visitor.count(service, "/foo").await, 1);
        visitors.push(visitor);
        if visitors.len() >= number {
            let keys = cluster.keys();
            assert_eq!(keys.concat().len(), visitors.len(), "{keys:#?}");
            assert!(visitors.len() < 10 * number, "a master has no session: {keys:#?}");
            if !keys.iter().any(Vec::is_empty) {
                return visitors;
            }
        }
    }
}

fn place(cluster: &Cluster, visitor: &Visitor) -> (u16, usize) {
    cluster.place(&session_id(visitor.cookie.as_ref().unwrap()))
}

/// Asserts that the counts are consecutive numbers from 2 on.
fn assert_consecutive(counts: Vec<u64>) {
    let end = 2 + counts.len() as u64;
    assert_each_once(counts, 2..end);
}

#[tokio::test]
async fn concurrent_views_on_two_instances() {
    const VIEWS: usize = 200;
    const CONCURRENT: usize = 10;
    let cluster = Cluster::start().await;
    let services = instances(&cluster);
    let visitors = visitors(&services[0], &cluster, 30).await;
    let views = visitors.iter().map(|visitor| {
        let views = (0..CONCURRENT).map(|n| {
            let mut visitor = visitor.clone();
            let services = &services;
            async move {
                let mut counts = Vec::new();
                // The first view was made in `visitors`.
                for view in 0..VIEWS / CONCURRENT - usize::from(n == 0) {
                    let service = &services[(n + view) % services.len()];
                    counts.push(visitor.count(service, "/foo").await);
                }
                counts
            }
        });
        join_all(views)
    });
    for counts in join_all(views).await {
        assert_each_once(counts.concat(), 2..VIEWS as u64 + 1);
    }
}

/// Some hosts offer a single server in cluster mode, which has all slots. It works with either scheme. Several sessions
/// do not share a call there.
#[tokio::test]
async fn one_server_with_all_slots() {
    let bus = free_port().to_string();
    let server = Redis::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus]);
    server.expect_ok(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    eventually("the cluster is up", async || server.cli(&["CLUSTER", "INFO"]).contains("state:ok").then_some(())).await;
    // It does not know its own address. From Redis 7 on, each of these settings makes it say so in another way.
    for unknown in ["ip", "hostname", "unknown-endpoint"] {
        server.cli(&["CONFIG", "SET", "cluster-preferred-endpoint-type", unknown]);
        for url in [server.url(), server.url().replace("redis", "redis-cluster")] {
            let service = Service::start([("REDIS_URL", url.as_str())]);
            service.wait_until_ready().await;
            let mut visitors = vec![Visitor::new(); 30];
            for view in 1..=3 {
                let counts = join_all(visitors.iter_mut().map(|visitor| visitor.count(&service, "/foo"))).await;
                assert_eq!(counts, vec![view; 30], "{url}, {unknown}: {:#?}", service.log());
            }
            let log = service.stop();
            assert!(!log.iter().any(|line| line.contains("WARN")), "{log:#?}");
        }
    }
    server.expect_ok(&["CONFIG", "SET", "cluster-announce-hostname", "no-such-host.invalid"]);
    server.expect_ok(&["CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname"]);
    let service = Service::start([("REDIS_URL", server.url().replace("redis", "redis-cluster").as_str())]);
    let has_named_it = async || service.log().iter().any(|line| line.contains("no-such-host.invalid")).then_some(());
    eventually("the log names the host", has_named_it).await;
}

#[tokio::test]
async fn deleted_sessions_leave_nothing_behind() {
    let cluster = Cluster::start().await;
    let service = instance(&cluster);
    let delete = |visitor: &Visitor| {
        let (_, master) = place(&cluster, visitor);
        let id = session_id(visitor.cookie.as_ref().unwrap());
        cluster.masters[master].cli(&["DEL", &id]);
    };
    for n in 10..20 {
        let mut visitor = Visitor::with_cookie(format!("id=AAAAAAAAAAAAAAAAAAAA{n}"));
        assert_eq!(visitor.count(&service, "/").await, 1);
        delete(&visitor);
    }
    assert_eq!(cluster.keys().concat(), [""; 0]);
    let mut visitor = Visitor::new();
    for view in 1..=3 {
        assert_eq!(visitor.count(&service, "/").await, view);
    }
    delete(&visitor);
    assert_eq!(visitor.count(&service, "/").await, 1);
    delete(&visitor);
    assert_eq!(cluster.keys().concat(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_cut_under_load() {
    const TABS: usize = 3;
    let cluster = Cluster::start().await;
    let services = instances(&cluster);
    let visitors = visitors(&services[0], &cluster, 30).await;
    let tabs = visitors.iter().flat_map(|visitor| vec![visitor.clone(); TABS]);
    let load = Load::start(&services, &tabs.collect::<Vec<_>>());
    for _ in 0..10 {
        // Connecting to a Cluster takes several round trips: all visitors are served in between, however long it takes.
        load.served(5).await;
        let cut = |master: &Redis| master.cli(&["CLIENT", "KILL", "TYPE", "normal"]).parse::<usize>().unwrap();
        assert!(cluster.masters.iter().map(cut).sum::<usize>() > 0, "no connection was cut");
    }
    load.served(5).await;
    for tabs in load.stop().await.chunks(TABS) {
        let views = tabs.iter().flat_map(|(_, views)| views);
        let failed = views.clone().find(|view| view.status != 200);
        assert!(failed.is_none(), "{failed:?}");
        assert_consecutive(views.filter_map(|view| view.count).collect());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_migrates_under_load() {
    const TABS: usize = 3;
    let cluster = Cluster::start().await;
    let services = instances(&cluster);
    let visitors = visitors(&services[0], &cluster, 30).await;
    let moved = &visitors[0];
    let (slot, from) = place(&cluster, moved);
    let to = (from + 1) % 3;
    let tabs = visitors.iter().flat_map(|visitor| vec![visitor.clone(); TABS]);
    let load = Load::start(&services, &tabs.collect::<Vec<_>>());
    load.served(2).await;
    let migration = Migration::begin(&cluster, slot, from, to);
    load.served(2).await;
    assert!(migration.move_keys() > 0);
    migration.end();
    load.served(2).await;
    for tabs in load.stop().await.chunks(TABS) {
        let views = tabs.iter().flat_map(|(_, views)| views);
        let failed = views.clone().find(|view| view.status != 200);
        let is_migrated = tabs[0].0.cookie == moved.cookie;
        assert!(failed.is_none(), "in the migrated slot: {is_migrated}, {failed:?}");
        assert_consecutive(views.filter_map(|view| view.count).collect());
    }
    let id = session_id(moved.cookie.as_ref().unwrap());
    let keys = cluster.keys();
    let there = keys[to].iter().filter(|key| key.contains(&id)).count();
    let all = keys.concat().iter().filter(|key| key.contains(&id)).count();
    assert!(there == 1 && there == all, "{id} on master {to}: {keys:#?}");
}

/// The sessions of the migrating slot may be unavailable meanwhile. All others are counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_migrates_slowly() {
    let cluster = Cluster::start().await;
    let services = instances(&cluster);
    let visitors = visitors(&services[0], &cluster, 30).await;
    let (slot, from) = place(&cluster, &visitors[0]);
    let load = Load::start(&services, &visitors);
    load.served(2).await;
    let migration = Migration::begin(&cluster, slot, from, (from + 1) % 3);
    assert!(migration.move_keys() > 0);
    load.served_to(1.., 50).await;
    migration.end();
    load.served(2).await;
    for (n, (_, views)) in load.stop().await.iter().enumerate() {
        assert_answered(views);
        assert_rising(1, views);
        let failed = views.iter().find(|view| n > 0 && view.status != 200);
        assert!(failed.is_none(), "a view of another slot failed: {failed:?}");
    }
}

/// While a slot migrates, its old master redirects requests for a session that has moved. The view waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_while_its_slot_migrates() {
    let cluster = Cluster::start().await;
    let services = instances(&cluster);
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&services[0], "/foo").await, 1);
    let (slot, from) = place(&cluster, &visitor);
    let migration = Migration::begin(&cluster, slot, from, (from + 1) % 3);
    assert_eq!(migration.move_keys(), 1);
    let port = services[1].port;
    let view = tokio::spawn(async move { visitor.view(&port, "/foo").await });
    eventually("a redirection", async || {
        let refusals = cluster.masters[from].info("errorstats", "errorstat_ASK");
        refusals.map(drop)
    })
    .await;
    migration.end();
    assert_eq!(view.await.unwrap().count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_fails_under_load() {
    let mut cluster = Cluster::start_with_replica().await;
    // The services discover the other nodes from the one that will fail.
    let url = cluster.short_url();
    let services = [(); 2].map(|()| Service::start([("REDIS_URL", url.as_str())]));
    let visitors = visitors(&services[0], &cluster, 30).await;
    let load = Load::start(&services, &visitors);
    load.served(3).await;
    let promotion = cluster.kill_first_master().await;
    load.served(3).await;
    let seen = load.stop().await;
    let mut back = Duration::ZERO;
    for (visitor, (_, views)) in visitors.iter().zip(&seen) {
        let (_, master) = place(&cluster, visitor);
        assert_answered(views);
        let first = first_page_since(views, promotion);
        back = back.max(first.end() - promotion);
        // Views that the failed master had not replicated may be counted again.
        if master != 0 {
            assert_rising(1, views);
        }
    }
    println!("all visitors get the page again {back:?} after the promotion");
}

/// Only the sessions of a frozen master are out of reach. All others are counted, without one 503.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_freezes_under_load() {
    let cluster = Cluster::start().await;
    let services = instances(&cluster);
    let mut visitors = visitors(&services[0], &cluster, 30).await;
    visitors.sort_by_key(|visitor| place(&cluster, visitor).1);
    let frozen = visitors.iter().filter(|visitor| place(&cluster, visitor).1 == 0).count();
    let load = Load::start(&services, &visitors);
    load.served(3).await;
    signal(cluster.masters[0].id(), "STOP");
    let begin = Instant::now();
    // Longer than the service waits for a reply, and for a new link to fail.
    while begin.elapsed() < 2 * DEADLINE {
        load.served_to(frozen.., 20).await;
    }
    signal(cluster.masters[0].id(), "CONT");
    load.served(3).await;
    for (n, (_, views)) in load.stop().await.iter().enumerate() {
        assert_answered(views);
        let counts: Vec<_> = views.iter().filter_map(|view| view.count).collect();
        let failed = views.len() - counts.len();
        if n < frozen {
            // A view that one instance sent before the thaw may be counted after a later view on the other.
            assert!(failed > 0, "no view on the frozen master failed");
            assert!(counts.is_sorted_by(|one, next| one < next), "{counts:?}");
            assert!(counts.last().unwrap() - 1 <= views.len() as u64, "{counts:?} of {} views", views.len());
        } else {
            assert_eq!(failed, 0, "views on other masters failed: {views:#?}");
            assert_consecutive(counts);
        }
    }
}

/// `/health/ready` asks all masters.
#[tokio::test]
async fn ready_means_all_masters() {
    let cluster = Cluster::start().await;
    let service = instance(&cluster);
    service.wait_until_ready().await;
    for master in &cluster.masters {
        master.executed();
    }
    assert_eq!(Visitor::new().view(&service, "/health/ready").await.status, 200);
    for master in &cluster.masters {
        assert_eq!(master.executed(), 1);
    }
    for master in &cluster.masters {
        signal(master.id(), "STOP");
        assert_eq!(Visitor::new().view(&service, "/health/ready").await.status, 503);
        signal(master.id(), "CONT");
        service.wait_until_ready().await;
    }
}

#[tokio::test]
async fn a_master_stays_frozen() {
    /// How long a link in doubt is used.
    const LONGEST_DEGRADED: Duration = Duration::from_secs(30);
    const GIVEN_UP: &str = "the connection to Redis is lost: a Redis Cluster node did not recover";
    let cluster = Cluster::start().await;
    for master in &cluster.masters {
        // Else it serves nobody once a master has failed.
        master.expect_ok(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    let service = instance(&cluster);
    let mut visitors = visitors(&service, &cluster, 30).await;
    visitors.sort_by_key(|visitor| place(&cluster, visitor).1);
    signal(cluster.masters[0].id(), "STOP");
    assert_eq!(visitors[0].view(&service, "/foo").await.status, 503);
    let begin = Instant::now();
    let other = visitors.last_mut().unwrap();
    for expected in 2.. {
        let answer = other.view(&service, "/foo").await;
        if answer.status == 503 {
            break;
        }
        assert_eq!(answer.count(), expected, "after {:?}", begin.elapsed());
        assert!(begin.elapsed() < 2 * LONGEST_DEGRADED, "the link is still in use");
        sleep(Duration::from_millis(20)).await;
    }
    let took = begin.elapsed();
    assert!(took > LONGEST_DEGRADED - DEADLINE, "the link was given up after {took:?}");
    let has_said_so = async || service.log().iter().any(|line| line.contains(GIVEN_UP)).then_some(());
    eventually("the log says that the link is given up", has_said_so).await;
    signal(cluster.masters[0].id(), "CONT");
    service.wait_until_ready().await;
    assert!(visitors[0].count(&service, "/foo").await <= 3);
}

fn first_page_since(views: &[View], moment: Instant) -> &View {
    let mut pages = views.iter().filter(|view| view.status == 200);
    pages.find(|view| view.end() > moment).unwrap()
}

fn assert_answered(views: &[View]) {
    for view in views {
        assert!(matches!(view.status, 200 | 503), "{view:?}");
        assert!(view.took < DEADLINE, "{view:?}");
    }
}

/// Asserts that each count is the previous one plus 1, plus at most 1 for each 503 in between: such a
/// view may have been counted.
fn assert_rising(mut before: u64, views: &[View]) {
    let mut doubtful = 0;
    for view in views {
        let Some(count) = view.count else {
            doubtful += 1;
            continue;
        };
        assert!(
            (before + 1..=before + 1 + doubtful).contains(&count),
            "{count} after {before} and {doubtful} 503s, in {views:#?}"
        );
        (before, doubtful) = (count, 0);
    }
}
