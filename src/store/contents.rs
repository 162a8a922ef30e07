//! What a session holds, and its form in Redis.
//!
//! A session is one value: MessagePack of `[id, data, expiry]`, the record that tower-sessions-redis-store writes. In
//! its data, under [`KEY`], is the service's own entry; all else is the pages' own data. The entry is
//! `[version, writes, counts]` or `[version, writes, counts, begun]`, and `[version, writes]` in a session that was
//! ended:
//!
//! - *version*: one higher with each write.
//! - *writes*: the last write of each of the last [`WRITERS`] instances, latest first, as `name, number, …`.
//! - *counts*: from path to the number of its views.
//! - *begun*: when the session began, in seconds since 1970, if sessions have a maximum age.
//!
//! A record without the entry, which another program wrote, has no counts yet.

use std::{borrow::Cow, collections::HashMap, mem};

use fred::bytes::Bytes;
use rmp::{Marker, decode, encode};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use smallvec::SmallVec;
use time::OffsetDateTime;
use tower_sessions::session::Id;

use super::error::Error;

/// The key of the service's own entry in a record's data. Short, since every session in Redis has it.
pub const KEY: &str = "#";

/// How an ended session's data begins: it holds the entry alone.
pub const ENDED_MARK: &[u8] = b"\x81\xa1#\x92";

/// How a value begins: an array of three, and an id of 16 bytes.
const ID_BEGIN: [u8; 3] = [0x93, 0xc4, 16];

/// Where the data begins in a value.
const DATA_BEGIN: usize = ID_BEGIN.len() + 16;

/// How many instances' last writes a value names. More would cost 10 to 18 bytes each; with fewer, the fate of more views
/// would stay unknown.
pub const WRITERS: usize = 4;

/// The most bytes of a session, beside those that counts may always take. A change that would make a larger one is
/// refused.
pub const MAX_SESSION_BYTES: usize = 64 * 1024;

/// Counts may take this many bytes even if the session exceeds [`MAX_SESSION_BYTES`]: another program, which knows no
/// bound, may have written it.
const COUNTS_BYTES: usize = 1024;

/// How deep arrays and maps may be nested in a page's value. rmp_serde writes any depth, but reads only a little more
/// than this.
pub const MAX_DEPTH: usize = 1000;

/// The pages' own data.
pub type Data = HashMap<String, Value>;

/// The name of a write: of the instance that made it, and its number. Numbers of an instance grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteId {
    /// Random, for each process.
    pub instance: u64,
    /// Higher than that of any earlier write of this instance.
    pub number: u64,
}

/// Whether a write was stored, as far as a later value tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was stored: before this value, or it is this value.
    Stored,
    /// It was not, and never will be.
    NotStored,
    /// Too much was written since.
    Unknown,
}

/// What a session holds, decoded as far as counting needs it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents<'a> {
    /// Whether the session was ended. What is left keeps requests with its id from beginning another one.
    pub is_ended: bool,
    /// When it began, in seconds since 1970, if sessions have a maximum age.
    pub begun: Option<i64>,
    version: u64,
    /// At most [`WRITERS`], of different instances.
    writes: SmallVec<[WriteId; WRITERS]>,
    counts: SmallVec<[(&'a str, u64); 4]>,
    own: Own<'a>,
    /// The bytes of the value, about.
    size: usize,
}

/// The pages' own data, encoded: pairs of a key and a value.
#[derive(Clone, Debug, Default, PartialEq)]
struct Own<'a> {
    number: u32,
    pairs: Cow<'a, [u8]>,
}

/// Whether this is the value of a session that was ended.
pub fn is_ended(value: &[u8]) -> bool {
    value.get(DATA_BEGIN..).is_some_and(|data| data.starts_with(ENDED_MARK))
}

impl<'a> Contents<'a> {
    /// Decodes the value of this session.
    ///
    /// # Errors
    /// [`Error::Unreadable`] if neither this service nor tower-sessions could have written it.
    pub fn decode(id: &Id, value: &'a [u8]) -> Result<Self, Error> {
        read(id, value).ok_or(Error::Unreadable)
    }

    /// The value of this session, whose record says that it ends at `expiry`.
    ///
    /// # Errors
    /// [`Error::Unreadable`] if it has more parts than MessagePack can count.
    pub fn encode(&self, id: &Id, expiry: OffsetDateTime) -> Result<Bytes, Error> {
        let mut value = Vec::with_capacity(self.size + 64);
        self.write(id, expiry, &mut value).ok_or(Error::Unreadable)?;
        Ok(value.into())
    }

