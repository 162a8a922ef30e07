//! Counting views: the middleware that counts one, and the count that a page reads.

use axum::{
    extract::{Request, State},
    http::HeaderMap,
    middleware::Next,
    response::Response,
};
use tower_sessions::Session;

use crate::{
    error::{self, Error},
    store::{FIRST_VIEW, Store},
};

/// The visitor's views of the requested path, this one among them; for handlers to extract as
/// [`axum::Extension`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewCount(
    /// At least 1.
    pub u64,
);

/// Counts a view of the requested path, then lets the page answer with the number.
///
/// A browser that prefetches a page, or prerenders it, shows it to nobody yet. That is no view, and
/// is refused; so the browser asks again when the visitor comes.
///
/// # Errors
/// If the store fails. The view may then have been counted all the same: its answer can be lost
/// after the store has counted.
pub async fn count_views(
    State(store): State<Store>,
    session: Session,
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    if is_prefetch(request.headers()) {
        return Ok(error::too_early(&request));
    }
    let path = request.uri().path();
    let counted = match session.id() {
        Some(id) => store.count_view(&id, path).await?,
        None => None,
    };
    let count = match counted {
        Some(count) => count,
        None => {
            session.insert(FIRST_VIEW, path).await?;
            1
        }
    };
    request.extensions_mut().insert(ViewCount(count));
    let response = next.run(request).await;
    if counted.is_some() && session.id().is_none() {
        // The page gave the session a new id, and the views stayed with the old one.
        session.remove_value(FIRST_VIEW).await?;
    }
    Ok(response)
}

/// As all browsers say it that do it: the token `prefetch`, perhaps with parameters, `;prerender` among
/// them (<https://fetch.spec.whatwg.org/#sec-purpose-header>).
fn is_prefetch(headers: &HeaderMap) -> bool {
    let purpose = headers.get("sec-purpose").map(|value| value.as_bytes());
    purpose
        .and_then(|value| value.split(|byte| *byte == b';').next())
        .is_some_and(|token| token.trim_ascii() == b"prefetch")
}
