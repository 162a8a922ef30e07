//! Promise: pages can be added with handlers for any method, with fallbacks, and in nested routers.

use axum::{
    Router,
    routing::{any, get, post},
};
use cloud_run_sessions::web::{
    app::{counted, with_session},
    atomic_session::AtomicSession,
    counting::ViewCount,
    error::Error,
};
use reqwest::Method;

use crate::common::{BROWSER, Visitor, serve};

async fn view(ViewCount(count): ViewCount) -> String {
    format!("you viewed this page {count} times")
}

async fn add(session: AtomicSession) -> Result<&'static str, Error> {
    session.update("number", |number: &mut u64| *number += 1).await?;
    Ok("added")
}

async fn start() -> u16 {
    serve(&[], |routes, sessions| {
        let nested =
            || Router::new().route("/page", counted(get(view), sessions)).route("/", counted(get(view), sessions));
        routes
            .route("/any", counted(any(view), sessions))
            .route("/rest", with_session(get(async || "got").fallback(add), sessions))
            .route("/post", with_session(post(async || Error::Session), sessions))
            .nest("/a", nested())
            .nest("/b", nested())
            .nest("/c/", nested())
            .route_service("/service", counted(get(view), sessions))
            .fallback(async || "my own")
    })
    .await
}

#[tokio::test]
async fn a_page_for_any_method_is_counted() {
    let service = start().await;
    let mut visitor = Visitor::new();
    for (expected, method) in (1..).zip([Method::GET, Method::POST, Method::OPTIONS]) {
        let answer = visitor.request(method.clone(), &service, "/any", "*/*").await;
        assert_eq!(answer.count(), expected, "{method}");
    }
    assert_eq!(visitor.request(Method::HEAD, &service, "/any", "*/*").await.status, 200);
    assert_eq!(visitor.count(&service, "/any").await, 4);
}

#[tokio::test]
async fn a_fallback_of_a_page_has_its_session() {
    let service = start().await;
    let mut visitor = Visitor::new();
    assert_eq!(visitor.view(&service, "/rest").await.body, "got");
    assert_eq!(visitor.request(Method::POST, &service, "/rest", "*/*").await.body, "added");
    // And is protected from other sites.
    visitor.headers.insert("sec-fetch-site", "cross-site".parse().unwrap());
    assert_eq!(visitor.request(Method::POST, &service, "/rest", "*/*").await.status, 403);
}

#[tokio::test]
async fn a_method_that_no_page_handles_gets_no_session() {
    let service = start().await;
    for path in ["/rest", "/a/page", "/service", "/post"] {
        let method = if path == "/post" { Method::GET } else { Method::PUT };
        let answer = Visitor::new().request(method, &service, path, "*/*").await;
        let handled = path == "/rest";
        assert_eq!(
            (answer.status, answer.cookie().is_some()),
            if handled { (200, true) } else { (405, false) },
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_fallback_of_all_pages_replaces_that_of_the_service() {
    assert_eq!(Visitor::new().view(&start().await, "/nowhere").await.body, "my own");
    let answer = Visitor::new().view(&serve(&[], |routes, _| routes).await, "/nowhere").await;
    assert_eq!((answer.status, answer.body.as_str()), (404, "there is no page here"));
}

#[tokio::test]
async fn a_nested_page_is_counted_by_its_whole_path() {
    let service = start().await;
    let mut visitor = Visitor::new();
    for (path, expected) in [("/a/page", 1), ("/a/page", 2), ("/b/page", 1), ("/a/page", 3), ("/a", 1), ("/c/page", 1)]
    {
        assert_eq!(visitor.count(&service, path).await, expected, "{path}");
    }
}

/// A link cannot send a form again.
#[tokio::test]
async fn an_error_of_a_form_links_to_the_first_page() {
    let service = start().await;
    for (method, path, link) in [
        (Method::POST, "/post", "href=\"/\">Go to the first page<"),
        (Method::GET, "/post", "href=\"/\">Go to the first page<"),
    ] {
        let answer = Visitor::new().request(method.clone(), &service, path, BROWSER).await;
        assert!(answer.status >= 400 && answer.body.contains(link), "{method} {answer:?}");
    }
}
