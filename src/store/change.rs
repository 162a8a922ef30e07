//! Changes of a session: what may be done to it, wherever it lives.

use std::fmt;

use fred::bytes::Bytes;
use tower_sessions::session::Id;

use super::{
    contents::{Contents, Data},
    error::Error,
};

/// A change of the pages' own data.
pub type DataChange = Box<dyn FnMut(&mut Data) -> Result<(), Error> + Send>;

/// A change of a session.
pub enum Change {
    /// Counts a view of this path.
    View(Box<str>),
    /// Changes the pages' own data. The function may be called several times, each time with the data
    /// that another change has left.
    Data(DataChange),
    /// Ends the session.
    End,
    /// Ends the session of this id, if it still holds this value.
    EndIf(Id, Bytes),
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::View(_) => "View",
            Self::Data(_) => "Data",
            Self::End => "End",
            Self::EndIf(..) => "EndIf",
        })
    }
}

impl Change {
    /// Applies the change. Returns a view's count, else 0.
    ///
    /// # Errors
    /// [`Error::Ended`] if the session was ended; [`Error::TooLarge`]; [`Error::Contended`] if it holds another value
    /// than [`Change::EndIf`] says; [`Error::Unreadable`]; those of [`Change::Data`]. Then nothing is changed.
    pub fn apply<'a>(&'a mut self, contents: &mut Contents<'a>) -> Result<u64, Error> {
        if contents.is_ended {
            return Err(Error::Ended);
        }
        match self {
            Self::View(path) => contents.count(path),
            Self::Data(change) => contents.change(change).map(|()| 0),
            Self::End => {
                contents.end();
                Ok(0)
            }
            Self::EndIf(id, value) => {
                if *contents != Contents::decode(id, value)? {
                    return Err(Error::Contended);
                }
                contents.end();
                Ok(0)
            }
        }
    }
}

/// A change that was applied.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The count, if it was a view.
    pub count: u64,
    /// The session's value with this change, see [`Contents`].
    pub value: Bytes,
}

/// A session that goes on under a new id.
#[derive(Clone, Debug)]
pub struct NewId {
    /// The new id.
    pub id: Id,
    /// Whether it is unknown if the session has ended under its old id.
    pub is_in_doubt: bool,
}

/// What became of a change; nothing if there is no such session.
pub type Outcome = Result<Option<Applied>, Error>;
