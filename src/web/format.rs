//! What a response looks like: one sentence as text, or one HTML template.

use std::{borrow::Cow, convert::Infallible};

use askama::Template;
use axum::{
    body::Body,
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts},
    response::{IntoResponse, Response},
};

const TEXT: [(HeaderName, HeaderValue); 1] =
    [(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))];

/// The policy lets a browser use the style and the icon inside the page, and send forms to this service, and nothing
/// else. The hash is that of the style.
const HTML: [(HeaderName, HeaderValue); 4] = [
    (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'sha256-crLMHJtDnsanYwdahJ1YLcPDnSJbgaokBXaCciJf1zo='; \
             img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    // Not `no-referrer`: with it, browsers send `Origin: null` with the page's own forms.
    (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
];

/// The format of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The sentence alone, for clients that do not ask for HTML.
    Text,
    /// For browsers.
    Html,
}

/// What a response says.
#[derive(Template)]
#[template(path = "page.html")]
pub struct Page<'a> {
    /// The requested path.
    pub path: &'a str,
    /// One sentence. A response in text consists of it alone.
    pub sentence: Cow<'static, str>,
    /// What the sentence means, in one line.
    pub meaning: &'a str,
    /// The path of a link and its name. An empty path leads to the same page.
    pub link: (&'a str, &'a str),
}

impl Format {
    /// HTML for clients whose `Accept` header names `text/html`, text for all others.
    pub fn of(headers: &HeaderMap) -> Self {
        let names_html = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|accept| accept.to_str().ok())
            .flat_map(|accept| accept.split(','))
            .any(|range| {
                let mut parts = range.split(';').map(str::trim);
                parts.next().is_some_and(|media| media.eq_ignore_ascii_case("text/html")) && !parts.any(is_refusal)
            });
        if names_html { Self::Html } else { Self::Text }
    }

    /// Renders the page in this format.
    pub fn render(self, page: Page<'_>) -> Response {
        match self {
            Self::Text => self.respond(page.sentence),
            Self::Html => match page.render() {
                Ok(html) => self.respond(html),
                // Rendering into a string does not fail. If it did, the sentence would still be true.
                Err(_) => Self::Text.respond(page.sentence),
            },
        }
    }

    /// A response with the headers of this format.
    pub fn respond(self, body: impl Into<Body>) -> Response {
        match self {
            Self::Text => (TEXT, body.into()).into_response(),
            Self::Html => (HTML, body.into()).into_response(),
        }
    }
}

/// Whether a parameter of a media range is `q=0`, "not acceptable" (RFC 9110, 12.4.2).
fn is_refusal(parameter: &str) -> bool {
    parameter.split_once('=').is_some_and(|(name, value)| name.eq_ignore_ascii_case("q") && value.parse() == Ok(0.0))
}

/// In place of axum's extractor for `HeaderMap`, which would copy all headers.
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
    fn html_for_clients_that_name_it() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for accepts in
            [&[browser][..], &["text/html"], &["application/json, Text/HTML ; q=0.1"], &["*/*", "text/html;level=1"]]
        {
            assert_eq!(format_of(accepts), Format::Html, "{accepts:?}");
        }
    }

    #[test]
    fn text_for_all_others() {
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
