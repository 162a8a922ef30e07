//! Promise: each page tells each visitor how often they viewed it, in the form they ask for, and
//! nothing but a page's GET is a view. The same on Redis and on the embedded store.

use crate::common::{BROWSER, Redis, Service, Visitor};
use reqwest::Method;

/// Runs a test on both stores. `None` is the embedded one.
async fn on_both(test: impl AsyncFn(&Service, Option<&Redis>)) {
    let redis = Redis::start();
    test(&Service::on(&redis), Some(&redis)).await;
    test(&Service::start([]), None).await;
}

#[tokio::test]
async fn each_page_counts_for_itself_and_each_visitor() {
    on_both(async |service, _| {
        let (mut ada, mut bob) = (Visitor::new(), Visitor::new());
        let paths = [
            "/foo", "/foo", "/", "/bar", "/", "/foo?a=1", "/foo?b#c", "/bar?", "/",
        ];
        let mut seen = Vec::new();
        for path in paths {
            seen.push(ada.count(service, path).await);
        }
        assert_eq!(
            seen,
            [1, 2, 1, 1, 2, 3, 4, 2, 3],
            "Ada's views of {paths:?}"
        );
        assert_eq!(bob.count(service, "/foo").await, 1);
        assert_eq!(bob.count(service, "/").await, 1);
    })
    .await;
}

#[tokio::test]
async fn text_is_the_sentence_and_nothing_else() {
    on_both(async |service, _| {
        for accept in ["*/*", "", "application/json"] {
            let answer = Visitor::new()
                .request(Method::GET, service, "/", accept)
                .await;
            assert_eq!(answer.body, "you viewed this page 1 times");
            assert_eq!(
                answer.header("content-type"),
                Some("text/plain; charset=utf-8")
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_browser_gets_a_page_with_links() {
    on_both(async |service, _| {
        let answer = Visitor::new()
            .request(Method::GET, service, "/foo", BROWSER)
            .await;
        assert_eq!(answer.count(), 1);
        assert_eq!(
            answer.header("content-type"),
            Some("text/html; charset=utf-8")
        );
        for part in [
            "<!doctype html>",
            "href=\"/\"",
            "href=\"/foo\"",
            "href=\"/bar\"",
        ] {
            assert!(answer.body.contains(part), "no {part} in {}", answer.body);
        }
    })
    .await;
}

#[tokio::test]
async fn no_answer_of_a_page_may_be_kept() {
    on_both(async |service, _| {
        for method in [Method::GET, Method::HEAD, Method::POST] {
            for accept in ["*/*", BROWSER] {
                let answer = Visitor::new()
                    .request(method.clone(), service, "/bar", accept)
                    .await;
                assert_eq!(
                    answer.header("cache-control"),
                    Some("no-store"),
                    "{method} {answer:?}"
                );
                assert_eq!(
                    answer.header("vary"),
                    Some("Accept, Cookie"),
                    "{method} {answer:?}"
                );
            }
        }
    })
    .await;
}

#[tokio::test]
async fn head_is_answered_and_not_counted() {
    on_both(async |service, redis| {
        let mut visitor = Visitor::new();
        for (accept, content_type) in [
            ("*/*", "text/plain; charset=utf-8"),
            (BROWSER, "text/html; charset=utf-8"),
        ] {
            let head = visitor.request(Method::HEAD, service, "/", accept).await;
            assert_eq!(head.status, 200);
            assert_eq!(head.header("content-type"), Some(content_type));
            assert_eq!(
                head.header("content-length"),
                None,
                "no view, so no length is known"
            );
            assert_eq!(head.cookie(), None);
        }
        assert_eq!(redis.map(Redis::keys).unwrap_or_default(), [""; 0]);
        assert_eq!(visitor.count(service, "/").await, 1);
        visitor.request(Method::HEAD, service, "/", "*/*").await;
        assert_eq!(visitor.count(service, "/").await, 2);
    })
    .await;
}

#[tokio::test]
async fn other_methods_are_refused() {
    on_both(async |service, redis| {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let answer = Visitor::new()
                .request(method.clone(), service, "/foo", "*/*")
                .await;
            assert_eq!(answer.status, 405, "{method}");
            assert_eq!(answer.header("allow"), Some("GET,HEAD"), "{method}");
            assert_eq!(answer.cookie(), None, "{method}");
        }
        assert_eq!(redis.map(Redis::keys).unwrap_or_default(), [""; 0]);
    })
    .await;
}

#[tokio::test]
async fn an_unknown_path_stores_nothing() {
    on_both(async |service, redis| {
        let mut visitor = Visitor::new();
        visitor.view(service, "/").await;
        let keys = redis.map(Redis::keys);
        let tries = (0..300).map(|n| format!("/{n}"));
        let others = [
            "/favicon.ico",
            "/foo/",
            "//",
            "/FOO",
            "/%66oo",
            "/foo/bar",
            "/health",
        ];
        for path in tries.chain(others.map(str::to_owned)) {
            // As somebody new, and as somebody with a session.
            for mut visitor in [Visitor::new(), visitor.clone()] {
                let answer = visitor.view(service, &path).await;
                assert_eq!(answer.status, 404, "{path}");
                assert_eq!(answer.cookie(), None, "{path}");
            }
        }
        assert_eq!(redis.map(Redis::keys), keys);
        assert_eq!(visitor.count(service, "/").await, 2);
    })
    .await;
}

#[tokio::test]
async fn an_unknown_path_is_told_in_the_form_asked_for() {
    let service = Service::start([]);
    let text = Visitor::new()
        .request(Method::GET, &service, "/x", "*/*")
        .await;
    assert_eq!(text.body, "there is no page here");
    let page = Visitor::new()
        .request(Method::GET, &service, "/<x>", BROWSER)
        .await;
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    assert!(page.body.contains("there is no page here"), "{page:?}");
    assert!(
        !page.body.contains("<x>"),
        "the path stands unescaped: {page:?}"
    );
}

#[tokio::test]
async fn health_touches_no_session() {
    on_both(async |service, redis| {
        for path in ["/health/live", "/health/ready"] {
            let answer = Visitor::new().view(service, path).await;
            assert_eq!((answer.status, answer.cookie()), (200, None), "{path}");
        }
        assert_eq!(redis.map(Redis::keys).unwrap_or_default(), [""; 0]);
    })
    .await;
}
