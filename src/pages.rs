//! `/`, `/foo` and `/bar`: the sentence, as text or as a page.

use std::{borrow::Cow, convert::Infallible, sync::Arc};

use askama::Template;
use axum::{
    Extension,
    body::{Body, Bytes},
    extract::{FromRequestParts, State},
    http::{HeaderMap, HeaderName, HeaderValue, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use futures_util::stream::empty;

use crate::{config::Config, views::ViewCount};

const TEXT: [(HeaderName, HeaderValue); 1] = [(
    header::CONTENT_TYPE,
    HeaderValue::from_static("text/plain; charset=utf-8"),
)];

/// What a browser may make of a page: show it, with the style and the icon that are inside it, and
/// nothing else. The hash is the style's.
const HTML: [(HeaderName, HeaderValue); 4] = [
    (
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    ),
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'sha256-crLMHJtDnsanYwdahJ1YLcPDnSJbgaokBXaCciJf1zo='; \
             img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    (
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    ),
];

/// `GET` of a counted page.
pub async fn page(
    State(Meaning(meaning)): State<Meaning>,
    format: Format,
    Extension(ViewCount(count)): Extension<ViewCount>,
    uri: Uri,
) -> Response {
    format.render(Page {
        path: uri.path(),
        sentence: format!("you viewed this page {count} times").into(),
        meaning: &meaning,
        link: ("", "View it again"),
    })
}

/// The line that explains a count: the same on all pages of this process.
#[derive(Clone, Debug)]
pub struct Meaning(Arc<str>);

impl Meaning {
    /// What is true with these settings.
    pub fn of(config: &Config) -> Self {
        let mut meaning = String::from(match config.redis_url {
            Some(_) => {
                "This count belongs to your session, is kept in Redis, and any instance can serve it."
            }
            None => {
                "This count belongs to your session, and is kept in the memory of this one process."
            }
        });
        if let Some(revision) = &config.k_revision {
            meaning += &format!(" Revision {revision} answered.");
        }
        Self(meaning.into())
    }
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

/// What there is to say.
#[derive(Template)]
#[template(path = "page.html")]
pub struct Page<'a> {
    /// The path that was asked for.
    pub path: &'a str,
    /// All that is said in text.
    pub sentence: Cow<'static, str>,
    /// What it means, in one line.
    pub meaning: &'a str,
    /// The way on, and its name. An empty one leads to the same page.
    pub link: (&'a str, &'a str),
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

    /// The page in this form.
    pub fn render(self, page: Page<'_>) -> Response {
        match self {
            Self::Text => self.respond(page.sentence),
            Self::Html => match page.render() {
                Ok(html) => self.respond(html),
                // Rendering into a string does not fail; if it did, the sentence is still true.
                Err(_) => Self::Text.respond(page.sentence),
            },
        }
    }

    fn respond(self, body: impl Into<Body>) -> Response {
        match self {
            Self::Text => (TEXT, body.into()).into_response(),
            Self::Html => (HTML, body.into()).into_response(),
        }
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
