//! Opens and closes a request's session, and its cookie.

use std::sync::Arc;

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, header},
    response::Response,
    routing::Route,
};
use cookie::{Cookie, CookieJar, Key, SameSite};
use parking_lot::Mutex;
use tower::Service;
use tower_sessions::{Session, session::Id};

use super::{error::Error, forwarded::warn_of_plain_http};
use crate::{config::Config, store::Store};

/// Gives each request its [`Session`], and each visitor a cookie with the session's id. A clone is another handle on
/// the same sessions.
///
/// The cookie has no `Max-Age`, so it ends with the browser. [`Config::session_ttl`] ends the session behind it,
/// which is the store's part.
#[derive(Clone)]
pub struct Sessions(Arc<Shared>);

struct Shared {
    store: Arc<Store>,
    /// The cookie's name.
    name: String,
    is_secure: bool,
    /// What signs the cookie. Without it, cookies are not signed.
    secret: Option<Key>,
    /// A second secret, the old or the next one, while the secret is rotated.
    previous: Option<Key>,
}

/// The id that a visitor's cookie names.
#[derive(Clone, Copy)]
struct Received {
    id: Id,
    /// Whether the cookie is signed with the second secret.
    is_outdated: bool,
}

impl Sessions {
    /// The sessions in this store.
    pub fn new(store: &Store, config: &Config) -> Self {
        Self(Arc::new(Shared {
            store: Arc::new(store.clone()),
            name: config.session_cookie().to_owned(),
            is_secure: config.is_cookie_secure(),
            secret: config.session_secret.clone(),
            previous: config.session_secret_previous.clone(),
        }))
    }

    /// The store that the sessions live in.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Gives the request the session that its cookie names, or a new one.
    pub fn open(&self, request: &mut Request) -> Opened {
        let received = self.0.read(request.headers());
        if received.is_none() && self.0.is_secure {
            warn_of_plain_http(request.headers());
        }
        let session = Session::new(received.map(|cookie| cookie.id), self.0.store.clone(), None);
        request.extensions_mut().insert(session.clone());
        Opened { shared: self.0.clone(), received, session }
    }
}

/// The session of a request that is being answered.
pub struct Opened {
    shared: Arc<Shared>,
    received: Option<Received>,
    /// The session.
    pub session: Session,
}

impl Opened {
    /// Saves the session if the page changed it, unless the response is a server error, and gives the response the
    /// cookie that it needs.
    ///
    /// # Errors
    /// [`Error::Session`] if the session cannot be saved.
    pub async fn close(self, response: &mut Response) -> Result<(), Error> {
        let Self { shared, received, session } = self;
        let cookie = if session.is_empty().await {
            // The page ended the session that the request came with.
            received.map(|_| shared.removal())
        } else if session.is_modified() && !response.status().is_server_error() {
            // In a box, since few requests come here, and all keep room for it.
            Box::pin(session.save()).await?;
            session.id().map(|id| shared.cookie(id))
        } else {
            received.filter(|cookie| cookie.is_outdated).map(|cookie| shared.cookie(cookie.id))
        };
        if let Some(Ok(cookie)) = cookie.map(|cookie| HeaderValue::try_from(shared.encoded(&cookie))) {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
        Ok(())
    }
}

/// Gives the request its session, as middleware. It counts nothing; the session is renewed only when it is saved.
///
/// # Errors
/// [`Error::Session`] if the session cannot be saved.
pub async fn give_session(
    sessions: Sessions,
    mut request: Request,
    page: Arc<Mutex<Route>>,
) -> Result<Response, Error> {
    let opened = sessions.open(&mut request);
    let response = page.lock().call(request);
    let Ok(mut response) = response.await;
    opened.close(&mut response).await?;
    Ok(response)
}

impl Shared {
    /// The first cookie of this service's name that holds an id and is signed as it must be.
    fn read(&self, headers: &HeaderMap) -> Option<Received> {
        let lines = headers.get_all(header::COOKIE).iter();
        let mut pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
        pairs.find_map(|pair| {
            let value = pair.trim_ascii().strip_prefix(self.name.as_bytes())?.strip_prefix(b"=")?;
            self.verify(str::from_utf8(value).ok()?)
        })
    }

    fn verify(&self, value: &str) -> Option<Received> {
        let Some(secret) = &self.secret else {
            return Some(Received { id: value.parse().ok()?, is_outdated: false });
        };
        // The signature is that of the value alone.
        let cookie = Cookie::parse_encoded(format!("id={value}")).ok()?;
        let jar = CookieJar::new();
        let id = |key| jar.signed(key).verify(cookie.clone())?.value().parse().ok();
        let outdated = || Some(Received { id: id(self.previous.as_ref()?)?, is_outdated: true });
        id(secret).map(|id| Received { id, is_outdated: false }).or_else(outdated)
    }

    /// The cookie that names this session.
    fn cookie(&self, id: Id) -> Cookie<'static> {
        let cookie = self.with_value(id.to_string());
        let Some(secret) = &self.secret else {
            return cookie;
        };
        let mut jar = CookieJar::new();
        jar.signed_mut(secret).add(cookie.clone());
        jar.get(&self.name).cloned().unwrap_or(cookie)
    }

    /// The cookie that removes the session's.
    fn removal(&self) -> Cookie<'static> {
        let mut cookie = self.with_value(String::new());
        cookie.make_removal();
        cookie
    }

    /// The cookie as a header. Its value is percent-encoded, but the name is the setting's, which may contain a percent
    /// sign.
    fn encoded(&self, cookie: &Cookie<'_>) -> String {
        let encoded = cookie.encoded().to_string();
        encoded.split_once('=').map_or_else(String::new, |(_, rest)| format!("{}={rest}", self.name))
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
}
