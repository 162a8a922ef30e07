//! Requests that a page of another origin makes a browser send (cross-site request forgery).
//!
//! The session's cookie is `SameSite=Lax`: browsers do not send it with another site's forms. That is not enough for a
//! login, which needs no cookie: another site could log its visitors in under a name of its own. So a request that may
//! change something must come from this very origin, as browsers say.

use axum::{
    extract::Request,
    http::{HeaderName, Method, header},
};

use super::host::is_same_host;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether a page of another origin may have sent this request, and it may change something. Browsers say so in
/// `Sec-Fetch-Site` (<https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header>) or `Origin`; other clients send
/// neither, and need not.
pub fn is_forged(request: &Request) -> bool {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return false;
    }
    let headers = request.headers();
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        // `none`: the visitor has done it without a page.
        return !matches!(site.as_bytes(), b"same-origin" | b"none");
    }
    // Older browsers, and those that use HTTP without TLS.
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let host = headers.get(header::HOST).map(|host| host.as_bytes());
    let host = host.or(request.uri().authority().map(|authority| authority.as_str().as_bytes()));
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    !origin.zip(host).is_some_and(|((_, origin), host)| is_same_host(origin.as_bytes(), host))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn is_forged_with(method: Method, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        is_forged(&request.body(Body::empty()).unwrap())
    }

    #[test]
    fn what_another_site_sends_is_forged() {
        let host = ("host", "shop.example:8080");
        for (headers, expected) in [
            (&[][..], false),
            (&[("sec-fetch-site", "same-origin")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "same-site")], true),
            (&[("sec-fetch-site", "cross-site")], true),
            (&[("sec-fetch-site", "")], true),
            (&[host, ("origin", "http://shop.example:8080")], false),
            (&[host, ("origin", "https://SHOP.example:8080")], false),
            (&[host, ("origin", "https://shop.example")], true),
            // A proxy adds the port, or leaves it out.
            (&[("host", "shop.example:80"), ("origin", "http://shop.example")], false),
            (&[("host", "shop.example:443"), ("origin", "https://shop.example")], false),
            (&[("host", "shop.example"), ("origin", "http://shop.example:80")], false),
            (&[("host", "shop.example:8443"), ("origin", "https://shop.example")], true),
            (&[("host", "shop.example:80"), ("origin", "http://evil.example")], true),
            (&[host, ("origin", "https://evil.example")], true),
            (&[host, ("origin", "null")], true),
            (&[("origin", "https://shop.example")], true),
            (&[host, ("origin", "https://evil.example"), ("sec-fetch-site", "same-origin")], false),
        ] {
            assert_eq!(is_forged_with(Method::POST, headers), expected, "{headers:?}");
            assert!(!is_forged_with(Method::GET, headers), "{headers:?}");
        }
    }
}
