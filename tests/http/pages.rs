//! Promise: each page tells each visitor how often they have viewed it, as plain text or HTML. Only a
//! `GET` of a page is a view. Redis and the in-memory store behave alike.

use std::fs;

use crate::common::{Answer, BROWSER, Redis, Service, Visitor};
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{
    Method,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use sha2::{Digest, Sha256};

/// Runs a test on both stores. The in-memory store has no `Redis`.
async fn on_both(test: impl AsyncFn(&Service, Option<&Redis>)) {
    let redis = Redis::start();
    test(&Service::on(&redis), Some(&redis)).await;
    test(&Service::start([]), None).await;
}

#[tokio::test]
async fn views_are_counted_per_page_and_visitor() {
    on_both(async |service, _| {
        let (mut ada, mut bob) = (Visitor::new(), Visitor::new());
        let paths = ["/foo", "/foo", "/", "/bar", "/", "/foo?a=1", "/foo?b#c", "/bar?", "/"];
        let mut seen = Vec::new();
        for path in paths {
            seen.push(ada.count(service, path).await);
        }
        assert_eq!(seen, [1, 2, 1, 1, 2, 3, 4, 2, 3], "Ada's views of {paths:?}");
        assert_eq!(bob.count(service, "/foo").await, 1);
        assert_eq!(bob.count(service, "/").await, 1);
    })
    .await;
}

#[tokio::test]
async fn plain_text_is_only_the_sentence() {
    on_both(async |service, _| {
        for accept in ["*/*", "", "application/json"] {
            let answer = Visitor::new().request(Method::GET, service, "/", accept).await;
            assert_eq!(answer.body, "you viewed this page 1 times");
            assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
        }
    })
    .await;
}

#[tokio::test]
async fn a_browser_gets_html_with_links() {
    on_both(async |service, _| {
        let answer = Visitor::new().request(Method::GET, service, "/foo", BROWSER).await;
        assert_eq!(answer.count(), 1);
        assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
        for part in ["<!doctype html>", "href=\"/\"", "href=\"/foo\"", "href=\"/bar\""] {
            assert!(answer.body.contains(part), "no {part} in {}", answer.body);
        }
    })
    .await;
}

#[tokio::test]
async fn no_response_of_a_page_may_be_cached() {
    on_both(async |service, _| {
        for method in [Method::GET, Method::HEAD, Method::POST] {
            for accept in ["*/*", BROWSER] {
                let answer = Visitor::new().request(method.clone(), service, "/bar", accept).await;
                assert_eq!(answer.header("cache-control"), Some("no-store"), "{method} {answer:?}");
                assert_eq!(answer.header("vary"), Some("Accept, Cookie"), "{method} {answer:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn head_is_answered_and_not_counted() {
    on_both(async |service, redis| {
        let mut visitor = Visitor::new();
        for (accept, content_type) in [("*/*", "text/plain; charset=utf-8"), (BROWSER, "text/html; charset=utf-8")] {
            let head = visitor.request(Method::HEAD, service, "/", accept).await;
            assert_eq!(head.status, 200);
            assert_eq!(head.header("content-type"), Some(content_type));
            assert_eq!(
                head.header("content-length"),
                None,
                "the length depends on the count, which a HEAD does not have"
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
async fn head_has_the_headers_of_get() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    // Without Redis, /health/ready is an error with its own text.
    drop(redis);
    for mut visitor in [Visitor::new(), Visitor::with_http2()] {
        for path in ["/unknown", "/health/live", "/health/ready"] {
            for accept in ["*/*", BROWSER] {
                let get = visitor.request(Method::GET, &service, path, accept).await;
                let head = visitor.request(Method::HEAD, &service, path, accept).await;
                assert_eq!(head.status, get.status, "{path}");
                assert_eq!(head.body, "", "{path}");
                let length = get.body.len().to_string();
                assert_eq!(get.header("content-length"), Some(&*length), "{path}");
                for header in ["content-length", "content-type", "retry-after"] {
                    assert_eq!(head.header(header), get.header(header), "{path}: {header}");
                }
            }
        }
    }
}

#[tokio::test]
async fn other_methods_are_refused() {
    on_both(async |service, redis| {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let answer = Visitor::new().request(method.clone(), service, "/foo", "*/*").await;
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
        let others = ["/favicon.ico", "/foo/", "//", "/FOO", "/%66oo", "/foo/bar", "/health"];
        for path in tries.chain(others.map(str::to_owned)) {
            // As a new visitor, and as one with a session.
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
async fn an_unknown_path_gets_text_or_html() {
    let service = Service::start([]);
    let text = Visitor::new().request(Method::GET, &service, "/x", "*/*").await;
    assert_eq!(text.body, "there is no page here");
    let page = Visitor::new().request(Method::GET, &service, "/<x>", BROWSER).await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(page.body.contains("there is no page here"), "{page:?}");
    assert!(!page.body.contains("<x>"), "the path is not escaped: {page:?}");
}

#[tokio::test]
async fn health_checks_create_no_session() {
    on_both(async |service, redis| {
        for path in ["/health/live", "/health/ready"] {
            let answer = Visitor::new().view(service, path).await;
            assert_eq!((answer.status, answer.cookie()), (200, None), "{path}");
        }
        assert_eq!(redis.map(Redis::keys).unwrap_or_default(), [""; 0]);
    })
    .await;
}

/// One response of each kind for this `Accept` header, each with its name.
async fn all_responses(accept: &str) -> Vec<(&'static str, Answer)> {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let get = async |path| Visitor::new().request(Method::GET, &service, path, accept).await;
    let other = async |method| Visitor::new().request(method, &service, "/foo", accept).await;
    let mut prefetch = Visitor::new();
    prefetch.headers = purpose("prefetch");
    let mut answers = vec![
        ("a page", get("/foo").await),
        ("a HEAD", other(Method::HEAD).await),
        ("a 404", get("/unknown").await),
        ("a 405", other(Method::POST).await),
        ("a prefetch", prefetch.request(Method::GET, &service, "/", accept).await),
    ];
    redis.expect_ok(&["CONFIG", "SET", "maxmemory", "1"]);
    answers.push(("a 503", get("/foo").await));
    let statuses = answers.iter().map(|(_, answer)| answer.status);
    let statuses: Vec<_> = statuses.collect();
    assert_eq!(statuses, [200, 200, 404, 405, 503, 503], "{answers:#?}");
    answers
}

fn purpose(value: &'static str) -> HeaderMap {
    header("sec-purpose", value)
}

fn header(name: &'static str, value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
}

#[tokio::test]
async fn the_headers_restrict_the_browser_to_showing_the_page() {
    for (what, answer) in all_responses(BROWSER).await {
        let policy = answer.header("content-security-policy").unwrap_or_default();
        let mut directives = policy.split("; ");
        assert_eq!(directives.next(), Some("default-src 'none'"), "{what}");
        let mut style = "'sha256-".to_owned();
        for directive in directives {
            match directive.split_once(' ').unwrap() {
                ("style-src", hash) => style = hash.to_owned(),
                ("img-src", "data:") => {}
                ("base-uri" | "frame-ancestors", "'none'") | ("form-action", "'self'") => {}
                _ => panic!("{what}: {directive}"),
            }
        }
        assert!(policy.contains("frame-ancestors 'none'"), "{what}: {policy}");
        for (name, value) in [
            ("content-type", "text/html; charset=utf-8"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "same-origin"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{what}");
        }
        if what != "a HEAD" {
            let (_, rest) = answer.body.split_once("<style>").expect(what);
            let (inside, _) = rest.split_once("</style>").unwrap();
            let hash = STANDARD.encode(Sha256::digest(inside));
            assert_eq!(style, format!("'sha256-{hash}'"), "the style of {what}");
        }
    }
}

#[tokio::test]
async fn a_page_is_small_and_self_contained() {
    /// "Under 3 kB", the README says.
    const BOUND: usize = 3000;
    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/templates/page.html");
    let template = fs::read(template).unwrap().len();
    println!("the template has {template} bytes");
    assert!(template < BOUND, "the template has {template} bytes");
    for (what, answer) in all_responses(BROWSER).await {
        let page = answer.body;
        println!("{what} has {} bytes", page.len());
        assert!(page.len() < BOUND, "{what} has {} bytes", page.len());
        for foreign in ["<script", "@import", "url(", "src=", "href=\"http", "href=\"//"] {
            assert!(!page.contains(foreign), "{foreign} in {what}: {page}");
        }
        if what != "a HEAD" {
            for part in ["<html lang=\"en\">", "name=\"viewport\"", "href=\"data:image/"] {
                assert!(page.contains(part), "no {part} in {what}: {page}");
            }
        }
    }
}

#[tokio::test]
async fn every_plain_text_is_one_line() {
    for (what, answer) in all_responses("*/*").await {
        let content_type = answer.header("content-type");
        assert_eq!(content_type, Some("text/plain; charset=utf-8"), "{what}");
        let lines = if what == "a HEAD" { 0 } else { 1 };
        assert_eq!(answer.body.lines().count(), lines, "{what}: {answer:?}");
        assert!(!answer.body.contains('<'), "{what}: {answer:?}");
    }
}

#[tokio::test]
async fn a_prefetch_is_not_a_view() {
    on_both(async |service, redis| {
        let mut visitor = Visitor::new();
        visitor.view(service, "/").await;
        let keys = redis.map(Redis::keys);
        for value in ["prefetch", "prefetch;prerender", "prefetch; anonymous-client-ip", "prefetch;prerender;preview"] {
            // As a new visitor, and as one with a session.
            for mut visitor in [Visitor::new(), visitor.clone()] {
                visitor.headers = purpose(value);
                for accept in [BROWSER, "*/*"] {
                    let get = visitor.request(Method::GET, service, "/", accept).await;
                    assert_eq!(get.status, 503, "{value}: {get:?}");
                    assert_eq!(get.cookie(), None, "{value}: {get:?}");
                    assert_eq!(get.header("cache-control"), Some("no-store"), "{value}");
                    // A retry would be refused as well, and the session is available.
                    assert_eq!(get.header("retry-after"), None, "{value}");
                    assert!(!get.body.contains("cannot be reached"), "{value}: {get:?}");
                    let head = visitor.request(Method::HEAD, service, "/", accept).await;
                    assert_eq!((head.status, head.cookie()), (200, None), "{value}");
                }
                let unknown = visitor.view(service, "/unknown").await;
                assert_eq!(unknown.status, 404, "{value}: {unknown:?}");
            }
        }
        // Older versions of Chromium, for `<link rel=prefetch>`.
        visitor.headers = header("purpose", "prefetch");
        assert_eq!(visitor.view(service, "/").await.status, 503);
        visitor.headers.clear();
        assert_eq!(redis.map(Redis::keys), keys);
        assert_eq!(visitor.count(service, "/").await, 2);
        for (value, count) in [("prefetcher", 3), ("view;prefetch", 4), ("", 5)] {
            visitor.headers = purpose(value);
            assert_eq!(visitor.count(service, "/").await, count, "{value}");
        }
    })
    .await;
}
