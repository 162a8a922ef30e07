//! The session layer and its cookie.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use tower::util::{Either, MapResponseLayer};
use tower_sessions::{
    SessionManagerLayer,
    cookie::SameSite,
    service::{PlaintextCookie, SignedCookie},
};

use super::error::Error;
use crate::{config::Config, store::Store};

/// tower-sessions, with signed cookies or plain ones.
type Manager = Either<SessionManagerLayer<Store, SignedCookie>, SessionManagerLayer<Store, PlaintextCookie>>;

type OnResponse = MapResponseLayer<fn(Response) -> Response>;

/// The session layer: tower-sessions between two layers that name its failures.
pub type Layer = (OnResponse, Manager, OnResponse);

/// Gives the handlers of the routes inside it a [`tower_sessions::Session`].
///
/// Without [`super::views::count_views`] inside, a request renews the session only when it saves it.
///
/// The cookie has no `Max-Age`, so it ends with the browser. [`Config::session_ttl`] ends the session behind it,
/// which is the store's part.
pub fn layer(store: &Store, config: &Config) -> Layer {
    // Browsers send a `__Host-` cookie to this very host only. It needs HTTPS, which only the platform
    // guarantees.
    let name = if config.on_cloud_run() { "__Host-id" } else { "id" };
    let manager = SessionManagerLayer::new(store.clone())
        .with_name(name)
        .with_secure(config.on_cloud_run())
        // Not the library's default, Strict: a visitor who follows a link to this service keeps the session.
        .with_same_site(SameSite::Lax);
    let manager = match &config.session_secret {
        Some(key) => Either::Left(manager.with_signed(key.clone())),
        None => Either::Right(manager),
    };
    (MapResponseLayer::new(name_failure), manager, MapResponseLayer::new(mark_own))
}

/// Marks a page's own 500.
#[derive(Clone)]
struct Own;

fn mark_own(mut response: Response) -> Response {
    if response.status() == StatusCode::INTERNAL_SERVER_ERROR {
        response.extensions_mut().insert(Own);
    }
    response
}

/// tower-sessions 0.14 answers with an empty 500 if it cannot save the session after the page.
fn name_failure(mut response: Response) -> Response {
    let is_failure =
        response.status() == StatusCode::INTERNAL_SERVER_ERROR && response.extensions_mut().remove::<Own>().is_none();
    if is_failure { Error::Session.into_response() } else { response }
}
