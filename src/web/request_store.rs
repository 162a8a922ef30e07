//! The store behind one request's [`Session`]: it begins with the value that counting the view brought, and saves changes
//! instead of whole records.

use std::sync::Arc;

use async_trait::async_trait;
use fred::bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use time::OffsetDateTime;
use tower_sessions::{
    Session, SessionStore,
    session::{Id, Record},
    session_store,
};

use crate::store::{
    Error, Store,
    change::{Change, NewId},
    contents::{Contents, Data},
};

/// The store of one request's [`Session`].
///
/// tower-sessions loads and saves whole records; the last one to save would undo what others did meanwhile. Here, the
/// record is compared with what was loaded, and only the keys whose values differ are changed. A session that the
/// page ends, or moves to another id, is ended by the next save, at the latest when the page has answered without a server
/// error. Its successor, if it has one, is stored before.
#[derive(Debug)]
pub struct RequestStore {
    store: Store,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The session's id, if it has begun and is not over.
    id: Option<Id>,
    /// The session's value, if it was not looked at yet.
    value: Option<Bytes>,
    /// The data that the page got, if it got any.
    loaded: Option<Data>,
    /// The path of a new visitor's view.
    first_view: Option<Box<str>>,
    /// The id that is to end: with its data (`flush`), or because the session goes on under another one (`cycle_id`).
    ending: Option<Id>,
    /// Whether it ends with its data, even if the page calls `cycle_id` after that.
    is_flushed: bool,
    /// Whether its age begins anew when it goes on under another id.
    restarts_age: bool,
    /// Whether this request has written the session, and so renewed it.
    is_renewed: bool,
    /// Whether this request has ended the session, and it has no successor.
    has_ended: bool,
    /// Why the store failed last.
    failure: Option<Error>,
}

/// How a page has changed a session's data.
#[derive(Clone)]
struct Difference {
    changed: Vec<(String, Value)>,
    /// The keys that the page removed. `None` if it never loaded the data: then all that it did not set are removed.
    removed: Option<Vec<String>>,
}

impl Difference {
    fn new(loaded: Option<&Data>, data: &Data) -> Self {
        let is_changed = |(key, value): &(&String, &Value)| loaded.and_then(|loaded| loaded.get(*key)) != Some(*value);
        let changed = data.iter().filter(is_changed).map(|(key, value)| (key.clone(), value.clone()));
        let removed = loaded.map(|loaded| loaded.keys().filter(|key| !data.contains_key(*key)).cloned());
        Self { changed: changed.collect(), removed: removed.map(Iterator::collect) }
    }

    fn is_nothing(&self) -> bool {
        self.changed.is_empty() && self.removed.as_ref().is_some_and(Vec::is_empty)
    }

    /// The data of a new session, which has only the changed keys.
    fn of_nothing(&self) -> Data {
        self.changed.iter().cloned().collect()
    }

    fn apply(&self, data: &mut Data) {
        match &self.removed {
            Some(removed) => data.retain(|key, _| !removed.contains(key)),
            None => data.clear(),
        }
        data.extend(self.changed.iter().cloned());
    }
}

impl RequestStore {
    /// The session of this id, which has this value, or is read when the page wants it. Without an id, a session that
    /// begins when it is saved, perhaps with a view of this path.
    pub fn new(
        store: &Store,
        id: Option<Id>,
        value: Option<Bytes>,
        first_view: Option<Box<str>>,
    ) -> (Arc<Self>, Session) {
        let state = Mutex::new(State { id, value, first_view, ..State::default() });
        let this = Arc::new(Self { store: store.clone(), state });
        (this.clone(), Session::new(id, this, None))
    }

    /// The session's id, if it is in the store as far as is known.
    pub fn id(&self) -> Option<Id> {
        self.state.lock().id
    }

    /// Whether this request has ended the session, and it has no successor.
    pub fn has_ended(&self) -> bool {
        self.state.lock().has_ended
    }

    /// Whether this request has read or written the session.
    pub fn has_been_seen(&self) -> bool {
        let state = self.state.lock();
        state.value.is_some() || state.loaded.is_some()
    }

    /// Lets the session's age begin anew when it goes on under another id.
    pub fn restart_age(&self) {
        self.state.lock().restarts_age = true;
    }

