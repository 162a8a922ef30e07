//! The session's cookie: reading it, and making it.

use axum::http::{HeaderMap, HeaderValue, header};
use cookie::{Cookie, CookieJar, Key, SameSite};
use tower_sessions::session::Id;

use crate::config::Config;

/// The most cookies of the session's name that are tried. A browser sends several if they were set for several paths or
/// domains.
const MAX_COOKIES: usize = 4;

/// The session's cookie, as the settings want it.
///
/// It has no `Max-Age`, so it ends with the browser. [`Config::session_ttl`] ends the session behind it, which is the
/// store's part.
pub struct SessionCookie {
    name: String,
    is_secure: bool,
    /// What signs the cookie. Without it, cookies are not signed.
    secret: Option<Key>,
    /// A second secret, the old or the next one, while the secret is rotated.
    second: Option<Key>,
}

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
        Self {
            name: config.session_cookie().to_owned(),
            is_secure: config.is_cookie_secure(),
            secret: config.session_secret.clone(),
            second: config.session_secret_previous.clone(),
        }
    }

    /// Whether the cookie is for HTTPS only.
    pub fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// The cookies of this name that hold an id and are signed as they must be, in the order in which they came.
    pub fn received(&self, headers: &HeaderMap) -> impl Iterator<Item = ReceivedCookie> {
        let lines = headers.get_all(header::COOKIE).iter();
        let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
        let values = pairs.filter_map(|pair| pair.trim_ascii().strip_prefix(self.name.as_bytes())?.strip_prefix(b"="));
        values.filter_map(|value| self.verify(str::from_utf8(value).ok()?)).take(MAX_COOKIES)
    }

    fn verify(&self, value: &str) -> Option<ReceivedCookie> {
        let Some(secret) = &self.secret else {
            return Some(ReceivedCookie { id: value.parse().ok()?, needs_resigning: false });
        };
        // The signature is that of the value alone.
        let cookie = Cookie::parse_encoded(format!("id={value}")).ok()?;
        let jar = CookieJar::new();
        let id = |key| jar.signed(key).verify(cookie.clone())?.value().parse().ok();
        let outdated = || Some(ReceivedCookie { id: id(self.second.as_ref()?)?, needs_resigning: true });
        id(secret).map(|id| ReceivedCookie { id, needs_resigning: false }).or_else(outdated)
    }

    /// The header that gives a visitor the session of this id.
    pub fn with_id(&self, id: Id) -> Option<HeaderValue> {
        let cookie = self.with_value(id.to_string());
        let signed = self.secret.as_ref().and_then(|secret| {
            let mut jar = CookieJar::new();
            jar.signed_mut(secret).add(cookie.clone());
            jar.get(&self.name).cloned()
        });
        self.header(&signed.unwrap_or(cookie))
    }

    /// The header that removes the cookie.
    pub fn removal(&self) -> Option<HeaderValue> {
        let mut cookie = self.with_value(String::new());
        cookie.make_removal();
        self.header(&cookie)
    }

    fn with_value(&self, value: String) -> Cookie<'static> {
        Cookie::build((self.name.clone(), value))
            .http_only(true)
            .path("/")
            // Not Strict: a visitor who follows a link to this service keeps the session.
            .same_site(SameSite::Lax)
            .secure(self.is_secure)
            .build()
    }

    /// The cookie as a header. Its value is percent-encoded, but the name is the setting's, which may contain a percent
    /// sign.
    fn header(&self, cookie: &Cookie<'_>) -> Option<HeaderValue> {
        let encoded = cookie.encoded().to_string();
        let (_, rest) = encoded.split_once('=')?;
        HeaderValue::try_from(format!("{}={rest}", self.name)).ok()
    }
}