    /// Counts a view of a path. Returns the number of its views so far, including this one.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the path is new, and the session too large for it.
    pub fn count(&mut self, path: &'a str) -> Result<u64, Error> {
        if let Some((_, count)) = self.counts.iter_mut().find(|(counted, _)| *counted == path) {
            *count = count.saturating_add(1);
            return Ok(*count);
        }
        let size = |path: &str| path.len() + 4;
        let counted: usize = self.counts.iter().map(|(path, _)| size(path)).sum();
        if counted + size(path) > COUNTS_BYTES {
            self.grow(0, size(path))?;
        } else {
            self.size += size(path);
        }
        self.counts.push((path, 1));
        Ok(1)
    }

    /// Changes the pages' own data. If this fails, nothing is changed.
    ///
    /// # Errors
    /// Those of `change` and of [`Self::set_data`].
    pub fn change(&mut self, change: impl FnOnce(&mut Data) -> Result<(), Error>) -> Result<(), Error> {
        let mut data = self.data()?;
        change(&mut data)?;
        self.set_data(&data)
    }

    /// The pages' own data.
    ///
    /// # Errors
    /// [`Error::Unreadable`].
    pub fn data(&self) -> Result<Data, Error> {
        let Own { number, pairs } = &self.own;
        let mut map = Vec::with_capacity(5 + pairs.len());
        encode::write_map_len(&mut map, *number).map_err(|_| Error::Unreadable)?;
        map.extend_from_slice(pairs);
        rmp_serde::from_slice(&map).map_err(|_| Error::Unreadable)
    }

    /// Replaces the pages' own data.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::TooDeep`]; [`Error::Reserved`] if it has the key of the service's own entry.
    pub fn set_data(&mut self, data: &Data) -> Result<(), Error> {
        if data.contains_key(KEY) {
            return Err(Error::Reserved(KEY));
        }
        if !data.values().all(|value| has_depth(value, MAX_DEPTH)) {
            return Err(Error::TooDeep(MAX_DEPTH));
        }
        let mut pairs = Vec::new();
        for (key, value) in data {
            encode::write_str(&mut pairs, key).map_err(|_| Error::Unreadable)?;
            rmp_serde::encode::write(&mut pairs, value).map_err(|_| Error::Unreadable)?;
        }
        self.grow(self.own.pairs.len(), pairs.len())?;
        let number = data.len().try_into().map_err(|_| Error::TooLarge(MAX_SESSION_BYTES))?;
        self.own = Own { number, pairs: pairs.into() };
        Ok(())
    }

    /// Ends the session: of what it holds, only its version and its last writes stay.
    pub fn end(&mut self) {
        (self.is_ended, self.counts, self.own) = (true, SmallVec::new(), Own::default());
    }

    /// Names the write that is to store this, and raises the version.
    pub fn record_write(&mut self, write: WriteId) {
        self.version = self.version.saturating_add(1);
        self.writes.retain(|other| other.instance != write.instance);
        self.writes.truncate(WRITERS - 1);
        self.writes.insert(0, write);
    }

    /// Whether `write`, which was to replace a value of the version `replaced`, led to this value. It may have been sent,
    /// and its reply lost.
    ///
    /// Had it been stored, its value would have the version `replaced` + 1 and name it first. Each later write moves the
    /// name back by one place at most. So the name is gone only after later writes by [`WRITERS`] other instances:
    /// then the value names those, and its version is above `replaced` + [`WRITERS`].
    pub fn fate(&self, write: WriteId, replaced: u64) -> Fate {
        match self.writes.iter().find(|last| last.instance == write.instance) {
            Some(last) if last.number >= write.number => Fate::Stored,
            Some(_) => Fate::NotStored,
            None if self.writes.len() < WRITERS => Fate::NotStored,
            None if self.version <= replaced.saturating_add(WRITERS as u64) => Fate::NotStored,
            None => Fate::Unknown,
        }
    }

    /// Whether another instance is among the last writers, however long ago it wrote.
    pub fn is_shared(&self) -> bool {
        self.writes.len() > 1
    }

    /// One higher with each write.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Makes room for `after` bytes in place of `before`.
    fn grow(&mut self, before: usize, after: usize) -> Result<(), Error> {
        let size = self.size + after - before;
        if after > before && size > MAX_SESSION_BYTES {
            return Err(Error::TooLarge(MAX_SESSION_BYTES));
        }
        self.size = size;
        Ok(())
    }

