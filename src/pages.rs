//! `/`, `/foo` and `/bar`: the sentence, as text or as a page.

use std::convert::Infallible;

use askama::Template;
use axum::{
    Extension,
    body::{Body, Bytes},
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use futures_util::stream::empty;

use crate::views::ViewCount;

/// `GET` of a counted page.
pub async fn page(
    format: Format,
    Extension(ViewCount(count)): Extension<ViewCount>,
    uri: Uri,
) -> Response {
    format.render(uri.path(), format!("you viewed this page {count} times"))
}

/// `HEAD` of a counted page: what `GET` would say of its answer, but no view, so no session and no
/// number, and therefore no length.
pub async fn head(format: Format) -> Response {
    format.respond(Body::from_stream(empty::<Result<Bytes, Infallible>>()))
}

/// The form in which a client wants its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For those that do not ask for HTML: the sentence, nothing else.
    Text,
    /// For browsers.
    Html,
}

#[derive(Template)]
#[template(path = "page.html")]
struct Page<'a> {
    path: &'a str,
    sentence: &'a str,
}

impl Format {
    /// HTML for a client whose `Accept` names `text/html`, text for all others.
    pub fn of(headers: &HeaderMap) -> Self {
        let names_html = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|accept| accept.to_str().ok())
            .flat_map(|accept| accept.split(','))
            .any(|range| {
                let mut parts = range.split(';').map(str::trim);
                parts
                    .next()
                    .is_some_and(|media| media.eq_ignore_ascii_case("text/html"))
                    && !parts.any(is_refusal)
            });
        if names_html { Self::Html } else { Self::Text }
    }

    /// A sentence on the page at `path`.
    pub fn render(self, path: &str, sentence: String) -> Response {
        match self {
            Self::Text => self.respond(sentence),
            Self::Html => match (Page {
                path,
                sentence: &sentence,
            })
            .render()
            {
                Ok(page) => self.respond(page),
                // Rendering into a string does not fail; if it did, the sentence is still true.
                Err(_) => Self::Text.respond(sentence),
            },
        }
    }

    fn respond(self, body: impl Into<Body>) -> Response {
        let content_type = match self {
            Self::Text => "text/plain; charset=utf-8",
            Self::Html => "text/html; charset=utf-8",
        };
        let content_type = (header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        ([content_type], body.into()).into_response()
    }
}

/// Whether a parameter of a media range is the quality 0, which RFC 9110, 12.4.2, calls not
/// acceptable.
fn is_refusal(parameter: &str) -> bool {
    parameter
        .split_once('=')
        .is_some_and(|(name, value)| name.eq_ignore_ascii_case("q") && value.parse() == Ok(0.0))
}

impl<S: Sync> FromRequestParts<S> for Format {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format_of(accepts: &[&str]) -> Format {
        let mut headers = HeaderMap::new();
        for accept in accepts {
            headers.append(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
        }
        Format::of(&headers)
    }

    #[test]
    fn html_is_for_those_that_name_it() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for accepts in [
            &[browser][..],
            &["text/html"],
            &["application/json, Text/HTML ; q=0.1"],
            &["*/*", "text/html;level=1"],
        ] {
            assert_eq!(format_of(accepts), Format::Html, "{accepts:?}");
        }
    }

    #[test]
    fn text_is_for_all_others() {
        for accepts in [
            &[][..],
            &["*/*"],
            &[""],
            &["text/*"],
            &["application/xhtml+xml"],
            &["text/htmlx"],
            &["text/html;q=0"],
            &["text/html; q=0.000, */*"],
            &["application/x;note=text/html"],
        ] {
            assert_eq!(format_of(accepts), Format::Text, "{accepts:?}");
        }
    }
}
