//! The router: every route and layer of the service.

use axum::{
    Router,
    http::{HeaderValue, header},
    middleware::{from_fn, from_fn_with_state},
    routing::{MethodRouter, get},
};
use tower_http::set_header::SetResponseHeaderLayer;

use crate::{config::Config, error, health, pages, session, store::Store, telemetry, views};

/// The service, on this store.
pub fn router(store: &Store, config: &Config) -> Router {
    let page = get(pages::page).with_state(pages::Meaning::of(config));
    let page = counted(page, store, config);
    let router = Router::new()
        .route("/", page.clone())
        .route("/foo", page.clone())
        .route("/bar", page)
        .route("/health/live", get(health::live))
        .route(
            "/health/ready",
            get(health::ready).with_state(store.clone()),
        )
        .layer((
            SetResponseHeaderLayer::overriding(
                header::CACHE_CONTROL,
                HeaderValue::from_static("no-store"),
            ),
            SetResponseHeaderLayer::overriding(
                header::VARY,
                HeaderValue::from_static("Accept, Cookie"),
            ),
            from_fn(error::answer),
        ));
    if config.on_cloud_run() {
        router.layer(from_fn(telemetry::in_trace))
    } else {
        router
    }
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
