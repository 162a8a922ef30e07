//! Promise: concurrent views are each counted exactly once, on one instance and on two.

use crate::common::{Redis, Service, Visitor, assert_each_once, may_connect};
use futures_util::future::join_all;

/// Views of one visitor.
const VIEWS: u64 = 4000;

/// Views in flight at a time, each on its own connection.
const CONCURRENT: u64 = 500;

/// Starts the instances, and lets one visitor view a page on all of them at once.
async fn assert_exact(start: impl Fn() -> Vec<Service>) {
    if !may_connect(CONCURRENT) {
        return;
    }
    let services = start();
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&services[0], "/foo").await, 1);
    let views = (0..CONCURRENT).map(|n| {
        let mut visitor = visitor.clone();
        let service = &services[n as usize % services.len()];
        async move {
            let mut counts = Vec::new();
            for _ in 0..VIEWS / CONCURRENT {
                counts.push(visitor.count(service, "/foo").await);
            }
            counts
        }
    });
    assert_each_once(join_all(views).await.concat(), 2..VIEWS + 2);
}

#[tokio::test]
async fn concurrent_views_on_two_instances() {
    let redis = Redis::start();
    assert_exact(|| vec![Service::on(&redis), Service::on(&redis)]).await;
}

#[tokio::test]
async fn concurrent_views_in_the_in_memory_store() {
    assert_exact(|| vec![Service::start([])]).await;
}

#[tokio::test]
async fn two_instances_share_sessions() {
    let redis = Redis::start();
    let services = [Service::on(&redis), Service::on(&redis)];
    let mut visitor = Visitor::new();
    for view in 1..=10 {
        assert_eq!(visitor.count(&services[view as usize % 2], "/bar").await, view);
    }
}
