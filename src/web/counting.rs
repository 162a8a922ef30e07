//! Counting views: the middleware that counts one, and the count that a page reads.

use std::borrow::Cow;

use axum::{
    extract::{FromRequestParts, NestedPath, Request, State},
    http::{HeaderMap, HeaderName, request::Parts},
    middleware::Next,
    response::Response,
};

use super::{
    atomic_session::AtomicSession,
    cross_site::is_forged,
    error::Error,
    route_state::Counted,
    session::{OpenSession, Sessions, first_alive},
};
use crate::store::change::Change;

/// The headers that say what a request is for: that of the Fetch standard
/// (<https://fetch.spec.whatwg.org/#sec-purpose-header>), and the only one that Chromium sent for `<link rel=prefetch>`
/// until 2025 (<https://groups.google.com/a/chromium.org/g/blink-dev/c/0yrUBDA8uUs>).
const PURPOSES: [HeaderName; 2] = [HeaderName::from_static("sec-purpose"), HeaderName::from_static("purpose")];

/// The visitor's views of the requested path, including this one: at least 1. In a router that is nested at a path with
/// parameters, such as `/{shop}`, all values of the parameters share a count.
///
/// Handlers extract it. They then need the state [`Counted`], so they can only be routed through
/// [`counted`](super::app::counted).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewCount(pub u64);

impl FromRequestParts<Counted> for ViewCount {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Counted) -> Result<Self, Error> {
        let count = parts.extensions.get::<AtomicSession>().and_then(|session| session.count);
        count.map(Self).ok_or(Error::NotCounted)
    }
}

/// Gives the request its session and counts a view of the requested path, as middleware; then lets the page answer with
/// the number.
///
/// A page that a browser prefetches or prerenders is not seen by anybody yet. Such a request is refused, so that
/// the browser asks again when the visitor comes.
///
/// # Errors
/// [`Error::Prefetch`], [`Error::CrossSite`], those of [`crate::store::Store::change`].
pub async fn count_view(State(sessions): State<Sessions>, request: Request, page: Next) -> Result<Response, Error> {
    if is_prefetch(request.headers()) {
        return Err(Error::Prefetch);
    }
    if is_forged(&request) {
        return Err(Error::CrossSite);
    }
    let path = whole_path(&request);
    let (count, session) = count(&sessions, &path, request.headers()).await?;
    Ok(session.answer(request, Some(count), page).await)
}

/// The requested path, also in a nested router, where the request has only the rest of it. (axum's `OriginalUri` would
/// take 500 instructions of every view, 2 %.)
fn whole_path(request: &Request) -> Cow<'_, str> {
    let path = request.uri().path();
    let Some(nested) = request.extensions().get::<NestedPath>() else { return path.into() };
    let prefix = nested.as_str().trim_end_matches('/');
    if path == "/" { prefix.into() } else { format!("{prefix}{path}").into() }
}

/// Counts the view in the first session that lives, of those that the request's cookies name. If none does, the view is
/// the first of a new one.
async fn count(sessions: &Sessions, path: &str, headers: &HeaderMap) -> Result<(u64, OpenSession), Error> {
    let count = |id| sessions.store.change(id, Change::View(path.into()));
    match first_alive(sessions.cookie.received(headers), count).await? {
        (Some(cookie), Some(applied)) => Ok((applied.count, sessions.open(cookie, Some(applied.value)))),
        (received, _) => Ok((1, sessions.begin(headers, received, Some(path.into())))),
    }
}

/// Whether a header says that the request's purpose is `prefetch`, perhaps with parameters such as `;prerender`.
fn is_prefetch(headers: &HeaderMap) -> bool {
    PURPOSES.iter().filter_map(|name| headers.get(name)).any(|purpose| {
        let token = purpose.as_bytes().split(|byte| *byte == b';').next();
        token.is_some_and(|token| token.trim_ascii() == b"prefetch")
    })
}
