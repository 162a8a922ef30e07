//! Counting views: the middleware that counts one, and the count that a page reads.

use std::sync::Arc;

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName},
    response::Response,
    routing::Route,
};
use tower_sessions::Session;

use super::{
    error::Error,
    session::{self, Sessions},
};
use crate::store::FirstView;

const SEC_PURPOSE: HeaderName = HeaderName::from_static("sec-purpose");

/// The visitor's views of the requested path, including this one. Handlers extract it as [`axum::Extension`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewCount(
    /// At least 1.
    pub u64,
);

/// Gives the request its session and counts a view of the requested path, as middleware; then lets the page answer with
/// the number.
///
/// A page that a browser prefetches or prerenders is not seen by anybody yet. Such a request is refused, so that
/// the browser asks again when the visitor comes.
///
/// # Errors
/// If the store fails; see [`crate::store::Store::count_view`].
pub async fn count_view(sessions: Sessions, request: Request, page: Arc<Route>) -> Result<Response, Error> {
    if is_prefetch(request.headers()) {
        return Err(Error::Prefetch);
    }
    let answer = async |mut request: Request, session: Session| {
        let path = request.uri().path();
        let counted = match session.id() {
            Some(id) => sessions.store().count_view(&id, path).await?,
            None => None,
        };
        let count = match counted {
            Some(count) => count,
            None => {
                let first = FirstView(path.to_owned());
                let inserted = session.insert(FirstView::KEY, first).await;
                // Loading the session's record failed. The store has logged why.
                inserted.map_err(|_| Error::NotCounted)?;
                1
            }
        };
        request.extensions_mut().insert(ViewCount(count));
        let response = session::answer(&page, request).await?;
        if counted.is_some() && session.id().is_none() {
            // The page gave the session a new id, and the counts stay with the old one.
            session.remove_value(FirstView::KEY).await?;
        }
        Ok(response)
    };
    sessions.serve(request, answer).await
}

/// Whether the `Sec-Purpose` header begins with the token `prefetch`, perhaps with parameters such as
/// `;prerender`. Every browser that prefetches sends it
/// (<https://fetch.spec.whatwg.org/#sec-purpose-header>).
fn is_prefetch(headers: &HeaderMap) -> bool {
    let purpose = headers.get(SEC_PURPOSE).map(|value| value.as_bytes());
    purpose
        .and_then(|value| value.split(|byte| *byte == b';').next())
        .is_some_and(|token| token.trim_ascii() == b"prefetch")
}
