//! The host that a request is for.

use std::net::Ipv6Addr;

use axum::http::{Request, Version, header::HOST, uri::Authority};

/// Whether a request names its host as HTTP demands (RFC 9112, 3.2; RFC 9113, 8.3.1). A proxy that takes another host
/// from an ambiguous request than this service does can be led to give one visitor's response to another.
///
/// HTTP/1.1 needs exactly one `Host`; other versions need none. Where there is one, or a URI with an authority, it must
/// be a host and perhaps a port. Over HTTP/2, both must agree; over HTTP/1.1, the URI counts.
pub fn is_named<B>(request: &Request<B>) -> bool {
    let authority = request.uri().authority();
    if !authority.is_none_or(is_host) {
        return false;
    }
    let mut hosts = request.headers().get_all(HOST).iter().map(|host| host.as_bytes());
    match (hosts.next(), hosts.next()) {
        (None, _) => request.version() != Version::HTTP_11,
        (Some(host), None) => {
            let is_same = |authority: &Authority| {
                let authority = without_default_port(authority.as_str().as_bytes());
                authority.eq_ignore_ascii_case(without_default_port(host))
            };
            Authority::try_from(host).is_ok_and(|host| is_host(&host))
                && (request.version() != Version::HTTP_2 || authority.is_none_or(is_same))
        }
        (Some(_), Some(_)) => false,
    }
}

/// Whether this is `host[:port]` of RFC 3986, 3.2.2 and 3.2.3, without a user. An empty host is none: no URI of HTTP has
/// one (RFC 9110, 4.2.1). Percent-encoded hosts and addresses of future versions of IP are refused: nobody uses them.
fn is_host(authority: &Authority) -> bool {
    let host = authority.host();
    let Some(port) = authority.as_str().strip_prefix(host) else { return false };
    let is_address_or_name = match host.strip_prefix('[') {
        Some(address) => address.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => !host.is_empty(),
    };
    // An empty port is the scheme's.
    let is_port = match port.strip_prefix(':') {
        Some(digits) => digits.is_empty() || authority.port_u16().is_some() && !digits.starts_with('+'),
        None => port.is_empty(),
    };
    is_address_or_name && is_port
}

/// The port may be left out if it is the scheme's. A proxy that ends TLS may change the scheme.
pub(super) fn without_default_port(host: &[u8]) -> &[u8] {
    let ports: [&[u8]; 3] = [b":80", b":443", b":"];
    ports.iter().find_map(|port| host.strip_suffix(*port)).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_valid(host: &str) -> bool {
        Authority::try_from(host.as_bytes()).is_ok_and(|host| is_host(&host))
    }

    #[test]
    fn hosts() {
        for host in [
            "a",
            "A.b-c_d~",
            "localhost:8080",
            "a:",
            "a:0",
            "a:65535",
            "a:00080",
            "127.0.0.1",
            "1.2.3.4:5",
            "[::1]",
            "[::1]:80",
            "[2001:db8::7.8.9.10]:",
            "!$&'()*+,;=",
            "xn--4ca",
        ] {
            assert!(is_valid(host), "{host:?}");
        }
    }

    #[test]
    fn what_is_no_host() {
        for host in [
            "",
            ":",
            ":80",
            "a b",
            " a",
            "a ",
            "a\t",
            "a/b",
            "a?b",
            "a#b",
            "u@a",
            "u:p@a",
            "http://a",
            "a,b c",
            "a:b",
            "a:8x",
            "a: 8",
            "a:-1",
            "a:65536",
            "a:99999999999",
            "a:1:2",
            "::1",
            "[",
            "]",
            "[]",
            "[::1",
            "::1]",
            "[::1]a",
            "[::1]80",
            "[1.2.3.4]",
            "[::1%25eth0]",
            "[v.a]",
            "[v1.a:b]",
            "a%20b",
            "a:+1",
            "a@a",
            "1@1",
            "@1",
            "[v1]",
            "[v1.]",
            "[vg.a]",
            "[a]",
            "a[",
            "%",
            "a%2",
            "a%2g",
            "%zz",
            "\"a\"",
            "<a>",
            "a\\b",
            "a^",
            "a`",
            "a{}",
            "a|b",
            "ä",
            "a\u{7f}",
        ] {
            assert!(!is_valid(host), "{host:?}");
        }
    }
}
