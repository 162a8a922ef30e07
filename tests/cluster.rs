//! Promise: on a Redis Cluster the counts are as exact as on one Redis, also while slots move to
//! another master; and if a master is gone, the service is back with the replica in its place.

use std::time::{Duration, Instant};

use crate::common::{
    Cluster, Load, Migration, PATIENCE, Redis, Service, View, Visitor, eventually, session_id,
};
use futures_util::future::join_all;

const PROMISE: Duration = Duration::from_secs(3);

fn instances(cluster: &Cluster) -> [Service; 2] {
    let url = cluster.url();
    [(); 2].map(|()| Service::start([("REDIS_URL", url.as_str())]))
}

/// Visitors on their first view of `/foo`, and at least one on each master.
async fn visitors(service: &Service, cluster: &Cluster, number: usize) -> Vec<Visitor> {
    let mut visitors = vec![Visitor::new(); number];
    for visitor in &mut visitors {
        assert_eq!(visitor.count(service, "/foo").await, 1);
    }
    // Of 30, none on one of the masters is a matter of 1 to 60,000.
    let keys = cluster.keys();
    let places = keys.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(places.iter().sum::<usize>(), number, "{keys:#?}");
    assert!(!places.contains(&0), "keys on the masters: {places:?}");
    visitors
}

fn place(cluster: &Cluster, visitor: &Visitor) -> (u16, usize) {
    cluster.place(&session_id(visitor.cookie.as_ref().unwrap()))
}

/// Each of these numbers once, and no other.
fn assert_each_once(mut counts: Vec<u64>, first: u64) {
    counts.sort_unstable();
    let expected = (first..).take(counts.len());
    let wrong = counts
        .iter()
        .zip(expected)
        .find(|(count, right)| **count != *right);
    assert_eq!(
        wrong, None,
        "the first wrong number, and the right one, of {counts:?}"
    );
}

#[tokio::test]
async fn overlapping_views_over_two_instances() {
    const VIEWS: usize = 200;
    const AT_ONCE: usize = 10;
    let cluster = Cluster::start().await;
    let services = instances(&cluster);
    let visitors = visitors(&services[0], &cluster, 30).await;
    let views = visitors.iter().map(|visitor| {
        let views = (0..AT_ONCE).map(|n| {
            let mut visitor = visitor.clone();
            let services = &services;
            async move {
                let mut counts = Vec::new();
                // One was the first.
                for view in 0..VIEWS / AT_ONCE - usize::from(n == 0) {
                    let service = &services[(n + view) % services.len()];
                    counts.push(visitor.count(service, "/foo").await);
                }
                counts
            }
        });
        join_all(views)
    });
    for counts in join_all(views).await {
        let counts = counts.concat();
        assert_eq!(counts.len(), VIEWS - 1);
        assert_each_once(counts, 2);
    }
}

