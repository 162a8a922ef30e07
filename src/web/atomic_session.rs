//! Changes of a session that overlapping requests do not undo.

use std::sync::Arc;

use axum::{extract::FromRequestParts, http::request::Parts};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tower_sessions::Session;

use super::{error::Error, request_store::RequestStore, route_state::HasSession};
use crate::store::{self, change::Change};

/// The request's session, for changes that overlapping ones do not undo, on any instance. Handlers extract it, beside or
/// in place of tower-sessions' [`Session`].
///
/// Pages that extract it are routed through [`counted`](super::app::counted) or
/// [`with_session`](super::app::with_session): elsewhere they do not compile.
#[derive(Clone, Debug)]
pub struct AtomicSession {
    store: Arc<RequestStore>,
    session: Session,
    /// The view's count, if it was counted.
    pub(super) count: Option<u64>,
}

impl<S: HasSession> FromRequestParts<S> for AtomicSession {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        parts.extensions.get::<Self>().cloned().ok_or(Error::Session)
    }
}

impl AtomicSession {
    pub(super) fn new(store: Arc<RequestStore>, session: Session, count: Option<u64>) -> Self {
        Self { store, session, count }
    }

    /// Changes the session's value of this key, and returns what the function returns. If there is no such value, the
    /// function gets `T`'s default.
    ///
    /// Requests that do this at the same time do not undo each other: each change is applied exactly once, to the value
    /// that the one before has left. The function may be called several times, with newer values, and only its last call
    /// counts. So it should have no side effects.
    ///
    /// It costs one command executed, or two if the server lacks `SET … IFEQ`; one more if the instance does not remember
    /// the session. What the page has changed before is saved first. A new visitor's session begins, with the value, once
    /// the page has answered.
    ///
    /// # Errors
    /// [`Error::Session`] if the store fails; [`Error::BrokenPage`] if the value has another type or cannot be stored;
    /// [`Error::TooLarge`] if the session has no room for it; [`Error::Ended`] if another request has ended the session.
    /// The value is not changed then, unless Redis gave no answer, or an unreadable one: then it may have been.
    pub async fn update<T, R>(
        &self,
        key: &str,
        mut change: impl FnMut(&mut T) -> R + Send + 'static,
    ) -> Result<R, Error>
    where
        T: Default + DeserializeOwned + Serialize,
        R: Send + 'static,
    {
        // From the value to the next one, and what `change` has returned.
        let next = move |value: Option<&Value>| {
            let mut value = value.map_or_else(|| Ok(T::default()), T::deserialize)?;
            let result = change(&mut value);
            serde_json::to_value(value).map(|value| (value, result))
        };
        let next = Arc::new(Mutex::new((next, None)));
        if self.store.id().is_some() {
            if self.session.is_modified() {
                // The page's earlier changes come first.
                self.session.save().await?;
            }
            let (own_key, shared) = (key.to_owned(), next.clone());
            let change = Change::Data(Box::new(move |data| {
                let (next, last) = &mut *shared.lock();
                let (value, result) = next(data.get(&own_key)).map_err(|_| store::Error::Mismatched)?;
                data.insert(own_key.clone(), value);
                *last = Some(result);
                Ok(())
            }));
            let lives = self.store.change(change).await.map_err(Error::of_data)?;
            // What the page has read is out of date.
            self.session.load().await?;
            if lives {
                return next.lock().1.take().ok_or(Error::Session);
            }
        }
        // There is no session yet, or it is over. One begins when the page has answered, and nobody else knows it before.
        let value = self.session.get_value(key).await?;
        let (value, result) = (next.lock().0)(value.as_ref())?;
        self.session.insert_value(key, value).await?;
        Ok(result)
    }

    /// Lets the session go on under a new id, as tower-sessions' [`Session::cycle_id`] does, and counts its age from
    /// now on: for a login. See [`Config::session_max_age`](crate::config::Config::session_max_age).
    ///
    /// A page that then ends the session after all must call `save` first: after `cycle_id`, tower-sessions' `flush` only
    /// removes the data.
    ///
    /// # Errors
    /// [`Error::Session`] if the session cannot be read.
    pub async fn log_in(&self) -> Result<(), Error> {
        self.store.restart_age();
        Ok(self.session.cycle_id().await?)
    }
}
