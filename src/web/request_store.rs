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
    change::Change,
    contents::{Contents, Data},
};

/// The store of one request's [`Session`].
///
/// tower-sessions loads and saves whole records; the last one to save would undo what others did meanwhile. Here, what
/// a page changed is found by comparing the record with what was loaded, and only these keys are changed. And a session
/// that the page ends, or that goes on under another id, ends only when the page has answered, so that the new
/// one is stored before.
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
    /// The session that is to end.
    ending: Option<Id>,
    /// Whether its age begins anew when it goes on under another id.
    restarts_age: bool,
    /// Why the store failed last.
    failure: Option<Error>,
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
                state.value = Some(applied.value);
                Ok(true)
            }
            Ok(None) => {
                (state.id, state.value) = (None, None);
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

    async fn begin(&self, data: &Data, first_view: Option<&str>) -> Result<(Id, Bytes), Error> {
        let mut contents = Contents::default();
        // `Store` reports its own errors, but not these two.
        contents.set_data(data).inspect_err(Error::report)?;
        if let Some(path) = first_view {
            contents.count(path).inspect_err(Error::report)?;
        }
        Box::pin(self.store.create(&contents)).await
    }

    async fn end(&self, id: Id) -> Result<(), Error> {
        self.store.change(id, Change::End).await?;
        let mut state = self.state.lock();
        (state.ending, state.id) = (None, None);
        Ok(())
    }

    /// The change that a save makes: of the keys that the page has changed, or of all if it never loaded the data.
    fn change_of_save(&self, data: &Data) -> impl FnMut(&mut Data) -> Result<(), Error> + Send + use<> {
        let state = self.state.lock();
        let loaded = state.loaded.as_ref();
        let is_changed = |(key, value): &(&String, &Value)| loaded.and_then(|loaded| loaded.get(*key)) != Some(*value);
        let changed = data.iter().filter(is_changed).map(|(key, value)| (key.clone(), value.clone()));
        let changed: Vec<_> = changed.collect();
        let removed = loaded.map(|loaded| loaded.keys().filter(|key| !data.contains_key(*key)).cloned());
        let removed: Option<Vec<_>> = removed.map(Iterator::collect);
        move |data| {
            match &removed {
                Some(removed) => data.retain(|key, _| !removed.contains(key)),
                None => data.clear(),
            }
            data.extend(changed.iter().cloned());
            Ok(())
        }
    }

    async fn create_session(&self, record: &Record) -> Result<Id, Error> {
        let (ending, first_view) = {
            let mut state = self.state.lock();
            (state.ending, state.first_view.take())
        };
        let (id, value) = match ending {
            None => self.begin(&record.data, first_view.as_deref()).await?,
            // `flush` has emptied the record but kept its id.
            Some(old) if old == record.id => {
                let new = match record.data.is_empty() {
                    true => None,
                    false => Some(self.begin(&record.data, None).await?),
                };
                self.end(old).await?;
                let Some(new) = new else { return Ok(old) };
                new
            }
            // `cycle_id` has given the record another id.
            Some(old) => {
                let mut change = self.change_of_save(&record.data);
                let restarts_age = self.state.lock().restarts_age;
                let change_contents = |contents: &mut Contents<'_>| {
                    if restarts_age {
                        contents.begun = None;
                    }
                    contents.change(&mut change)
                };
                match Box::pin(self.store.change_id(&old, change_contents)).await? {
                    Some(new) => new,
                    // The session is over: what the page changed begins another one.
                    None => {
                        let mut data = Data::new();
                        change(&mut data)?;
                        self.begin(&data, None).await?
                    }
                }
            }
        };
        let mut state = self.state.lock();
        (state.id, state.ending) = (Some(id), None);
        (state.value, state.loaded) = (Some(value), Some(record.data.clone()));
        Ok(id)
    }

    async fn save_session(&self, record: &Record) -> Result<(), Error> {
        let ending = self.state.lock().ending;
        if ending == Some(record.id) {
            return self.end(record.id).await;
        }
        let change = Change::Data(Box::new(self.change_of_save(&record.data)));
        if self.change(change).await? {
            self.state.lock().loaded = Some(record.data.clone());
        }
        Ok(())
    }

    async fn load_session(&self, id: &Id) -> Result<Option<Record>, Error> {
        let value = self.state.lock().value.take();
        let value = match value {
            Some(value) => Some(value),
            None => self.store.read(id).await?,
        };
        let Some(value) = value else {
            self.state.lock().id = None;
            return Ok(None);
        };
        let data = Contents::decode(id, &value).and_then(|contents| contents.data()).inspect_err(Error::report)?;
        self.state.lock().loaded = Some(data.clone());
        // The expiry date is not used.
        Ok(Some(Record { id: *id, data, expiry_date: OffsetDateTime::UNIX_EPOCH }))
    }
}

#[async_trait]
impl SessionStore for RequestStore {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        record.id = self.checked(Box::pin(self.create_session(record)).await)?;
        Ok(())
    }

    /// Saves what the page has changed, if the session lives, and renews it. A session that is over stays over: its data
    /// is dropped.
    async fn save(&self, record: &Record) -> session_store::Result<()> {
        self.checked(self.save_session(record).await)
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        self.checked(self.load_session(id).await)
    }

    /// Lets the session end when the page has answered.
    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        let mut state = self.state.lock();
        // A session that has not begun needs no end.
        state.ending = state.id.filter(|begun| begun == id);
        Ok(())
    }
}
