//! Promise: with Sentinel, the counts go on when the primary is gone and its replica has taken its
//! place: within 2 s of the Sentinels' word the pages are back, with the number that follows.

use std::time::Duration;

use crate::common::{Load, Redis, Sentinels, Service, Visitor, sentinel};

/// From the promotion's announcement to the pages.
const BACK: Duration = Duration::from_secs(2);

const PROMISE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn credentials_are_for_redis_not_for_its_sentinels() {
    let redis = Redis::start();
    redis.cli(&["ACL", "SETUSER", "ada", "on", ">hunter2", "~*", "+@all"]);
    let sentinel = sentinel(&redis);
    let url = format!(
        "redis-sentinel://ada:hunter2@127.0.0.1:{}?sentinelServiceName=main",
        sentinel.port
    );
    let service = Service::start([("REDIS_URL", url.as_str())]);
    let mut visitor = Visitor::new();
    for view in 1..=2 {
        assert_eq!(visitor.count(&service, "/").await, view);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_gone_under_load() {
    let mut sentinels = Sentinels::start().await;
    let url = sentinels.url();
    let services = [(); 2].map(|()| Service::start([("REDIS_URL", url.as_str())]));
    let mut visitors = vec![Visitor::new(); 20];
    for visitor in &mut visitors {
        for view in 1..=3 {
            assert_eq!(visitor.count(&services[0], "/foo").await, view);
        }
    }
    // The replica has the third view of each visitor. What half of them add under load it may have.
    sentinels.in_step().await;
    let (coming, resting) = visitors.split_at_mut(10);
    let load = Load::start(&services, coming);
    load.served(3).await;
    let promotion = sentinels.kill_primary().await;
    load.served(3).await;
    let seen = load.stop().await;

    for visitor in resting {
        assert_eq!(visitor.count(&services[1], "/foo").await, 4);
    }
    let mut back = Duration::ZERO;
    for (_, views) in &seen {
        for view in views {
            assert!(matches!(view.status, 200 | 503), "{view:?}");
            assert!(view.took < PROMISE, "{view:?}");
            // No session begins anew.
            assert!(view.count.is_none_or(|count| count > 3), "{view:?}");
        }
        let mut pages = views.iter().filter(|view| view.status == 200);
        let first = pages.find(|view| view.end() > promotion.done).unwrap();
        back = back.max(first.end() - promotion.done);
    }
    println!(
        "all visitors have their page again {back:?} after the promotion, which the Sentinels \
         announced after {:?}",
        promotion.announced - promotion.done
    );
    // A Sentinel learns of it up to a second later, and until then names the one that is gone.
    let announced = promotion.announced - promotion.done;
    assert!(
        back < announced + BACK,
        "{back:?}, and announced {announced:?} after the promotion"
    );
}
