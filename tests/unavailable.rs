//! Promise: if the store fails, a visitor is told so within 3 s, in one clear sentence, with no
//! cookie; and the service is back with Redis, by itself.

use std::time::{Duration, Instant};

use crate::common::{
    Answer, BROWSER, Proxy, Redis, Service, Visitor, eventually, free_port, signal,
};
use futures_util::future::join_all;
use reqwest::Method;

const PROMISE: Duration = Duration::from_secs(3);
const SENTENCE: &str = "your session is out of reach for the moment, please try again";

fn assert_unavailable(answer: &Answer, content_type: &str) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some(content_type));
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("vary"), Some("Accept, Cookie"));
    assert_eq!(answer.cookie(), None);
}

/// A returning visitor, a new one, and ones with an unknown and with a malformed id, all at once.
async fn assert_all_unavailable(service: &Service, returning: &Visitor) {
    let visitors = [
        returning.clone(),
        Visitor::new(),
        Visitor::with_cookie("id=AAAAAAAAAAAAAAAAAAAAAA"),
        Visitor::with_cookie("id=malformed"),
    ];
    let answers = visitors.iter().flat_map(|visitor| {
        ["*/*", BROWSER].map(|accept| {
            let mut visitor = visitor.clone();
            async move {
                let begin = Instant::now();
                let answer = visitor.request(Method::GET, service, "/", accept).await;
                (accept, answer, begin.elapsed())
            }
        })
    });
    for (accept, answer, elapsed) in join_all(answers).await {
        if accept == BROWSER {
            assert_unavailable(&answer, "text/html; charset=utf-8");
            assert!(answer.body.contains(SENTENCE), "{answer:?}");
        } else {
            assert_unavailable(&answer, "text/plain; charset=utf-8");
            assert_eq!(answer.body, SENTENCE);
        }
        assert!(elapsed < PROMISE, "an answer took {elapsed:?}");
    }
    let ready = Visitor::new().view(service, "/health/ready").await;
    assert_eq!(
        (ready.status, ready.body.as_str()),
        (503, "the store does not answer")
    );
    let live = Visitor::new().view(service, "/health/live").await;
    assert_eq!(live.status, 200);
}

#[tokio::test]
async fn redis_that_is_gone() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    drop(redis);
    assert_all_unavailable(&service, &visitor).await;
}

#[tokio::test]
async fn redis_that_does_not_answer() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    signal(redis.id(), "STOP");
    assert_all_unavailable(&service, &visitor).await;
    signal(redis.id(), "CONT");
    eventually("a view", async || {
        (visitor.view(&service, "/").await.status == 200).then_some(())
    })
    .await;
    let log = service.stop();
    let without_reason = log
        .iter()
        .find(|line| line.contains("no answer within 2.5s"));
    assert_eq!(without_reason, None, "{log:#?}");
}

#[tokio::test]
async fn redis_that_is_slow() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let service = Service::start([("REDIS_URL", proxy.url().as_str())]);
    assert_eq!(Visitor::new().count(&service, "/").await, 1);
    // Each command is answered in time, but an unknown id takes five: count, for which the script is
    // yet unknown, read, create.
    proxy.delay(Duration::from_millis(700));
    let begin = Instant::now();
    let mut unknown = Visitor::with_cookie("id=AAAAAAAAAAAAAAAAAAAAAA");
    assert_unavailable(
        &unknown.view(&service, "/").await,
        "text/plain; charset=utf-8",
    );
    assert!(
        begin.elapsed() < PROMISE,
        "the answer took {:?}",
        begin.elapsed()
    );
    let log = service.stop();
    let warnings = log
        .iter()
        .filter(|line| line.contains("no answer within 2.5s"));
    assert_eq!(warnings.count(), 1, "{log:#?}");
}

#[tokio::test]
async fn redis_whose_answer_to_a_new_visitor_is_lost() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let service = Service::start([("REDIS_URL", proxy.url().as_str())]);
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    proxy.lose_answer();
    let mut new = Visitor::new();
    for view in 1..=3 {
        assert_eq!(new.count(&service, "/").await, view, "{:#?}", service.log());
    }
    assert_eq!(visitor.count(&service, "/").await, 2);
}

#[tokio::test]
async fn redis_that_refuses() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for mut refused in [visitor.clone(), Visitor::new()] {
        let answer = refused.view(&service, "/").await;
        assert_unavailable(&answer, "text/plain; charset=utf-8");
    }
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    // A view that is refused is not counted.
    assert_eq!(visitor.count(&service, "/").await, 2);
    assert_eq!(Visitor::new().count(&service, "/").await, 1);
    let log = service.stop();
    let warnings: Vec<_> = log.iter().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].contains("OOM"), "no reason: {warnings:#?}");
}

#[tokio::test]
async fn redis_that_comes_later() {
    let port = free_port();
    let url = format!("redis://127.0.0.1:{port}");
    let service = Service::start([("REDIS_URL", url.as_str())]);
    assert_all_unavailable(&service, &Visitor::new()).await;
    let redis = Redis::start_on(port);
    eventually("a view", async || {
        (Visitor::new().view(&service, "/").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(
        Visitor::new().view(&service, "/health/ready").await.status,
        200
    );
    let keys = redis.keys();
    assert_eq!(
        keys.len(),
        1,
        "sessions of visitors who were told 503: {keys:#?}"
    );
}
