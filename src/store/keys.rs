//! The keys in Redis, and what is under each.
//!
//! | key | type | |
//! |---|---|---|
//! | `<id>` | string | a session's record: MessagePack of `[id, data, expiry]`, in the format of tower-sessions-redis-store |
//! | `v:{<id>}` | hash | its counts by path, from its second view on; expires a second before the record |
//! | `calls:<instance>:<lane>` | string | the reply to the last call of an instance in this lane |
//! | `calls:<instance>:{<tag>}` | string | the same in a Cluster: of the last call for the slot of this tag |

use std::{fmt::Write, sync::LazyLock};

use fred::{bytes::BytesMut, types::Key, util::redis_keyslot};
use tower_sessions::session::Id;

/// A key that no session has, since its id would be empty.
pub const NO_SESSION: &str = "v:{}";

/// How many slots a Cluster has.
const SLOTS: usize = 16384;

/// The keys of sessions: for each its record, then its counts.
pub fn of_sessions<'a>(ids: impl ExactSizeIterator<Item = &'a Id>) -> impl Iterator<Item = Key> {
    // One buffer for all of them.
    let mut names = BytesMut::with_capacity(ids.len() * "v:{0123456789012345678901}".len());
    ids.flat_map(move |id| {
        // The braces put the counts into the record's slot.
        let _ = write!(names, "v:{{{id}}}");
        let counts = names.split().freeze();
        let record = counts.slice(3..counts.len() - 1);
        [record, counts].map(Key::from)
    })
}

/// The key of a session's record.
pub fn record(id: &Id) -> Key {
    id.to_string().into()
}

/// The slot of a session's keys, in a Cluster.
pub fn slot(id: &Id) -> u16 {
    redis_keyslot(id.to_string().as_bytes())
}

/// The keys of one instance's replies.
#[derive(Debug)]
pub struct ReplyKeys {
    /// Random, so that no two instances share a key.
    name: String,
    /// For each slot a tag that is in it. Empty without a Cluster.
    tags: &'static [u32],
}

impl ReplyKeys {
    /// Keys that no other instance has.
    pub fn new(is_clustered: bool) -> Self {
        Self { name: format!("calls:{}", Id::default()), tags: if is_clustered { &TAGS } else { &[] } }
    }

    /// The key of the reply to the last call in this lane. In a Cluster a slot has one lane.
    pub fn key(&self, slot: Option<u16>, lane: usize) -> Key {
        let name = &self.name;
        match slot {
            None => format!("{name}:{lane}").into(),
            Some(slot) => format!("{name}:{{{}}}", self.tags[usize::from(slot)]).into(),
        }
    }
}

/// For each slot the smallest number whose decimal form is in it.
static TAGS: LazyLock<Vec<u32>> = LazyLock::new(|| {
    let mut tags = vec![None; SLOTS];
    let mut missing = SLOTS;
    for number in 0.. {
        let tag = &mut tags[usize::from(redis_keyslot(number.to_string().as_bytes()))];
        if tag.is_none() {
            *tag = Some(number);
            missing -= 1;
        }
        if missing == 0 {
            break;
        }
    }
    tags.into_iter().flatten().collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_all_its_keys_in_one_slot() {
        let id = Id::default();
        let keys: Vec<_> = of_sessions([&id].into_iter()).collect();
        let names: Vec<_> = keys.iter().map(|key| key.as_str().unwrap()).collect();
        assert_eq!(names, [id.to_string(), format!("v:{{{id}}}")]);
        assert!(keys.iter().all(|key| key.cluster_hash() == slot(&id)));
    }

    #[test]
    fn each_slot_has_a_reply_key_of_its_own() {
        let keys = ReplyKeys::new(true);
        for slot in 0..SLOTS as u16 {
            assert_eq!(keys.key(Some(slot), 0).cluster_hash(), slot);
        }
    }
}
