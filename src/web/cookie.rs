//! The session's cookie: reading it, and making it.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, header};
use cookie::{Cookie, CookieJar, SameSite};
use tower_sessions::session::Id;

use crate::config::Config;

/// At most this many valid cookies of the session's name are tried. A browser sends several if they were set for several
/// paths or domains.
const MAX_COOKIES: usize = 4;

/// The session's cookie, as the settings want it.
///
/// It has no `Max-Age`, so it ends with the browser. [`Config::session_ttl`] ends the session behind it, which is the
/// store's part.
#[derive(Clone)]
pub struct SessionCookie(Arc<Config>);

/// The id that a visitor's cookie names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedCookie {
    /// The id.
    pub id: Id,
    /// Whether the cookie is signed with the second secret.
    pub needs_resigning: bool,
}

impl SessionCookie {
    /// As the settings want it.
    pub fn new(config: &Config) -> Self {
        Self(Arc::new(config.clone()))
    }

    /// Whether the cookie is for HTTPS only.
    pub fn is_secure(&self) -> bool {
        self.0.is_cookie_secure()
    }

    /// The cookies of this name that hold an id and are signed as they must be, in the order in which they came.
    pub fn received(&self, headers: &HeaderMap) -> impl Iterator<Item = ReceivedCookie> {
        let name = self.0.session_cookie().as_bytes();
        let lines = headers.get_all(header::COOKIE).iter();
        let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
        let values = pairs.filter_map(move |pair| pair.trim_ascii().strip_prefix(name)?.strip_prefix(b"="));
        values.filter_map(|value| self.verify(str::from_utf8(value).ok()?)).take(MAX_COOKIES)
    }

    fn verify(&self, value: &str) -> Option<ReceivedCookie> {
        let Some(secret) = &self.0.session_secret else {
            return Some(ReceivedCookie { id: value.parse().ok()?, needs_resigning: false });
        };
        // The signature covers the value alone, so any name will do.
        let cookie = Cookie::parse_encoded(format!("id={value}")).ok()?;
        let jar = CookieJar::new();
        let id = |key| jar.signed(key).verify(cookie.clone())?.value().parse().ok();
        let second = self.0.session_secret_previous.as_ref();
        let outdated = || Some(ReceivedCookie { id: id(second?)?, needs_resigning: true });
        id(secret).map(|id| ReceivedCookie { id, needs_resigning: false }).or_else(outdated)
    }

    /// The header that gives a visitor the session of this id.
    pub fn with_id(&self, id: Id) -> Option<HeaderValue> {
        let mut jar = CookieJar::new();
        let cookie = self.with_value(id.to_string());
        match &self.0.session_secret {
            Some(secret) => jar.signed_mut(secret).add(cookie),
            None => jar.add(cookie),
        }
        HeaderValue::try_from(jar.get(self.0.session_cookie())?.to_string()).ok()
    }

    /// The header that removes the cookie.
    pub fn removal(&self) -> Option<HeaderValue> {
        let mut cookie = self.with_value(String::new());
        cookie.make_removal();
        HeaderValue::try_from(cookie.to_string()).ok()
    }

    fn with_value(&self, value: String) -> Cookie<'static> {
        Cookie::build((self.0.session_cookie().to_owned(), value))
            .http_only(true)
            .path("/")
            // Not Strict: a visitor who follows a link to this service keeps the session.
            .same_site(SameSite::Lax)
            .secure(self.is_secure())
            .build()
    }
}
