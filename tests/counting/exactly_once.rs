//! Promise: a view that is answered with a number was counted exactly once, whatever happens to
//! connections, replies and delayed calls, in each form of compare-and-set that servers have. A view that is answered
//! 503 may have been counted, and affects no other view.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use crate::common::{
    Dialect, Form, Redis, Service, Visitor, Waiting, assert_each_once, behind_proxy_as, far_from, number, session_id,
    signal,
};

/// Connections are cut at this interval, or a longer one on a busy machine.
const CUT_INTERVAL: Duration = Duration::from_millis(10);

/// Every view is answered by then.
const DEADLINE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn connections_are_cut_continuously() {
    let redis = Redis::start();
    cut_continuously(&redis, [Service::on(&redis), Service::on(&redis)], 3000, 50).await;
}

#[tokio::test]
async fn connections_are_cut_in_each_form() {
    for form in Form::ALL {
        println!("{form:?}");
        let redis = Redis::start();
        let url = Dialect::start(&redis, form).await.url();
        let services = [(); 2].map(|()| Service::start([("REDIS_URL", url.as_str())]));
        cut_continuously(&redis, services, 300, 5).await;
    }
}

/// Lets ten visitors view a page this often each, over both services and with ten views in flight, while connections are
/// cut.
async fn cut_continuously(redis: &Redis, services: [Service; 2], views: u64, least_cuts: u64) {
    const VISITORS: u64 = 10;
    /// Views of one visitor in flight at a time.
    const CONCURRENT: u64 = 10;
    let slowest = AtomicU64::new(0);
    let visits = async {
        let visitors = (0..VISITORS).map(async |_| {
            let mut visitor = Visitor::new();
            assert_eq!(visitor.count(&services[0], "/").await, 1);
            let tabs = (0..CONCURRENT).map(async |n| {
                let mut visitor = visitor.clone();
                let mut counts = Vec::new();
                for _ in 0..views / CONCURRENT {
                    let begin = Instant::now();
                    counts.push(visitor.count(&services[n as usize % 2], "/").await);
                    slowest.fetch_max(begin.elapsed().as_millis() as u64, Relaxed);
                }
                counts
            });
            assert_each_once(join_all(tabs).await.concat(), 2..views + 2);
        });
        join_all(visitors).await;
    };
    let begin = Instant::now();
    let cuts = redis.keep_cutting(CUT_INTERVAL, visits).await;
    let slowest = Duration::from_millis(slowest.into_inner());
    println!("{cuts} cuts in {:?}, the slowest view took {slowest:?}", begin.elapsed());
    assert!(cuts >= least_cuts, "{cuts} cuts");
    assert!(slowest < DEADLINE, "a view took {slowest:?}");
}

#[tokio::test]
async fn a_reply_is_lost() {
    for form in Form::ALL {
        let (_redis, proxy, service, mut visitor) = behind_proxy_as(form).await;
        proxy.lose_reply();
        assert_eq!(visitor.count(&service, "/").await, 3);
        assert_eq!(visitor.count(&service, "/").await, 4);
    }
}

#[tokio::test]
async fn the_reply_to_several_views_is_lost() {
    for form in Form::ALL {
        println!("{form:?}");
        let redis = Redis::start();
        let (proxy, service) = far_from(&Dialect::start(&redis, form).await, &[]).await;
        let mut visitor = Visitor::new();
        for view in 1..=2 {
            assert_eq!(visitor.count(&service, "/").await, view);
        }
        let before = proxy.calls();
        let waiting = Waiting::send_behind_a_call(&proxy, &service, &vec![visitor; 20]).await;
        proxy.lose_reply();
        proxy.open();
        assert_each_once(Waiting::counts(waiting).await, 3..23);
        // The first view's call, that of the others, and the latter again.
        assert_eq!(proxy.calls() - before, 3);
    }
}

