//! Counting views: the middleware that counts one, and the count that a page reads.

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use tower_sessions::Session;

use crate::{error::Error, store::Store};

/// The key of the session's record that holds the path of the session's first view.
///
/// A new visitor's first view is number 1 without asking, so it is written with the record that the
/// session layer saves anyway, in one command. The counters beside the record begin with the second
/// view.
pub(crate) const FIRST_VIEW: &str = "1";

/// The visitor's views of the requested path, this one among them; for handlers to extract as
/// [`axum::Extension`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewCount(
    /// At least 1.
    pub u64,
);

/// Counts a view of the requested path, then lets the page answer with the number.
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
