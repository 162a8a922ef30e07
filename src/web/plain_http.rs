//! Whether clients use HTTPS, as far as a proxy in front of this service says.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header::FORWARDED};
use tracing::warn;

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Warns, once per process, if a request came over plain HTTP: no browser sends a `Secure` cookie back then, and each
/// view is the first of a new session. Call it for requests that come without a session.
pub fn warn_of_plain_http(headers: &HeaderMap) {
    static IS_KNOWN: AtomicBool = AtomicBool::new(false);
    if !IS_KNOWN.load(Relaxed) && is_plain_http(headers) && !IS_KNOWN.swap(true, Relaxed) {
        warn!(
            "a request came over plain HTTP, as its X-Forwarded-Proto or Forwarded header says, but the session cookie \
             is Secure: browsers do not send it back. Use HTTPS, or set SECURE_COOKIE=false"
        );
    }
}

/// Whether the client's own connection was HTTP: each proxy adds what it saw at the end, so the first entry counts.
fn is_plain_http(headers: &HeaderMap) -> bool {
    if let Some(first) = headers.get(X_FORWARDED_PROTO).and_then(first_entry) {
        return first.eq_ignore_ascii_case("http");
    }
    let first = headers.get(FORWARDED).and_then(first_entry);
    let mut parameters = first.into_iter().flat_map(|entry| entry.split(';'));
    parameters.any(|parameter| {
        parameter.split_once('=').is_some_and(|(name, value)| {
            name.trim().eq_ignore_ascii_case("proto") && value.trim().trim_matches('"').eq_ignore_ascii_case("http")
        })
    })
}

fn first_entry(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()?.split(',').next().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_proxy_counts() {
        for (name, value, expected) in [
            ("x-forwarded-proto", "http", true),
            ("x-forwarded-proto", "HTTP", true),
            ("x-forwarded-proto", "http, https", true),
            ("x-forwarded-proto", "https", false),
            ("x-forwarded-proto", "https,http", false),
            ("x-forwarded-proto", "", false),
            ("forwarded", "proto=http", true),
            ("forwarded", "for=192.0.2.1; Proto=\"http\";by=a, proto=https", true),
            ("forwarded", "for=192.0.2.1, proto=http", false),
            ("forwarded", "proto=https", false),
            ("x-forwarded-for", "http", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            assert_eq!(is_plain_http(&headers), expected, "{name}: {value}");
        }
    }

    #[test]
    fn x_forwarded_proto_comes_before_forwarded() {
        let mut headers = HeaderMap::new();
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("https"));
        headers.insert(FORWARDED, HeaderValue::from_static("proto=http"));
        assert!(!is_plain_http(&headers));
    }
}