#[tokio::test]
async fn a_lost_call_arrives_after_its_retry() {
    for form in Form::ALL {
        let (redis, proxy, service, mut visitor) = behind_proxy_as(form).await;
        proxy.lose_call();
        let view = visitor.count(&service, "/");
        assert_eq!(view.await, 3);
        let lost = proxy.last_call();
        let value = || redis.cli(&["GET", &session_id(visitor.cookie.as_deref().unwrap())]);
        // The retry was the last call.
        let before = value();
        proxy.deliver(&lost).await;
        assert_eq!(value(), before);
        assert_eq!(visitor.clone().count(&service, "/").await, 4);
        // A newer call was the last one.
        let before = value();
        proxy.deliver(&lost).await;
        assert_eq!(value(), before);
        assert_eq!(visitor.clone().count(&service, "/").await, 5);
    }
}

#[tokio::test]
async fn a_call_is_duplicated() {
    for form in Form::ALL {
        let (_redis, proxy, service, mut visitor) = behind_proxy_as(form).await;
        for view in 3..=5 {
            assert_eq!(visitor.count(&service, "/").await, view);
            let call = proxy.last_call();
            for _ in 0..2 {
                proxy.deliver(&call).await;
            }
        }
        assert_eq!(visitor.count(&service, "/").await, 6);
    }
}

#[tokio::test]
async fn a_view_that_is_answered_503_affects_no_other() {
    for form in Form::ALL {
        let (redis, _proxy, service, mut visitor) = behind_proxy_as(form).await;
        let mut other = Visitor::new();
        for view in 1..=2 {
            assert_eq!(other.count(&service, "/").await, view);
        }
        // Redis receives the calls but does not reply.
        signal(redis.id(), "STOP");
        let begin = Instant::now();
        assert_eq!(visitor.view(&service, "/").await.status, 503);
        assert!(begin.elapsed() < DEADLINE, "{:?}", begin.elapsed());
        signal(redis.id(), "CONT");
        assert_eq!(other.count(&service, "/").await, 3);
        let count = visitor.count(&service, "/").await;
        assert!([3, 4].contains(&count), "{count}");
        assert_eq!(visitor.count(&service, "/").await, count + 1);
    }
}

#[tokio::test]
async fn a_session_that_cannot_be_counted_affects_no_other() {
    for form in Form::ALL {
        println!("{form:?}");
        let redis = Redis::start();
        let (proxy, service) = far_from(&Dialect::start(&redis, form).await, &[]).await;
        let (mut visitor, mut broken) = (Visitor::new(), Visitor::new());
        for visitor in [&mut visitor, &mut broken] {
            assert_eq!(visitor.count(&service, "/").await, 1);
        }
        let id = session_id(broken.cookie.as_deref().unwrap());
        redis.cli(&["DEL", &id]);
        redis.cli(&["RPUSH", &id, "no session"]);
        let before = proxy.calls();
        let visitors: Vec<_> = (0..10).map(|n| if n % 3 == 1 { &broken } else { &visitor }.clone()).collect();
        let waiting = Waiting::send_behind_a_call(&proxy, &service, &visitors).await;
        proxy.open();
        let answers = join_all(waiting.into_iter().map(Waiting::answer)).await;
        // The first view's call, and one that the two sessions share.
        assert_eq!(proxy.calls() - before, 2);
        let (refused, counted): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.contains("HTTP/1.1 503 "));
        assert_eq!(refused.len(), 3, "{answers:#?}");
        assert_each_once(counted.iter().map(|answer| number(answer).unwrap()).collect(), 2..9);
    }
}

#[tokio::test]
async fn new_visitors_while_connections_are_cut() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let visits = async {
        let visitors = (0..20).map(async |_| {
            for _ in 0..60 {
                let mut visitor = Visitor::new();
                for view in 1..=2 {
                    assert_eq!(visitor.count(&service, "/").await, view);
                }
            }
        });
        join_all(visitors).await;
    };
    let cuts = redis.keep_cutting(CUT_INTERVAL, visits).await;
    println!("{cuts} cuts");
    assert!(cuts >= 5, "{cuts} cuts");
}
