//! The commands of Redis that the service sends, over a map in memory, after their pages on redis.io. A test compares
//! them with a real server.

use std::collections::BTreeMap;

/// A reply, or an error in Redis's words.
pub type Result<T = Reply> = std::result::Result<T, &'static str>;

#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    Text(Vec<u8>),
    /// Of this length.
    List(i64),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub stored: Stored,
    /// In ms of the model's clock.
    pub ends: Option<u64>,
}

#[derive(Debug, PartialEq)]
pub enum Reply {
    Ok,
    Nil,
    Int(i64),
    Bulk(Vec<u8>),
}

/// How a server executes `SET … IFEQ … GET`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Ifeq {
    /// It replies what the key held, as Redis 8.4 and Valkey do.
    #[default]
    Held,
    /// It replies null if the condition fails, as Upstash documents it.
    Null,
    /// It has no `IFEQ`.
    Unknown,
}

#[derive(Clone, Default)]
pub struct Model {
    pub ifeq: Ifeq,
    /// In ms.
    pub now: u64,
    /// The keys that are alive.
    pub entries: BTreeMap<Vec<u8>, Entry>,
}

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const SYNTAX: &str = "ERR syntax error";

impl Model {
    /// Lets time pass up to this moment.
    pub fn pass_until(&mut self, now: u64) {
        if now > self.now {
            self.now = now;
            self.entries.retain(|_, entry| entry.ends.is_none_or(|ends| ends > now));
        }
    }

    /// The ms that a key has to live; none if there is no such key.
    pub fn left(&self, key: &[u8]) -> Option<u64> {
        self.entries.get(key).map(|entry| entry.ends.map_or(u64::MAX, |ends| ends.saturating_sub(self.now)))
    }

    /// What a key holds.
    pub fn text(&self, key: &[u8]) -> Result<Option<&Vec<u8>>> {
        match self.entries.get(key).map(|entry| &entry.stored) {
            None => Ok(None),
            Some(Stored::Text(text)) => Ok(Some(text)),
            Some(Stored::List(_)) => Err(WRONG_TYPE),
        }
    }

    pub fn execute(&mut self, command: &[&[u8]]) -> Result {
        let number = match *command {
            [b"GET", key] | [b"GETEX", key] => return self.get(key),
            [b"GETEX", key, b"PX", life] => {
                let held = self.get(key)?;
                let ends = Some(self.now + integer(life) as u64);
                self.entries.get_mut(key).into_iter().for_each(|entry| entry.ends = ends);
                return Ok(held);
            }
            [b"SET", key, value, ref options @ ..] => return self.set(key, value, options),
            [b"DEL", ref keys @ ..] => keys.iter().filter(|key| self.entries.remove(**key).is_some()).count() as i64,
            [b"PTTL", key] => self.left(key).map_or(-2, |left| i64::try_from(left).unwrap_or(-1)),
            [b"LPUSH", key, _] => {
                let list = self.entries.entry(key.to_vec()).or_insert(Entry { stored: Stored::List(0), ends: None });
                let Stored::List(length) = &mut list.stored else { return Err(WRONG_TYPE) };
                *length += 1;
                *length
            }
            _ => panic!("the model has no {}", command.join(&b' ').escape_ascii()),
        };
        Ok(Reply::Int(number))
    }

    fn get(&self, key: &[u8]) -> Result {
        Ok(self.text(key)?.map_or(Reply::Nil, |text| Reply::Bulk(text.clone())))
    }

    fn set(&mut self, key: &[u8], value: &[u8], mut options: &[&[u8]]) -> Result {
        let (mut ends, mut expected, mut keeps_ttl) = (None, None, false);
        let (mut nx, mut xx, mut get) = (false, false, false);
        loop {
            options = match *options {
                [] => break,
                [b"NX", ref rest @ ..] => (nx = true, rest).1,
                [b"XX", ref rest @ ..] => (xx = true, rest).1,
                [b"GET", ref rest @ ..] => (get = true, rest).1,
                [b"KEEPTTL", ref rest @ ..] => (keeps_ttl = true, rest).1,
                [b"PX", life, ref rest @ ..] => (ends = Some(self.now + integer(life) as u64), rest).1,
                [b"IFEQ", value, ref rest @ ..] if self.ifeq != Ifeq::Unknown => (expected = Some(value), rest).1,
                _ => return Err(SYNTAX),
            };
        }
        if u8::from(nx) + u8::from(xx) + u8::from(expected.is_some()) > 1 {
            return Err(SYNTAX);
        }
        let held = if get || expected.is_some() { self.text(key)?.cloned() } else { None };
        let exists = self.entries.contains_key(key);
        let fails = nx && exists || xx && !exists || expected.is_some_and(|value| held.as_deref() != Some(value));
        let reply = match held {
            _ if get && fails && expected.is_some() && self.ifeq == Ifeq::Null => Reply::Nil,
            Some(held) if get => Reply::Bulk(held),
            _ if get || fails => Reply::Nil,
            _ => Reply::Ok,
        };
        if !fails {
            let old = self.entries.get(key).and_then(|entry| entry.ends);
            let ends = if keeps_ttl { old } else { ends };
            self.entries.insert(key.to_vec(), Entry { stored: Stored::Text(value.to_vec()), ends });
        }
        Ok(reply)
    }
}

fn integer(text: &[u8]) -> i64 {
    str::from_utf8(text).unwrap().parse().unwrap()
}
