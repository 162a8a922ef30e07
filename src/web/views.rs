//! Counting views: the middleware that counts one, and the count that a page reads.

use std::sync::Arc;

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName},
    response::Response,
    routing::Route,
};
use parking_lot::Mutex;
use tower::Service;

use super::{error::Error, session::Sessions};
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
// No `async fn`: its future would hold the request twice.
pub fn count_view(
    sessions: Sessions,
    mut request: Request,
    page: Arc<Mutex<Route>>,
) -> impl Future<Output = Result<Response, Error>> + Send {
    let is_prefetch = is_prefetch(request.headers());
    let opened = sessions.open(&mut request);
    async move {
        if is_prefetch {
            return Err(Error::Prefetch);
        }
        let session = &opened.session;
        let path = request.uri().path();
        let counted = match session.id() {
            Some(id) => sessions.store().count_view(&id, path).await?,
            None => None,
        };
        let count = match counted {
            Some(count) => count,
            None => {
                let first = FirstView(path.to_owned());
                // In a box, since few requests come here, and all keep room for it.
                let inserted = Box::pin(session.insert(FirstView::KEY, first)).await;
                // Loading the session's record failed. The store has logged why.
                inserted.map_err(|_| Error::NotCounted)?;
                1
            }
        };
        request.extensions_mut().insert(ViewCount(count));
        let response = page.lock().call(request);
        let Ok(mut response) = response.await;
        if counted.is_some() && session.id().is_none() {
            // The page ended the session or changed its id, and its counts are deleted.
            Box::pin(session.remove_value(FirstView::KEY)).await?;
        }
        opened.close(&mut response).await?;
        Ok(response)
    }
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