    /// Changes the session, if it lives. Returns whether it does.
    pub async fn change(&self, change: Change) -> Result<bool, Error> {
        let Some(id) = self.state.lock().id else { return Ok(false) };
        let changed = self.store.change(id, change).await;
        let mut state = self.state.lock();
        match changed {
            Ok(Some(applied)) => {
                (state.value, state.is_renewed) = (Some(applied.value), true);
                Ok(true)
            }
            Ok(None) => {
                (state.id, state.value, state.loaded) = (None, None, None);
                Ok(false)
            }
            Err(error) => {
                state.failure = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Whether the session must be saved, even if the page has not changed it.
    pub fn must_be_saved(&self) -> bool {
        let state = self.state.lock();
        state.first_view.is_some() || state.ending.is_some()
    }

    /// Why the store failed, if it did.
    pub fn failure(&self) -> Option<Error> {
        self.state.lock().failure.clone()
    }

    /// Remembers why the store failed. tower-sessions keeps only a text.
    fn checked<T>(&self, result: Result<T, Error>) -> session_store::Result<T> {
        result.map_err(|error| {
            self.state.lock().failure = Some(error.clone());
            session_store::Error::Backend(error.to_string())
        })
    }

    /// Begins a session with this data, and with a new visitor's first view.
    async fn begin(&self, data: &Data) -> Result<Id, Error> {
        let first_view = self.state.lock().first_view.clone();
        let mut contents = Contents::default();
        // `Store` reports its own errors, but not these two.
        contents.set_data(data).inspect_err(Error::report)?;
        if let Some(path) = &first_view {
            contents.count(path).inspect_err(Error::report)?;
        }
        Box::pin(self.store.create(&contents)).await
    }

    /// From now on, the request has this session. Its record holds this data.
    fn go_on_with(&self, id: Id, data: &Data) {
        let (id, loaded) = (Some(id), Some(data.clone()));
        *self.state.lock() = State { id, loaded, is_renewed: true, ..State::default() };
    }

    fn difference(&self, data: &Data) -> Difference {
        Difference::new(self.state.lock().loaded.as_ref(), data)
    }

    async fn end(&self, id: Id) -> Result<(), Error> {
        let has_ended = self.store.change(id, Change::End).await?.is_some();
        *self.state.lock() = State { has_ended, ..State::default() };
        Ok(())
    }

    async fn create_session(&self, record: &Record) -> Result<Id, Error> {
        let (ending, is_flushed, restarts_age) = {
            let state = self.state.lock();
            (state.ending, state.is_flushed, state.restarts_age)
        };
        let new = match ending {
            None => self.begin(&record.data).await?,
            // `flush` has emptied the record but kept its id.
            Some(old) if old == record.id || is_flushed => {
                let new = if record.data.is_empty() { None } else { Some(self.begin(&record.data).await?) };
                self.end(old).await?;
                let Some(new) = new else { return Ok(record.id) };
                new
            }
            // `cycle_id` has given the record another id.
            Some(old) => {
                let difference = self.difference(&record.data);
                let change = |contents: &mut Contents<'_>| {
                    if restarts_age {
                        contents.begun = None;
                    }
                    contents.change(|data| {
                        difference.apply(data);
                        Ok(())
                    })
                };
                match Box::pin(self.store.change_id(&old, change)).await? {
                    Some(NewId { id, is_in_doubt: false }) => id,
                    // The visitor goes on with the new session, which stands for certain.
                    Some(NewId { id, .. }) => {
                        let mut state = self.state.lock();
                        (state.id, state.value) = (Some(id), None);
                        return Err(Error::Unanswered);
                    }
                    None => {
                        let data = difference.of_nothing();
                        if data.is_empty() {
                            *self.state.lock() = State::default();
                            return Ok(record.id);
                        }
                        self.begin(&data).await?
                    }
                }
            }
        };
        self.go_on_with(new, &record.data);
        Ok(new)
    }

    async fn save_session(&self, record: &Record) -> Result<(), Error> {
        if self.state.lock().ending == Some(record.id) {
            return self.end(record.id).await;
        }
        let difference = self.difference(&record.data);
        if difference.is_nothing() && self.state.lock().is_renewed {
            return Ok(());
        }
        let change = difference.clone();
        let change = Change::Data(Box::new(move |data| {
            change.apply(data);
            Ok(())
        }));
        if self.change(change).await? {
            self.state.lock().loaded = Some(record.data.clone());
            return Ok(());
        }
        // The session is over: what the page has changed begins another one.
        let data = difference.of_nothing();
        if !data.is_empty() {
            let new = self.begin(&data).await?;
            self.go_on_with(new, &record.data);
        }
        Ok(())
    }

    async fn load_session(&self) -> Result<Option<Record>, Error> {
        let (id, value) = {
            let mut state = self.state.lock();
            (state.id, state.value.take())
        };
        let Some(id) = id else { return Ok(None) };
        let value = match value {
            Some(value) => Some(value),
            None => self.store.read(&id).await?,
        };
        let Some(value) = value else {
            self.state.lock().id = None;
            return Ok(None);
        };
        let data = Contents::decode(&id, &value).and_then(|contents| contents.data()).inspect_err(Error::report)?;
        self.state.lock().loaded = Some(data.clone());
        // The expiry date is not used.
        Ok(Some(Record { id, data, expiry_date: OffsetDateTime::UNIX_EPOCH }))
    }
}

#[async_trait]
impl SessionStore for RequestStore {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        record.id = self.checked(Box::pin(self.create_session(record)).await)?;
        Ok(())
    }

    /// Saves what the page has changed, and renews the session; or ends it, after [`Self::delete`]. A session that is over
    /// stays over: what the page has changed begins another one.
    async fn save(&self, record: &Record) -> session_store::Result<()> {
        self.checked(self.save_session(record).await)
    }

    /// Loads the request's session, also if it has another id by now.
    async fn load(&self, _: &Id) -> session_store::Result<Option<Record>> {
        self.checked(self.load_session().await)
    }

    /// Lets the session end with the next save. A session that has not begun needs no end.
    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        let mut state = self.state.lock();
        // `cycle_id` deletes the record's id, then replaces it. So if the session's own id is deleted twice, `flush` or
        // `delete` did it once.
        state.is_flushed |= state.ending == Some(*id);
        state.ending = state.id;
        Ok(())
    }
}
