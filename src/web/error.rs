//! Each failure with its status and its words.
//!
//! A failure travels as an [`Error`] in the response's extensions, until [`render_error`] gives it a body in the form
//! that the client asked for. Responses without one are the pages' own, whatever their status.

use axum::{
    body::HttpBody,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::format::{Format, Page};
use crate::store;

/// Seconds until a retry makes sense: by then the store has tried to reconnect, and slow clients have read responses.
pub(super) const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Why a request is not answered by its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No route has this path.
    #[error("there is no page here")]
    NotFound,
    /// The route does not handle this method.
    #[error("this page does not accept this method")]
    MethodNotAllowed,
    /// A page of another origin has sent a request that may change something.
    #[error("this request comes from another site")]
    CrossSite,
    /// A browser prefetches or prerenders the page.
    #[error("this page is counted when you open it, not when your browser prefetches it")]
    Prefetch,
    /// The view was not counted: the store could not be reached, or refused.
    #[error("your session cannot be reached, please try again")]
    NotCounted,
    /// The page could not read or write the session's data, or the session layer could not save it.
    #[error("your session cannot be reached, please try again")]
    Session,
    /// The session was ended just now, or goes on under another id, which the browser does not have yet.
    #[error("your session has just changed, please try again")]
    Ended,
    /// The session has no room for the change.
    #[error("your session is full")]
    TooLarge,
    /// The page's value has another type in the session, or cannot be stored there: its code is wrong.
    #[error("this page does not work")]
    BrokenPage,
    /// Nobody can tell whether the view was counted (the store gave no answer or an unreadable one), or what the page has
    /// done (it took longer than [`store::DEADLINE`]).
    #[error("your session cannot be reached, please try again")]
    Unanswered,
}

impl Error {
    fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::CrossSite => StatusCode::FORBIDDEN,
            Self::TooLarge => StatusCode::INSUFFICIENT_STORAGE,
            Self::BrokenPage => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// What the error means for the visitor, in one line.
    fn meaning(self) -> &'static str {
        match self {
            Self::NotFound => "There is no page at this address. Nothing was counted.",
            Self::MethodNotAllowed => "Nothing was counted, and nothing you sent was saved.",
            Self::Prefetch => "Nothing was counted.",
            Self::CrossSite => "Nothing was counted or changed.",
            Self::Ended => "Another request has just logged you in or out. This page's data was not saved.",
            Self::TooLarge => "It has no room for what this page adds. What it holds is not affected.",
            Self::NotCounted => "This view was not counted. No other view is affected.",
            Self::Session | Self::BrokenPage => "This page's data may not have been saved.",
            Self::Unanswered => "Your view or change may or may not have been stored.",
        }
    }

    /// Where a link leads from here: a path, empty for this page, and its name. After anything but `GET` and `HEAD` it does
    /// not lead to this page: a link cannot send a form again.
    fn link(self, was_view: bool) -> (&'static str, &'static str) {
        match self {
            Self::NotFound | Self::MethodNotAllowed | Self::BrokenPage => ("/", "Go to the first page"),
            _ if !was_view => ("/", "Go to the first page"),
            Self::Prefetch => ("", "Go to the page"),
            _ => ("", "Try again"),
        }
    }

    /// The error of changing a session's data. The store has logged the error.
    pub(super) fn of_data(error: store::Error) -> Self {
        match error {
            store::Error::Ended => Self::Ended,
            store::Error::TooLarge(_) => Self::TooLarge,
            store::Error::TooDeep(_) | store::Error::Reserved(_) | store::Error::Mismatched => Self::BrokenPage,
            _ => Self::Session,
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<store::Error> for Error {
    /// The error of counting a view. The store has logged the error.
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Unanswered | store::Error::Garbled => Self::Unanswered,
            store::Error::Ended => Self::Ended,
            store::Error::TooLarge(_) => Self::TooLarge,
            _ => Self::NotCounted,
        }
    }
}

impl From<serde_json::Error> for Error {
    /// The error of a page whose value has another type in the session, or cannot be JSON. This logs it, without its
    /// text, which may contain the session's data.
    fn from(_: serde_json::Error) -> Self {
        store::Error::Mismatched.report();
        Self::BrokenPage
    }
}

impl From<tower_sessions::session::Error> for Error {
    /// The error of a page that uses its session. The store has logged its own errors; this logs what it cannot see.
    fn from(error: tower_sessions::session::Error) -> Self {
        match error {
            tower_sessions::session::Error::SerdeJson(error) => error.into(),
            tower_sessions::session::Error::Store(_) => Self::Session,
        }
    }
}

/// Gives an error a body in this format. `was_view`: whether the request was `GET` or `HEAD`.
pub fn render_error(mut response: Response, format: Format, path: &str, was_view: bool) -> Response {
    let Some(error) = response.extensions_mut().remove::<Error>() else {
        return response;
    };
    let (mut parts, _) = response.into_parts();
    let page = Page { path, sentence: error.to_string().into(), meaning: error.meaning(), link: error.link(was_view) };
    let (rendered, body) = format.render(page).into_parts();
    parts.headers.extend(rendered.headers);
    if let Some(length) = body.size_hint().exact() {
        parts.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    // A browser retries a prefetch when its visitor comes, not after some time.
    if parts.status == StatusCode::SERVICE_UNAVAILABLE && error != Error::Prefetch {
        parts.headers.insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    Response::from_parts(parts, body)
}
