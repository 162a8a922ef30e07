//! Promise: with Sentinel, the service recovers when the primary fails: pages are available within 2 s
//! of the Sentinels' announcement of the new primary, and the counts continue.

use std::time::Duration;

use crate::common::{Load, Redis, Sentinels, Service, Visitor, eventually, kill, sentinel, threads};

/// The time from the announcement until pages are available.
const RECOVERY: Duration = Duration::from_secs(2);

/// Every view is answered by then.
const DEADLINE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn credentials_are_sent_to_redis_not_to_sentinels() {
    let redis = Redis::start();
    redis.cli(&["ACL", "SETUSER", "ada", "on", ">hunter2", "~*", "+@all"]);
    let sentinel = sentinel(&redis);
    let url = format!("redis-sentinel://ada:hunter2@127.0.0.1:{}?sentinelServiceName=main", sentinel.port);
    let service = Service::start([("REDIS_URL", url.as_str())]);
    service.wait_until_ready().await;
    let mut visitor = Visitor::new();
    for view in 1..=2 {
        assert_eq!(visitor.count(&service, "/").await, view);
    }
    let clients = redis.cli(&["CLIENT", "LIST"]);
    assert_eq!(clients.matches(" user=ada ").count(), threads(), "{clients}");
}

#[tokio::test]
async fn attempts_to_connect_leave_no_connection_to_a_sentinel() {
    const ATTEMPTS: usize = 20;
    let redis = Redis::start();
    let sentinel = sentinel(&redis);
    let _port = kill(redis);
    let url = format!("redis-sentinel://127.0.0.1:{}?sentinelServiceName=main", sentinel.port);
    let service = Service::start([("REDIS_URL", url.as_str()), ("RUST_LOG", "cloud_run_sessions=debug")]);
    eventually("the primary cannot be reached", async || {
        let failures = service.log().iter().filter(|line| line.contains("Redis cannot be reached")).count();
        (failures >= ATTEMPTS).then_some(())
    })
    .await;
    // Each thread has one while it connects, and redis-cli has one.
    let most = threads() + 1;
    let mut clients = 0;
    eventually("the others are closed", async || {
        clients = sentinel.cli(&["CLIENT", "LIST"]).lines().count();
        (clients <= most).then_some(()).or_else(|| {
            println!("{clients} connections");
            None
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_fails_under_load() {
    let mut sentinels = Sentinels::start().await;
    let url = sentinels.url();
    let services = [(); 2].map(|()| Service::start([("REDIS_URL", url.as_str())]));
    let mut visitors = vec![Visitor::new(); 20];
    for visitor in &mut visitors {
        for view in 1..=3 {
            assert_eq!(visitor.count(&services[0], "/foo").await, view);
        }
    }
    // The replica has three views of each visitor. Views under load may get lost in the failover.
    sentinels.wait_for_replication().await;
    let (active, idle) = visitors.split_at_mut(10);
    let load = Load::start(&services, active);
    load.served(3).await;
    let promotion = sentinels.kill_primary().await;
    load.served(3).await;
    let seen = load.stop().await;

    for visitor in idle {
        assert_eq!(visitor.count(&services[1], "/foo").await, 4);
    }
    let mut back = Duration::ZERO;
    for (_, views) in &seen {
        for view in views {
            assert!(matches!(view.status, 200 | 503), "{view:?}");
            assert!(view.took < DEADLINE, "{view:?}");
            // No session is lost.
            assert!(view.count.is_none_or(|count| count > 3), "{view:?}");
        }
        let mut pages = views.iter().filter(|view| view.status == 200);
        let first = pages.find(|view| view.end() > promotion.done).unwrap();
        back = back.max(first.end() - promotion.done);
    }
    println!(
        "all visitors get the page again {back:?} after the promotion, which the Sentinels \
         announced after {:?}",
        promotion.announced - promotion.done
    );
    // A Sentinel may name the failed primary for another second after the promotion.
    let announced = promotion.announced - promotion.done;
    assert!(back < announced + RECOVERY, "{back:?} after the promotion, which was announced after {announced:?}");
}