#[tokio::test]
async fn sessions_that_are_over_leave_nothing_behind() {
    let cluster = Cluster::start().await;
    let [service, _] = instances(&cluster);
    let all_keys = || {
        let keys = |node: &Redis| node.cli(&["KEYS", "*"]);
        let keys: Vec<_> = cluster.masters.iter().map(keys).collect();
        let keys = keys.join("\n");
        keys.lines()
            .map(str::to_owned)
            .filter(|key| !key.is_empty())
            .collect::<Vec<_>>()
    };
    let delete = |visitor: &Visitor| {
        let (_, master) = place(&cluster, visitor);
        let id = session_id(visitor.cookie.as_ref().unwrap());
        cluster.masters[master].cli(&["DEL", &id, &format!("v:{{{id}}}")]);
    };
    for n in 10..20 {
        let mut visitor = Visitor::with_cookie(format!("id=AAAAAAAAAAAAAAAAAAAA{n}"));
        assert_eq!(visitor.count(&service, "/").await, 1);
        delete(&visitor);
    }
    assert_eq!(all_keys(), [""; 0]);
    // What is left of a session that was counted is the reply to its slot's last call, without its id.
    let mut visitor = Visitor::new();
    for view in 1..=3 {
        assert_eq!(visitor.count(&service, "/").await, view);
    }
    delete(&visitor);
    let old = visitor.cookie.clone().unwrap();
    assert_eq!(visitor.count(&service, "/").await, 1);
    delete(&visitor);
    let keys = all_keys();
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert!(keys[0].starts_with("calls:"), "{keys:?}");
    assert!(!keys[0].contains(&session_id(&old)), "{keys:?}");
    assert_eq!(
        cluster.place(&keys[0]).0,
        cluster.place(&session_id(&old)).0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_cut_under_load() {
    const TABS: usize = 3;
    let cluster = Cluster::start().await;
    let services = instances(&cluster);
    let visitors = visitors(&services[0], &cluster, 30).await;
    let tabs = visitors
        .iter()
        .flat_map(|visitor| vec![visitor.clone(); TABS]);
    let load = Load::start(&services, &tabs.collect::<Vec<_>>());
    let cuts = cluster.masters.iter().map(|master| {
        let end = load.served(50);
        // Connecting to a Cluster takes some more round trips.
        master.keep_cutting(Duration::from_millis(100), end)
    });
    let cuts = join_all(cuts).await;
    assert!(cuts.iter().all(|cuts| *cuts > 2), "{cuts:?} cuts");
    for tabs in load.stop().await.chunks(TABS) {
        let views = tabs.iter().flat_map(|(_, views)| views);
        let failed = views.clone().find(|view| view.status != 200);
        assert!(failed.is_none(), "{failed:?}");
        assert_each_once(views.filter_map(|view| view.count).collect(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_under_load() {
    const TABS: usize = 3;
    let cluster = Cluster::start().await;
    let services = instances(&cluster);
    let visitors = visitors(&services[0], &cluster, 30).await;
    let moved = &visitors[0];
    let (slot, from) = place(&cluster, moved);
    let to = (from + 1) % 3;
    let tabs = visitors
        .iter()
        .flat_map(|visitor| vec![visitor.clone(); TABS]);
    let load = Load::start(&services, &tabs.collect::<Vec<_>>());
    load.served(2).await;
    let migration = Migration::begin(&cluster, slot, from, to);
    load.served(2).await;
    assert!(migration.move_keys() > 1, "the record, and the views");
    migration.end();
    load.served(2).await;
    for tabs in load.stop().await.chunks(TABS) {
        let views = tabs.iter().flat_map(|(_, views)| views);
        let failed = views.clone().find(|view| view.status != 200);
        let is_moved = tabs[0].0.cookie == moved.cookie;
        assert!(
            failed.is_none(),
            "of the moved slot: {is_moved}, {failed:?}"
        );
        assert_each_once(views.filter_map(|view| view.count).collect(), 2);
    }
    let id = session_id(moved.cookie.as_ref().unwrap());
    let keys = cluster.keys();
    let there = keys[to].iter().filter(|key| key.contains(&id)).count();
    let all = keys.concat().iter().filter(|key| key.contains(&id)).count();
    assert!(there > 1 && there == all, "{id} on master {to}: {keys:#?}");
}

/// The session of that slot may be out of reach for so long. All others are counted on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_takes_long_to_move() {
    let cluster = Cluster::start().await;
    let services = instances(&cluster);
    let visitors = visitors(&services[0], &cluster, 30).await;
    let (slot, from) = place(&cluster, &visitors[0]);
    let load = Load::start(&services, &visitors);
    load.served(2).await;
    let migration = Migration::begin(&cluster, slot, from, (from + 1) % 3);
    assert!(migration.move_keys() > 1, "the record, and the views");
    load.served_to(1.., 50).await;
    migration.end();
    load.served(2).await;
    for (n, (_, views)) in load.stop().await.iter().enumerate() {
        assert_answered(views);
        assert_rising(1, views);
        let failed = views.iter().find(|view| n > 0 && view.status != 200);
        assert!(failed.is_none(), "of another slot: {failed:?}");
    }
}

/// While a slot moves, Redis refuses the script of a session that has a record and no views yet: it
/// cannot tell whether they are at the new master. It says to try again, until the slot has moved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_view_while_its_slot_moves() {
    let cluster = Cluster::start().await;
    let services = instances(&cluster);
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&services[0], "/foo").await, 1);
    let (slot, from) = place(&cluster, &visitor);
    let migration = Migration::begin(&cluster, slot, from, (from + 1) % 3);
    let port = services[1].port;
    let view = tokio::spawn(async move { visitor.view(&port, "/foo").await });
    eventually("a refusal", async || {
        let refusals = cluster.masters[from].info("errorstats", "errorstat_TRYAGAIN");
        refusals.map(drop)
    })
    .await;
    assert_eq!(migration.move_keys(), 1, "the record");
    migration.end();
    let answer = view.await.unwrap();
    assert_eq!(answer.count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_gone_under_load() {
    let mut cluster = Cluster::start_with_replica().await;
    // They know the others by the one that will be gone.
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
        // What the lost master had not told its replica may be counted anew.
        if master != 0 {
            assert_rising(1, views);
        }
    }
    println!("all visitors have their page again {back:?} after the promotion");
    assert!(back < PATIENCE, "{back:?}");
}

fn first_page_since(views: &[View], moment: Instant) -> &View {
    let mut pages = views.iter().filter(|view| view.status == 200);
    pages.find(|view| view.end() > moment).unwrap()
}

fn assert_answered(views: &[View]) {
    for view in views {
        assert!(matches!(view.status, 200 | 503), "{view:?}");
        assert!(view.took < PROMISE, "{view:?}");
    }
}

/// Each number is the one before and one more; and up to one more for each 503 in between, which may
/// have been counted.
fn assert_rising(mut before: u64, views: &[View]) {
    let mut doubtful = 0;
    for view in views {
        let Some(count) = view.count else {
            doubtful += 1;
            continue;
        };
        assert!(
            (before + 1..=before + 1 + doubtful).contains(&count),
            "after {before}, with {doubtful} 503s: {count}, of {views:#?}"
        );
        (before, doubtful) = (count, 0);
    }
}
