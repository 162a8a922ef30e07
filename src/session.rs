//! The session layer: who the visitor is, told by a cookie.

use tower::util::Either;
use tower_sessions::{
    SessionManagerLayer,
    cookie::SameSite,
    service::{PlaintextCookie, SignedCookie},
};

use crate::{config::Config, store::Store};

/// The session layer, with signed cookies or plain ones.
pub type Layer =
    Either<SessionManagerLayer<Store, SignedCookie>, SessionManagerLayer<Store, PlaintextCookie>>;

/// Gives the handlers of the routes that it is laid around a [`tower_sessions::Session`].
///
/// Without [`crate::views::count_views`] inside, a request does not renew the session's views, only
/// what it saves.
///
/// The cookie has no `Max-Age`, so it ends with the browser; the session behind it ends sooner or
/// later by [`Config::session_ttl`], which the store sees to.
pub fn layer(store: &Store, config: &Config) -> Layer {
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
        Some(key) => Either::Left(layer.with_signed(key.clone())),
        None => Either::Right(layer),
    }
}
