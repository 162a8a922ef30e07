//! What is done with each request, and the router: every route of the service.

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderValue, Method, header},
    middleware::from_fn_with_state,
    response::Response,
    routing::{MethodRouter, get},
};
use tower::ServiceExt;

use crate::{
    config::Config,
    error, health,
    pages::{self, Format},
    session,
    store::Store,
    telemetry::Trace,
    views,
};

/// The service's routes, on this store, to be asked by [`answer`].
pub fn router(store: &Store, config: &Config) -> Router {
    let page = get(pages::page).with_state(pages::Meaning::of(config));
    let page = counted(page, store, config);
    Router::new()
        .route("/", page.clone())
        .route("/foo", page.clone())
        .route("/bar", page)
        .route("/health/live", get(health::live))
        .route(
            "/health/ready",
            get(health::ready).with_state(store.clone()),
        )
}

/// Answers a request, whatever its route: in time, an error in words, and for no cache to keep.
pub async fn answer(app: Router, request: Request) -> Response {
    let trace = Trace::of(request.headers());
    let format = Format::of(request.headers());
    let is_head = request.method() == Method::HEAD;
    let uri = request.uri().clone();
    let answer = error::in_time(app.oneshot(request));
    let mut response = error::in_words(trace.scope(answer).await, format, uri.path());
    if is_head {
        // axum has done so before there were words.
        *response.body_mut() = Body::empty();
    }
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Cookie"));
    response
}

/// A page with a session, whose views are counted: each request of the methods that `page` handles.
/// Others are answered without either, and so is `HEAD`, which `page` must not handle.
pub fn counted(page: MethodRouter, store: &Store, config: &Config) -> MethodRouter {
    page.route_layer((
        session::layer(store, config),
        from_fn_with_state(store.clone(), views::count_views),
    ))
    .head(pages::head)
}