    fn write(&self, id: &Id, expiry: OffsetDateTime, value: &mut Vec<u8>) -> Option<()> {
        value.extend_from_slice(&ID_BEGIN);
        value.extend_from_slice(&id.0.to_be_bytes());
        encode::write_map_len(value, self.own.number + 1).ok()?;
        encode::write_str(value, KEY).ok()?;
        let parts = if self.is_ended { 2 } else { 3 + u8::from(self.begun.is_some()) };
        value.push(Marker::FixArray(parts).into());
        encode::write_uint(value, self.version).ok()?;
        value.push(Marker::FixArray(2 * self.writes.len() as u8).into());
        for write in &self.writes {
            encode::write_uint(value, write.instance).ok()?;
            encode::write_uint(value, write.number).ok()?;
        }
        if !self.is_ended {
            encode::write_map_len(value, self.counts.len().try_into().ok()?).ok()?;
            for (path, count) in &self.counts {
                encode::write_str(value, path).ok()?;
                encode::write_uint(value, *count).ok()?;
            }
            if let Some(begun) = self.begun {
                encode::write_sint(value, begun).ok()?;
            }
        }
        value.extend_from_slice(&self.own.pairs);
        rmp_serde::encode::write(value, &expiry).ok()
    }
}

fn read<'a>(id: &Id, value: &'a [u8]) -> Option<Contents<'a>> {
    let mut rest = value;
    let mut contents = Contents { size: value.len(), ..Contents::default() };
    if rest.split_off(..ID_BEGIN.len())? != ID_BEGIN {
        return None;
    }
    // Never another visitor's session.
    if rest.split_off(..16)? != id.0.to_be_bytes() {
        return None;
    }
    let mut number = decode::read_map_len(&mut rest).ok()?;
    let until = |begin: &'a [u8], end: &[u8]| &begin[..begin.len() - end.len()];
    let (mut begin, mut before_entry, mut has_entry) = (rest, &[][..], false);
    for _ in 0..number {
        let before = rest;
        if read_str(&mut rest)? == KEY {
            if mem::replace(&mut has_entry, true) {
                return None;
            }
            read_entry(&mut rest, &mut contents)?;
            (before_entry, begin) = (until(begin, before), rest);
        } else {
            skip(&mut rest)?;
        }
    }
    number -= u32::from(has_entry);
    // This service writes its entry first; tower-sessions may write it anywhere.
    let after_entry = until(begin, rest);
    let pairs = if before_entry.is_empty() { after_entry.into() } else { [before_entry, after_entry].concat().into() };
    contents.own = Own { number, pairs };
    skip(&mut rest)?;
    rest.is_empty().then_some(contents)
}

fn read_entry<'a>(rest: &mut &'a [u8], contents: &mut Contents<'a>) -> Option<()> {
    let length = decode::read_array_len(rest).ok()?;
    contents.is_ended = length == 2;
    contents.version = decode::read_int(rest).ok()?;
    let numbers = decode::read_array_len(rest).ok()?;
    if !(2..=4).contains(&length) || numbers % 2 > 0 || numbers > 2 * WRITERS as u32 {
        return None;
    }
    for _ in 0..numbers / 2 {
        let (instance, number) = (decode::read_int(rest).ok()?, decode::read_int(rest).ok()?);
        contents.writes.push(WriteId { instance, number });
    }
    if length > 2 {
        for _ in 0..decode::read_map_len(rest).ok()? {
            contents.counts.push((read_str(rest)?, decode::read_int(rest).ok()?));
        }
    }
    if length > 3 {
        contents.begun = Some(decode::read_int(rest).ok()?);
    }
    Some(())
}

fn read_str<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let length = decode::read_str_len(rest).ok()?;
    str::from_utf8(rest.split_off(..length as usize)?).ok()
}

/// Whether a value is nested at most this deep.
fn has_depth(value: &Value, most: usize) -> bool {
    match value {
        Value::Array(values) => most > 0 && values.iter().all(|value| has_depth(value, most - 1)),
        Value::Object(values) => most > 0 && values.values().all(|value| has_depth(value, most - 1)),
        _ => true,
    }
}

