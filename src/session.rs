//! The session layer: who the visitor is, told by a cookie.

use axum::routing::MethodRouter;
use tower_sessions::{SessionManagerLayer, cookie::SameSite};

use crate::{config::Config, store::Store};

/// Gives the handlers of `page` a [`tower_sessions::Session`].
///
/// Without [`crate::views::count_views`] inside, a request does not renew the session's views, only
/// what it saves.
///
/// The cookie has no `Max-Age`, so it ends with the browser; the session behind it ends sooner or
/// later by [`Config::session_ttl`], which the store sees to.
pub fn with_sessions(page: MethodRouter, store: &Store, config: &Config) -> MethodRouter {
    // `__Host-` has the browser keep the cookie to this very host, and needs HTTPS, which only the
    // platform guarantees.
    let name = if config.on_cloud_run() {
        "__Host-id"
    } else {
        "id"
    };
    let layer = SessionManagerLayer::new(store.clone())
        .with_name(name)
        .with_secure(config.on_cloud_run())
        // Lax, unlike the library's Strict: a visitor who follows a link to us keeps the session.
        .with_same_site(SameSite::Lax);
    match &config.session_secret {
        Some(key) => page.route_layer(layer.with_signed(key.clone())),
        None => page.route_layer(layer),
    }
}
