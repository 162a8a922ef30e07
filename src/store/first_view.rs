//! What the session's record keeps for the store.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The path of a session's first view.
///
/// A new visitor's first view has number 1, so nothing needs to be counted. Its path is part of the record that
/// is saved anyway, in one command. The counts beside the record begin with the second view.
#[derive(Debug, Deserialize, Serialize)]
pub struct FirstView(pub String);

impl FirstView {
    /// Its key in the record's data. Short, since every record in Redis has it.
    pub const KEY: &str = "1";

    /// The one of this session; none if the session did not begin with a view.
    pub fn of(data: &HashMap<String, Value>) -> Option<Self> {
        Self::deserialize(data.get(Self::KEY)?).ok()
    }
}