/// Passes over one MessagePack value, with all that it contains.
fn skip(rest: &mut &[u8]) -> Option<()> {
    IgnoredAny::deserialize(&mut rmp_serde::Deserializer::new(rest)).ok().map(drop)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{
        collection::{hash_map, vec},
        prelude::*,
        sample::Index,
    };
    use serde_json::json;
    use tower_sessions::session::Record;

    use super::*;

    const ID: Id = Id(0x0123_4567_89ab_cdef);
    const EXPIRY: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    /// What a session is made of.
    #[derive(Clone, Debug)]
    struct Parts {
        data: Data,
        views: Vec<String>,
        writes: Vec<(u64, u64)>,
        begun: Option<i64>,
        is_ended: bool,
    }

    impl Parts {
        fn contents(&self) -> Contents<'_> {
            let mut contents = Contents { begun: self.begun, ..Contents::default() };
            contents.set_data(&self.data).unwrap();
            for path in &self.views {
                contents.count(path).unwrap();
            }
            if self.is_ended {
                contents.end();
            }
            self.writes.iter().for_each(|&(instance, number)| contents.record_write(WriteId { instance, number }));
            contents
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 30, 5, |inner| {
            let map = hash_map(any::<String>(), inner.clone(), 0..5);
            prop_oneof![
                vec(inner, 0..20).prop_map(Value::from),
                map.prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn any_parts() -> impl Strategy<Value = Parts> {
        let data = hash_map(any::<String>().prop_filter("reserved", |key| key != KEY), any_json(), 0..20);
        let views = vec(prop_oneof!["/[a-c]?", any::<String>(), "[/é]{250,260}"], 0..40);
        let writes = vec((prop_oneof![0..6u64, any::<u64>()], any::<u64>()), 0..10);
        let parts = (data, views, writes, any::<Option<i64>>(), any::<bool>());
        parts.prop_map(|(data, views, writes, begun, is_ended)| Parts { data, views, writes, begun, is_ended })
    }

    /// What a session holds, without the order of its parts.
    fn unordered(contents: &Contents) -> impl PartialEq + std::fmt::Debug + use<> {
        let counts: BTreeMap<_, _> = contents.counts.iter().map(|(path, count)| (path.to_string(), *count)).collect();
        let begun = contents.begun.filter(|_| !contents.is_ended);
        let data = contents.data().unwrap();
        (contents.is_ended, begun, contents.version, contents.writes.clone(), counts, data)
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(parts in any_parts()) {
            let contents = parts.contents();
            let value = contents.encode(&ID, EXPIRY).unwrap();
            let decoded = Contents::decode(&ID, &value).unwrap();
            prop_assert_eq!(unordered(&decoded), unordered(&contents));
            prop_assert_eq!(decoded.data().unwrap(), if parts.is_ended { Data::new() } else { parts.data.clone() });
            prop_assert_eq!(is_ended(&value), parts.is_ended);
            prop_assert_eq!(decoded.encode(&ID, EXPIRY).unwrap(), value.clone());
            prop_assert!(Contents::decode(&Id(ID.0 + 1), &value).is_err(), "another session's");
        }

        /// tower-sessions writes a record's data in any order.
        #[test]
        fn tower_sessions_can_save_it_again(parts in any_parts()) {
            let value = parts.contents().encode(&ID, EXPIRY).unwrap();
            let mut record: Record = rmp_serde::from_slice(&value).unwrap();
            prop_assert_eq!((record.id, record.expiry_date), (ID, EXPIRY));
            record.expiry_date += time::Duration::nanoseconds(1_234_567_890);
            let saved = rmp_serde::to_vec(&record).unwrap();
            let decoded = Contents::decode(&ID, &saved).unwrap();
            prop_assert_eq!(unordered(&decoded), unordered(&parts.contents()));
            let again = decoded.encode(&ID, EXPIRY).unwrap();
            prop_assert_eq!(unordered(&Contents::decode(&ID, &again).unwrap()), unordered(&decoded));
            record.data.remove(KEY);
            prop_assert_eq!(record.data, decoded.data().unwrap());
        }

        #[test]
        fn any_bytes_can_be_refused(bytes in vec(any::<u8>(), 0..300), depth in 0..4usize) {
            // Deeper and deeper in the format.
            let begin = [&b"\x93"[..], b"\xc4\x10", &ID.0.to_be_bytes(), b"\x81\xa1#\x93"];
            let value = [&begin[..=depth].concat(), &bytes[..]].concat();
            decode_and_use(&value);
            decode_and_use(&bytes);
        }

        #[test]
        fn a_changed_value_can_be_refused(
            parts in any_parts(),
            changes in vec((any::<Index>(), any::<u8>(), 0..4u8), 1..4),
        ) {
            let mut value = parts.contents().encode(&ID, EXPIRY).unwrap().to_vec();
            for (index, byte, kind) in changes {
                let index = index.index(value.len());
                match kind {
                    0 => value.insert(index, byte),
                    1 if value.len() > 1 => drop(value.remove(index)),
                    2 => value.truncate(index.max(1)),
                    _ => value[index] = byte,
                }
                decode_and_use(&value);
            }
        }
    }

    /// A panic would be a failure.
    fn decode_and_use(value: &[u8]) {
        let _ = is_ended(value);
        let Ok(mut contents) = Contents::decode(&ID, value) else { return };
        let before = contents.data();
        let _ = contents.count("/");
        contents.record_write(WriteId { instance: 1, number: 1 });
        let again = contents.encode(&ID, EXPIRY).unwrap();
        let again = Contents::decode(&ID, &again).unwrap();
        assert_eq!(again.data(), before);
    }

    #[test]
    fn deep_nesting_is_refused() {
        for opening in [&b"\x91"[..], b"\x81\xa0", b"\x81\x90"] {
            let value = [&header(1), &b"\xa1a"[..], &opening.repeat(100_000)].concat();
            assert_eq!(Contents::decode(&ID, &value), Err(Error::Unreadable));
        }
    }

    /// How a value begins: up to its data, with so many pairs.
    fn header(pairs: u8) -> Vec<u8> {
        [&b"\x93\xc4\x10"[..], &ID.0.to_be_bytes(), &[0x80 | pairs]].concat()
    }

    /// The value with this as the service's own entry, between two pairs of the pages' own data.
    fn with_entries(entries: &[Value]) -> Vec<u8> {
        let pair = |key: &str, value: &Value| [rmp_serde::to_vec(key).unwrap(), rmp_serde::to_vec(value).unwrap()];
        let mut value = header(2 + entries.len() as u8);
        value.extend(pair("a", &json!([1, {"b": null}])).concat());
        entries.iter().for_each(|entry| value.extend(pair(KEY, entry).concat()));
        value.extend(pair("z", &json!("last")).concat());
        value.extend(rmp_serde::to_vec(&EXPIRY).unwrap());
        value
    }

    #[test]
    fn data_of_every_length_is_passed_over() {
        for length in [0, 15, 16, 31, 32, 255, 256, 65_535, 65_536] {
            let pairs = (0..length).map(|key| (key.to_string(), json!(null))).collect();
            for value in [json!("x".repeat(length)), json!(vec![0; length]), Value::Object(pairs)] {
                let data = Data::from([("a".to_owned(), value)]);
                let record = Record { id: ID, data: data.clone(), expiry_date: EXPIRY };
                let value = rmp_serde::to_vec(&record).unwrap();
                let decoded = Contents::decode(&ID, &value).and_then(|contents| contents.data());
                assert!(decoded == Ok(data), "of {length}");
            }
        }
    }

    #[test]
    fn the_entry_can_be_anywhere() {
        let own = Data::from([("a".to_owned(), json!([1, {"b": null}])), ("z".to_owned(), json!("last"))]);
        for (entries, version, count) in [(vec![], 0, 1), (vec![json!([7, [1, 2], {"/": 5}])], 7, 6)] {
            let value = with_entries(&entries);
            let mut contents = Contents::decode(&ID, &value).unwrap();
            assert_eq!((contents.version(), contents.count("/")), (version, Ok(count)));
            assert_eq!(contents.data(), Ok(own.clone()));
            let again = contents.encode(&ID, EXPIRY).unwrap();
            assert_eq!(Contents::decode(&ID, &again).unwrap().data(), Ok(own.clone()));
        }
    }

    #[test]
    fn a_wrong_entry_is_refused() {
        let right = json!([7, [1, 2], {"/": 5}]);
        assert!(Contents::decode(&ID, &with_entries(std::slice::from_ref(&right))).is_ok());
        for wrong in [
            json!([7]),
            json!([7, [1, 2], {"/": 5}, 1, 2]),
            json!([7, [1], {"/": 5}]),
            json!([7, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], {}]),
            json!([-7, [1, 2], {}]),
            json!([7.5, [1, 2], {}]),
            json!([7, [1, -2], {}]),
            json!([7, [1, 2], {"/": -1}]),
            json!([7, [1, 2], {"/": "5"}]),
            json!([7, [1, 2], [5]]),
            json!([7, [1, 2], {}, "begun"]),
            json!([7, {"1": 2}, {}]),
            json!({"7": [1, 2]}),
            json!("text"),
            json!(null),
        ] {
            let value = with_entries(std::slice::from_ref(&wrong));
            assert_eq!(Contents::decode(&ID, &value), Err(Error::Unreadable), "{wrong}");
        }
        let value = with_entries(&[right.clone(), right]);
        assert_eq!(Contents::decode(&ID, &value), Err(Error::Unreadable), "two entries");
        let rest = [Contents::default().encode(&ID, EXPIRY).unwrap().as_ref(), b"\xc0"].concat();
        assert_eq!(Contents::decode(&ID, &rest), Err(Error::Unreadable), "something behind the record");
    }

    #[test]
    fn fates() {
        let names =
            |names: &[(u64, u64)]| names.iter().map(|&(instance, number)| WriteId { instance, number }).collect();
        const REPLACED: u64 = 10;
        let write = WriteId { instance: 1, number: 5 };
        for (version, writes, expected) in [
            (11, &[(1, 5)][..], Fate::Stored),
            // A later write of the same instance.
            (12, &[(1, 6)], Fate::Stored),
            (14, &[(2, 9), (3, 9), (4, 9), (1, 5)], Fate::Stored),
            (99, &[(2, 9), (3, 9), (4, 9), (1, 5)], Fate::Stored),
            // An earlier one.
            (11, &[(2, 9), (1, 4)], Fate::NotStored),
            (99, &[(2, 9), (1, 4)], Fate::NotStored),
            (11, &[(2, 9)], Fate::NotStored),
            (14, &[(2, 9), (3, 9), (4, 9), (5, 9)], Fate::NotStored),
            (15, &[(2, 9), (3, 9), (4, 9), (5, 9)], Fate::Unknown),
            (u64::MAX, &[(2, 9), (3, 9), (4, 9), (5, 9)], Fate::Unknown),
            // No name was pushed out.
            (99, &[(2, 9), (3, 9), (4, 9)], Fate::NotStored),
            (0, &[], Fate::NotStored),
        ] {
            let contents = Contents { version, writes: names(writes), ..Contents::default() };
            assert_eq!(contents.fate(write, REPLACED), expected, "version {version}, writes {writes:?}");
        }
    }

    #[test]
    fn a_session_is_shared_once_a_second_instance_writes_it() {
        let mut contents = Contents::default();
        for (instance, is_shared) in [(1, false), (1, false), (2, true), (1, true)] {
            contents.record_write(WriteId { instance, number: contents.version() + 1 });
            assert_eq!(contents.is_shared(), is_shared, "{contents:?}");
        }
    }

    proptest! {
        /// The rule of the table, by the writes themselves.
        #[test]
        fn a_fate_is_never_wrong(
            before in vec(0..7u64, 0..10), is_stored in any::<bool>(), after in vec(0..7u64, 0..10)
        ) {
            let mut contents = Contents::default();
            let (mut number, mut mine) = (0, 0);
            let mut write = |contents: &mut Contents, instance| {
                number += 1;
                let write = WriteId { instance, number };
                contents.record_write(write);
                write
            };
            for instance in before {
                mine = mine.max(write(&mut contents, instance).number);
            }
            let replaced = contents.version();
            let mut stored = contents.clone();
            let uncertain = write(&mut stored, 0);
            let mut later = if is_stored { stored } else { contents };
            // The instance itself writes nothing until it knows.
            for instance in after.iter().filter(|instance| **instance > 0) {
                write(&mut later, *instance);
            }
            match later.fate(uncertain, replaced) {
                Fate::Stored => prop_assert!(is_stored),
                Fate::NotStored => prop_assert!(!is_stored),
                Fate::Unknown => prop_assert!(after.len() > WRITERS - 1),
            }
        }
    }

    #[test]
    fn a_count_ends_at_the_highest_number() {
        let mut contents = Contents { counts: [("/", u64::MAX - 1)].into_iter().collect(), ..Contents::default() };
        assert_eq!(contents.count("/"), Ok(u64::MAX));
        assert_eq!(contents.count("/"), Ok(u64::MAX));
        contents.version = u64::MAX;
        contents.record_write(WriteId { instance: 1, number: u64::MAX });
        let value = contents.encode(&ID, EXPIRY).unwrap();
        assert_eq!(Contents::decode(&ID, &value).unwrap().count("/"), Ok(u64::MAX));
    }

    fn text(bytes: usize) -> Data {
        Data::from([("text".to_owned(), "x".repeat(bytes).into())])
    }

    #[test]
    fn own_data_is_bounded() {
        let mut contents = Contents::default();
        contents.count("/").unwrap();
        contents.set_data(&text(MAX_SESSION_BYTES - 100)).unwrap();
        let before = contents.clone();
        assert_eq!(contents.set_data(&text(MAX_SESSION_BYTES)), Err(Error::TooLarge(MAX_SESSION_BYTES)));
        let grow = |data: &mut Data| {
            data.insert("more".to_owned(), "x".repeat(200).into());
            Ok(())
        };
        assert_eq!(contents.change(grow), Err(Error::TooLarge(MAX_SESSION_BYTES)));
        assert_eq!(contents, before, "a refused change changes nothing");
        let bytes = contents.encode(&ID, EXPIRY).unwrap().len();
        assert!(bytes <= MAX_SESSION_BYTES, "{bytes} bytes");
    }

    #[test]
    fn counts_are_bounded() {
        let paths: Vec<_> = (0..MAX_SESSION_BYTES / 20).map(|path| format!("/{path:020}")).collect();
        let mut contents = Contents::default();
        let counted = paths.iter().take_while(|path| contents.count(path).is_ok()).count();
        assert!(counted > MAX_SESSION_BYTES / 30 && counted < paths.len(), "{counted} paths");
        assert_eq!(contents.count(paths.last().unwrap()), Err(Error::TooLarge(MAX_SESSION_BYTES)));
        paths[..counted].iter().for_each(|path| assert_eq!(contents.count(path), Ok(2)));
        let bytes = contents.encode(&ID, EXPIRY).unwrap().len();
        assert!(bytes <= MAX_SESSION_BYTES + 100, "{bytes} bytes");
    }

    /// Another program may have written it.
    #[test]
    fn a_session_that_is_too_large_can_be_viewed_and_shrunk() {
        let record = Record { id: ID, data: text(2 * MAX_SESSION_BYTES), expiry_date: EXPIRY };
        let value = rmp_serde::to_vec(&record).unwrap();
        // Three of these, with the two paths below, take exactly `COUNTS_BYTES`.
        let paths: Vec<_> = (0..10).map(|path| format!("/{path:0332}")).collect();
        let mut contents = Contents::decode(&ID, &value).unwrap();
        for count in 1..=3 {
            assert_eq!([contents.count("/"), contents.count("/foo")], [Ok(count), Ok(count)]);
        }
        assert_eq!(contents.set_data(&text(2 * MAX_SESSION_BYTES + 1)), Err(Error::TooLarge(MAX_SESSION_BYTES)));
        assert_eq!(contents.set_data(&text(2 * MAX_SESSION_BYTES)), Ok(()));
        let counted = paths.iter().filter(|path| contents.count(path.as_str()).is_ok()).count();
        assert_eq!(counted, 3);
        assert_eq!(contents.set_data(&text(100)), Ok(()));
        assert_eq!(contents.count("/bar"), Ok(1));
        let bytes = contents.encode(&ID, EXPIRY).unwrap().len();
        assert!(bytes < 2 * COUNTS_BYTES, "{bytes} bytes");
    }

    #[test]
    fn the_services_own_key_is_reserved() {
        let mut contents = Contents::default();
        assert_eq!(contents.set_data(&Data::from([(KEY.to_owned(), json!(1))])), Err(Error::Reserved(KEY)));
        assert_eq!(contents, Contents::default());
    }

    #[test]
    fn sizes() {
        let begin = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let mut contents = Contents::default();
        contents.count("/").unwrap();
        let first = contents.encode(&ID, begin).unwrap().len();
        assert!(first <= 46, "{first} bytes after a first view");
        contents.count("/foo").unwrap();
        contents.count("/bar").unwrap();
        (1..=WRITERS as u64)
            .for_each(|name| contents.record_write(WriteId { instance: u64::MAX - name, number: 100_000 }));
        let all = contents.encode(&ID, begin).unwrap().len();
        assert!(all <= 46 + 2 * 6 + WRITERS * 14, "{all} bytes of three pages and {WRITERS} instances");
    }
}
