//! The handlers of `/`, `/foo` and `/bar`.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::{Body, Bytes},
    http::Uri,
    response::Response,
    routing::{MethodRouter, get},
};
use futures_util::stream::empty;

use super::{
    page::{Format, Page},
    views::{Counted, ViewCount},
};
use crate::config::Config;

/// A counted page: `GET` shows the count. The line that explains it is the same on all pages of this process.
pub fn page(meaning: Arc<str>) -> MethodRouter<Counted> {
    get(async move |format: Format, ViewCount(count): ViewCount, uri: Uri| {
        format.render(Page {
            path: uri.path(),
            // Exactly as long as its text: a string with spare room would cost the body one more allocation.
            sentence: ["you viewed this page ", itoa::Buffer::new().format(count), " times"].concat().into(),
            meaning: &meaning,
            link: ("", "View it again"),
        })
    })
}

/// The line that explains a count, as it is true with these settings.
pub fn meaning(config: &Config) -> Arc<str> {
    let mut meaning = String::from(match config.redis_url {
        Some(_) => "This count belongs to your session, is kept in Redis, and any instance can serve it.",
        None => "This count belongs to your session, and is kept in the memory of this one process.",
    });
    if let Some(revision) = &config.k_revision {
        meaning += &format!(" Revision {revision} answered.");
    }
    meaning.into()
}

/// `HEAD` of a counted page: the headers of `GET`. It is no view, so there is no number, and therefore no
/// `Content-Length`.
pub async fn head(format: Format) -> Response {
    format.respond(Body::from_stream(empty::<Result<Bytes, Infallible>>()))
}
