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
    counting::ViewCount,
    format::{Format, Page},
    route_state::Counted,
};
use crate::config::Config;

/// A counted page: `GET` shows the count. The line that explains it is the same on all pages of this process.
pub fn page(meaning: Arc<str>) -> MethodRouter<Counted> {
    get(async move |format: Format, ViewCount(count): ViewCount, uri: Uri| {
        format.render(Page {
            path: uri.path(),
            // The tutorial's sentence.
            sentence: format!("you viewed this page {count} times").into(),
            meaning: &meaning,
            link: ("", "View again"),
        })
    })
}

/// The line that explains a count, as it is true with these settings.
pub fn meaning(config: &Config) -> Arc<str> {
    let mut meaning = String::from(match config.redis_url {
        Some(_) => "This count belongs to your session. It is stored in Redis, so any instance can show it.",
        None => "This count belongs to your session. It is stored only in this process's memory.",
    });
    if let Some(revision) = &config.k_revision {
        meaning += &format!(" Served by revision {revision}.");
    }
    meaning.into()
}

/// `HEAD` of a counted page: the headers of a page in the requested format. It is no view, so there is no number, and
/// therefore no `Content-Length`.
pub async fn head(format: Format) -> Response {
    format.respond(Body::from_stream(empty::<Result<Bytes, Infallible>>()))
}
