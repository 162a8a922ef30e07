//! Gives each request its session, as middleware, and each visitor a cookie that names it.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use fred::bytes::Bytes;
use tower_sessions::{Session, session::Id};

use super::{
    atomic_session::AtomicSession,
    cookie::{ReceivedCookie, SessionCookie},
    cross_site::is_forged,
    error::Error,
    plain_http::warn_of_plain_http,
    request_store::RequestStore,
};
use crate::{
    config::Config,
    store::{self, Store},
};

/// The sessions that requests get. A clone is another handle on the same ones.
#[derive(Clone)]
pub struct Sessions {
    pub(super) store: Store,
    pub(super) cookie: SessionCookie,
}

impl Sessions {
    /// The sessions in this store.
    pub fn new(store: &Store, config: &Config) -> Self {
        Self { store: store.clone(), cookie: SessionCookie::new(config) }
    }

    /// The session that the request's cookie names, or a new one. It is read when the page wants it, unless there are
    /// several cookies: then they are tried.
    async fn find(&self, headers: &HeaderMap) -> Result<OpenSession, Error> {
        let cookies: Vec<_> = self.cookie.received(headers).collect();
        if let [cookie] = cookies[..] {
            return Ok(self.open(cookie, None));
        }
        let read = |id| async move { self.store.read(&id).await };
        // Boxed: otherwise every request's future would reserve space for this path, which only new visitors often take.
        match Box::pin(first_alive(cookies, read)).await.map_err(Error::of_data)? {
            (Some(cookie), Some(value)) => Ok(self.open(cookie, Some(value))),
            (received, _) => Ok(self.begin(headers, received, None)),
        }
    }

    /// The session that a cookie names, and its value if that is known.
    pub fn open(&self, received: ReceivedCookie, value: Option<Bytes>) -> OpenSession {
        let (store, session) = RequestStore::new(&self.store, Some(received.id), value, None);
        OpenSession { cookie: self.cookie.clone(), received: Some(received), store, session }
    }

    /// A session that begins when it is saved, perhaps with a view of this path. `received` is the cookie of a session
    /// that is over.
    pub fn begin(
        &self,
        headers: &HeaderMap,
        received: Option<ReceivedCookie>,
        first_view: Option<Box<str>>,
    ) -> OpenSession {
        if received.is_none() && self.cookie.is_secure() {
            warn_of_plain_http(headers);
        }
        let (store, session) = RequestStore::new(&self.store, None, None, first_view);
        OpenSession { cookie: self.cookie.clone(), received, store, session }
    }
}

/// Tries the sessions that these cookies name, one after another, until `attempt` returns something for an id: that
/// session is alive. Returns this with the session's cookie; if none is alive, only the last cookie.
///
/// # Errors
/// As for `attempt`; [`store::Error::Ended`] if none is alive, and one was ended just now.
pub(super) async fn first_alive<T, F: Future<Output = Result<Option<T>, store::Error>>>(
    cookies: impl IntoIterator<Item = ReceivedCookie>,
    attempt: impl Fn(Id) -> F,
) -> Result<(Option<ReceivedCookie>, Option<T>), store::Error> {
    let (mut received, mut ended) = (None, None);
    for cookie in cookies {
        match attempt(cookie.id).await {
            Ok(Some(found)) => return Ok((Some(cookie), Some(found))),
            Ok(None) => received = Some(cookie),
            Err(error @ store::Error::Ended) => ended = Some(error),
            Err(error) => return Err(error),
        }
    }
    ended.map_or(Ok((received, None)), Err)
}

/// The session of a request that is being answered.
pub struct OpenSession {
    cookie: SessionCookie,
    received: Option<ReceivedCookie>,
    store: Arc<RequestStore>,
    session: Session,
}

impl OpenSession {
    /// Lets the page answer with this session, and with the view's count if it was counted. Then saves the session if the
    /// page changed it or ended it, or if it begins with this view, unless the response is a server error. And gives the
    /// response the cookie that it needs.
    ///
    /// The response is [`Error::Ended`] if another request has ended the session, [`Error::TooLarge`] if it has no room
    /// for the change, [`Error::BrokenPage`] or [`Error::Session`] if it cannot be saved.
    pub async fn answer(self, mut request: Request, count: Option<u64>, page: Next) -> Response {
        let extensions = request.extensions_mut();
        extensions.insert(self.session.clone());
        extensions.insert(AtomicSession::new(self.store.clone(), self.session.clone(), count));
        let response = page.run(request).await;
        let saved = self.save(response.status(), response.extensions().get().copied()).await;
        let mut response = saved.map_or_else(Error::into_response, |()| response);
        let Self { cookie, received, store, .. } = self;
        let header = match (store.id(), received) {
            // A session that this request has not seen may have another id by now: then its cookie is not signed anew.
            (Some(id), Some(received))
                if id == received.id && (saved.is_err() || !received.needs_resigning || !store.has_been_seen()) =>
            {
                None
            }
            (Some(id), _) => cookie.with_id(id),
            // The page ended the session. If it had expired, another request may have begun the next one by now.
            (None, Some(_)) if store.has_ended() => cookie.removal(),
            (None, _) => None,
        };
        header.map(|header| response.headers_mut().append(header::SET_COOKIE, header));
        response
    }

    /// Saves the session, if it must be saved, after the page has answered with this status, or this error.
    async fn save(&self, status: StatusCode, answered: Option<Error>) -> Result<(), Error> {
        let Self { store, session, .. } = self;
        let is_to_be_saved = store.must_be_saved() || session.is_modified() && !session.is_empty().await;
        if is_to_be_saved && !status.is_server_error() {
            // Boxed: otherwise every request's future would reserve space for this rare path.
            let saved = Box::pin(session.save()).await;
            saved.map_err(|error| store.failure().map_or_else(|| error.into(), Error::of_data))?;
        }
        match store.failure() {
            // Whatever the page has answered: its session was ended.
            Some(store::Error::Ended) => Err(Error::Ended),
            // The page called `save` itself and returned its error, of which tower-sessions had kept only a text.
            Some(failure) if answered == Some(Error::Session) => Err(Error::of_data(failure)),
            _ => Ok(()),
        }
    }
}

/// Gives the request its session, as middleware. It counts nothing; the session is renewed only when it is saved.
///
/// # Errors
/// [`Error::CrossSite`]; if several cookies came, also [`Error::Ended`] and [`Error::Session`], as for reading.
pub async fn give_session(State(sessions): State<Sessions>, request: Request, page: Next) -> Result<Response, Error> {
    if is_forged(&request) {
        return Err(Error::CrossSite);
    }
    Ok(sessions.find(request.headers()).await?.answer(request, None, page).await)
}
