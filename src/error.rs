//! What a visitor is told when something is wrong, and by when.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::HttpBody,
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::time::timeout;

use crate::{
    pages::{Format, Page},
    store, telemetry,
};

/// A visitor waits at most this long for an answer: the promise is 3 s, on the wire.
const DEADLINE: Duration = Duration::from_millis(2500);

/// Seconds after which asking again makes sense: by then, connecting to Redis was tried anew.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// The way on from an answer that is none of the page's own.
const SAME_PAGE: (&str, &str) = ("", "Go to the page");

/// A handler's error: its session could not be had. The visitor gets a 503.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed, and has said so in the log.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The session's record could not be read or written.
    #[error(transparent)]
    Session(#[from] tower_sessions::session::Error),
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        // The store reports its own failures; this one it cannot see.
        if let Self::Session(tower_sessions::session::Error::SerdeJson(error)) = &self {
            // Without its words, which may hold the session's data.
            let problem = error.classify();
            telemetry::warn_of(
                "record",
                format_args!("a session holds something else than was asked for: {problem:?}"),
            );
        }
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    }
}

/// Sees to it that there is an answer in time.
pub async fn in_time(answer: impl Future<Output = Result<Response, Infallible>>) -> Response {
    match timeout(DEADLINE, answer).await {
        Ok(Ok(response)) => response,
        Err(_) => {
            telemetry::warn_of("deadline", format_args!("no answer within {DEADLINE:?}"));
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
    }
}

/// Puts an error into words that comes as a bare status. One with a body of its own is left alone.
pub fn in_words(response: Response, format: Format, path: &str) -> Response {
    // Of a HEAD, axum leaves the body's length alone.
    let is_bare = match response.headers().get(header::CONTENT_LENGTH) {
        Some(length) => length == "0",
        None => response.body().size_hint().exact() == Some(0),
    };
    let (status, sentence, meaning, link) = match response.status() {
        _ if !is_bare => return response,
        StatusCode::NOT_FOUND => (
            StatusCode::NOT_FOUND,
            "there is no page here",
            "The pages of this service are the ones above. Nothing was counted.",
            ("/", "Go to the first page"),
        ),
        StatusCode::METHOD_NOT_ALLOWED => (
            StatusCode::METHOD_NOT_ALLOWED,
            "this page can be read, and nothing else",
            "Nothing was counted, and nothing of what was sent is kept.",
            SAME_PAGE,
        ),
        // tower-sessions answers a failed save with a bare 500.
        StatusCode::INTERNAL_SERVER_ERROR | StatusCode::SERVICE_UNAVAILABLE => (
            StatusCode::SERVICE_UNAVAILABLE,
            "your session is out of reach for the moment, please try again",
            "This view may have been counted or not. No other view was touched.",
            ("", "Try again"),
        ),
        _ => return response,
    };
    let (mut parts, _) = response.into_parts();
    let page = Page {
        path,
        sentence: sentence.into(),
        meaning,
        link,
    };
    let (rendered, body) = format.render(page).into_parts();
    parts.status = status;
    parts.headers.extend(rendered.headers);
    if let Some(length) = body.size_hint().exact() {
        parts.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        parts.headers.insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    Response::from_parts(parts, body)
}

/// The answer to a request for a page that comes before its visitor. Any failure has a browser ask
/// again; `Retry-After` would name a time, and there is none.
pub fn too_early(request: &Request) -> Response {
    let page = Page {
        path: request.uri().path(),
        sentence: "this page is counted when you come, and not ahead of it".into(),
        meaning: "Nothing was counted.",
        link: SAME_PAGE,
    };
    let page = Format::of(request.headers()).render(page);
    (StatusCode::SERVICE_UNAVAILABLE, page).into_response()
}
