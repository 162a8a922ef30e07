//! The commands of Redis that the scripts call, over a map in memory, after their pages on redis.io. A test compares
//! them with a real server.

use std::collections::BTreeMap;

type Hash = BTreeMap<Vec<u8>, Vec<u8>>;
pub type Entries = BTreeMap<Vec<u8>, Entry>;

/// A reply, or an error in Redis's words.
pub type Result<T = Reply> = std::result::Result<T, &'static str>;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(Vec<u8>),
    Hash(Hash),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub value: Value,
    /// In ms of Redis's clock.
    pub ends: Option<u64>,
}

pub enum Reply {
    Ok,
    Nil,
    Int(i64),
    Bulk(Vec<u8>),
}

#[derive(Clone, Default)]
pub struct Model {
    /// Redis's clock, in ms. Before Redis 7.2 it goes on while a script runs.
    pub now: u64,
    /// The keys that are alive, or were so when the script began.
    pub entries: Entries,
}

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

impl Model {
    /// Between scripts, lets time pass up to this moment.
    pub fn pass_until(&mut self, now: u64) {
        self.now = now;
        self.entries.retain(|_, entry| entry.ends.is_none_or(|ends| ends >= now));
    }

    /// Ms that a key has to live, none if there is no such key.
    pub fn left(&self, key: &[u8]) -> Option<u64> {
        self.entries.get(key).map(|entry| entry.ends.map_or(u64::MAX, |ends| ends.saturating_sub(self.now)))
    }

    pub fn execute(&mut self, command: &[&[u8]]) -> Result {
        let number = match *command {
            [b"GET", key] => return self.text(key),
            [b"SET", key, value, ref options @ ..] => return self.set(key, value, options),
            [b"DEL", ref keys @ ..] => keys.iter().filter(|key| self.entries.remove(**key).is_some()).count() as i64,
            [b"HINCRBY", key, field, by] => {
                let value = self.hash(key)?.entry(field.to_vec()).or_insert_with(|| b"0".to_vec());
                let sum = integer(value).ok_or("ERR hash value is not an integer")? + integer(by).unwrap();
                *value = sum.to_string().into_bytes();
                sum
            }
            [b"HSETNX", key, field, value] => {
                let hash = self.hash(key)?;
                let is_new = !hash.contains_key(field);
                hash.entry(field.to_vec()).or_insert_with(|| value.to_vec());
                is_new.into()
            }
            [b"HDEL", key, field] => self.hash(key)?.remove(field).is_some().into(),
            [b"HLEN", key] => self.hash(key)?.len() as i64,
            [b"PTTL", key] => self.left(key).map_or(-2, |left| i64::try_from(left).unwrap_or(-1)),
            [b"PEXPIRE", key, life] if integer(life) <= Some(0) => return self.execute(&[b"DEL", key]),
            [b"PEXPIRE", key, life] => {
                let ends = integer(life).map(|life| self.now + life as u64);
                self.entries.get_mut(key).map(|entry| entry.ends = ends).is_some().into()
            }
            _ => panic!("the model has no {}", command.join(&b' ').escape_ascii()),
        };
        // A hash without fields is no key.
        if self.entries.get(command[1]).is_some_and(|entry| entry.value == Value::Hash(Hash::new())) {
            self.entries.remove(command[1]);
        }
        Ok(Reply::Int(number))
    }

    fn text(&self, key: &[u8]) -> Result {
        match self.entries.get(key).map(|entry| &entry.value) {
            None => Ok(Reply::Nil),
            Some(Value::Text(text)) => Ok(Reply::Bulk(text.clone())),
            Some(Value::Hash(_)) => Err(WRONG_TYPE),
        }
    }

    fn hash(&mut self, key: &[u8]) -> Result<&mut Hash> {
        let empty = || Entry { value: Value::Hash(Hash::new()), ends: None };
        match &mut self.entries.entry(key.to_vec()).or_insert_with(empty).value {
            Value::Hash(hash) => Ok(hash),
            Value::Text(_) => Err(WRONG_TYPE),
        }
    }

    fn set(&mut self, key: &[u8], value: &[u8], options: &[&[u8]]) -> Result {
        let has = |name: &[u8]| options.contains(&name);
        let reply = if has(b"GET") { self.text(key)? } else { Reply::Ok };
        let old = self.entries.get(key);
        if has(b"NX") && old.is_some() || has(b"XX") && old.is_none() {
            return Ok(Reply::Nil);
        }
        let ends = |life, unit| Some(self.now + integer(life).unwrap() as u64 * unit);
        let ends = match *options {
            [.., b"KEEPTTL"] => old.and_then(|entry| entry.ends),
            [b"EX", life, ..] => ends(life, 1000),
            [.., b"PX", life] => ends(life, 1),
            _ => None,
        };
        self.entries.insert(key.to_vec(), Entry { value: Value::Text(value.to_vec()), ends });
        Ok(reply)
    }
}

fn integer(text: &[u8]) -> Option<i64> {
    str::from_utf8(text).ok()?.parse().ok()
}
