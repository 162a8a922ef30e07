//! The host that a request is for.

use std::net::Ipv6Addr;

use axum::http::{Request, Version, header::HOST, uri::Authority};

/// Whether a request names its host as HTTP demands (RFC 9112, 3.2; RFC 9113, 8.3.1). If a proxy and
/// this service read different hosts from one ambiguous request, the proxy can be led to give one visitor's response to
/// another.
///
/// HTTP/1.1 needs exactly one `Host`; other versions need none. Where there is one, or a URI with an authority, it must
/// be a host and perhaps a port. Over HTTP/2, both must agree.
pub fn has_valid_host<B>(request: &Request<B>) -> bool {
    let authority = request.uri().authority().map(|authority| Authority::as_str(authority).as_bytes());
    if !authority.is_none_or(is_host) {
        return false;
    }
    let mut hosts = request.headers().get_all(HOST).iter().map(|host| host.as_bytes());
    match (hosts.next(), hosts.next()) {
        (None, _) => request.version() != Version::HTTP_11,
        (Some(host), None) => {
            let agrees = authority.is_none_or(|authority| is_same_host(authority, host));
            is_host(host) && (request.version() != Version::HTTP_2 || agrees)
        }
        (Some(_), Some(_)) => false,
    }
}

/// `unreserved / sub-delims`.
fn is_in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

/// Whether this is `host[:port]` of RFC 3986, 3.2.2 and 3.2.3, but for `IPvFuture`, of which there is none yet. An empty
/// host is none: no URI of HTTP has one (RFC 9110, 4.2.1). Parsing it with http's `Authority` was measured to take 880
/// instructions more a view, 4 %.
fn is_host(value: &[u8]) -> bool {
    let end = match value {
        [b'[', ..] => value.iter().position(|byte| *byte == b']').map_or(0, |bracket| bracket + 1),
        _ => name_length(value),
    };
    let (host, port) = value.split_at(end);
    let is_address_or_name = match host {
        [b'[', address @ .., b']'] => is_ipv6(address),
        name => !name.is_empty(),
    };
    is_address_or_name && is_port(port)
}

/// The length of `*( unreserved / pct-encoded / sub-delims )` at the beginning. IPv4 addresses are such names.
fn name_length(value: &[u8]) -> usize {
    let mut rest = value;
    loop {
        rest = match rest {
            [byte, rest @ ..] if is_in_name(*byte) => rest,
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            _ => return value.len() - rest.len(),
        };
    }
}

fn is_ipv6(address: &[u8]) -> bool {
    str::from_utf8(address).is_ok_and(|address| address.parse::<Ipv6Addr>().is_ok())
}

/// Nothing, or a colon and the decimal digits of a port, which may be none.
fn is_port(port: &[u8]) -> bool {
    let [b':', digits @ ..] = port else {
        return port.is_empty();
    };
    let is_number = || str::from_utf8(digits).is_ok_and(|digits| digits.parse::<u16>().is_ok());
    digits.is_empty() || digits[0].is_ascii_digit() && is_number()
}

/// Whether these are one host. `:80` and `:443` count as no port, since a proxy that terminates TLS changes the scheme.
pub(super) fn is_same_host(one: &[u8], other: &[u8]) -> bool {
    without_default_port(one).eq_ignore_ascii_case(without_default_port(other))
}

fn without_default_port(host: &[u8]) -> &[u8] {
    let ports: [&[u8]; 3] = [b":80", b":443", b":"];
    ports.iter().find_map(|port| host.strip_suffix(*port)).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            "a%20b",
            "%C3%a4",
            "!$&'()*+,;=",
            "xn--4ca",
        ] {
            assert!(is_host(host.as_bytes()), "{host:?}");
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
            "a:+1",
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
            "[v1.a:b]",
            "[v.a]",
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
            assert!(!is_host(host.as_bytes()), "{host:?}");
        }
    }
}
