//! The commands of Redis that the scripts call, over a map in memory, after their pages on redis.io. A test compares
//! them with a real server.

use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(Vec<u8>),
    Hash(BTreeMap<Vec<u8>, Vec<u8>>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub value: Value,
    /// In ms of Redis's clock.
    pub ends: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Ok,
    Nil,
    Int(i64),
    Bulk(Vec<u8>),
    Error(String),
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Redis's clock at the beginning of the script, in ms. It decides which keys are alive.
    pub now: u64,
    /// Ms since then. Before Redis 7.2, times to live count from here.
    pub ahead: u64,
    pub entries: BTreeMap<Vec<u8>, Entry>,
}

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const NO_INTEGER: &str = "ERR hash value is not an integer";

impl Model {
    /// The entry of a key, if it is still alive.
    pub fn get(&mut self, key: &[u8]) -> Option<&mut Entry> {
        let is_over = |entry: &Entry| entry.ends.is_some_and(|ends| ends < self.now);
        if self.entries.get(key).is_some_and(is_over) {
            self.entries.remove(key);
        }
        self.entries.get_mut(key)
    }

    /// Ms that a key has to live.
    pub fn left(&mut self, key: &[u8]) -> Option<u64> {
        let now = self.now + self.ahead;
        let ends = self.get(key)?.ends?;
        Some(ends.saturating_sub(now))
    }

    pub fn execute(&mut self, command: &[Vec<u8>]) -> Reply {
        let executed = match (&command[0][..], &command[1..]) {
            (b"GET", [key]) => self.text(key).map(bulk),
            (b"SET", [key, value, options @ ..]) => self.set(key, value, options),
            (b"DEL", keys) => {
                let deleted = keys.iter().filter(|key| {
                    let lives = self.get(key).is_some();
                    self.entries.remove(*key);
                    lives
                });
                Ok(Reply::Int(deleted.count() as i64))
            }
            (b"HINCRBY", [key, field, by]) => self.hincrby(key, field, number(by)),
            (b"HSETNX", [key, field, value]) => self.hash(key).map(|hash| {
                let is_new = !hash.contains_key(field);
                hash.entry(field.clone()).or_insert_with(|| value.clone());
                Reply::Int(is_new.into())
            }),
            (b"HDEL", [key, field]) => self.hash(key).map(|hash| {
                let deleted = hash.remove(field).is_some();
                Reply::Int(deleted.into())
            }),
            (b"HLEN", [key]) => self.hash(key).map(|hash| Reply::Int(hash.len() as i64)),
            (b"PTTL", [key]) => {
                let left = self.left(key).map(|left| left as i64);
                let lives = self.get(key).is_some();
                Ok(Reply::Int(left.unwrap_or(if lives { -1 } else { -2 })))
            }
            (b"PEXPIRE", [key, life]) => {
                let now = (self.now + self.ahead) as i64;
                let ends = now + number(life);
                let is_past = ends <= now;
                let found = self.get(key).map(|entry| entry.ends = Some(ends as u64)).is_some();
                if found && is_past {
                    self.entries.remove(key);
                }
                Ok(Reply::Int(found.into()))
            }
            (name, _) => panic!("the model has no {}", String::from_utf8_lossy(name)),
        };
        // A hash without fields is no key.
        let key = &command[1];
        if matches!(&self.entries.get(key), Some(Entry { value: Value::Hash(hash), .. }) if hash.is_empty()) {
            self.entries.remove(key);
        }
        executed.unwrap_or_else(|error| Reply::Error(error.to_owned()))
    }

    fn text(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
        match self.get(key) {
            None => Ok(None),
            Some(Entry { value: Value::Text(text), .. }) => Ok(Some(text.clone())),
            Some(_) => Err(WRONG_TYPE),
        }
    }

    fn hash(&mut self, key: &[u8]) -> Result<&mut BTreeMap<Vec<u8>, Vec<u8>>, &'static str> {
        self.get(key);
        let empty = || Entry { value: Value::Hash(BTreeMap::new()), ends: None };
        match &mut self.entries.entry(key.to_vec()).or_insert_with(empty).value {
            Value::Hash(hash) => Ok(hash),
            Value::Text(_) => Err(WRONG_TYPE),
        }
    }

    fn hincrby(&mut self, key: &[u8], field: &[u8], by: i64) -> Result<Reply, &'static str> {
        let hash = self.hash(key)?;
        let before = match hash.get(field) {
            None => 0,
            Some(text) => std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok()).ok_or(NO_INTEGER)?,
        };
        hash.insert(field.to_vec(), (before + by).to_string().into_bytes());
        Ok(Reply::Int(before + by))
    }

    fn set(&mut self, key: &[u8], value: &[u8], options: &[Vec<u8>]) -> Result<Reply, &'static str> {
        let has = |name: &[u8]| options.iter().position(|option| option == name);
        let old = if has(b"GET").is_some() { Some(self.text(key)?) } else { None };
        let kept = self.get(key).map(|entry| entry.ends);
        if has(b"NX").is_some() && kept.is_some() || has(b"XX").is_some() && kept.is_none() {
            return Ok(Reply::Nil);
        }
        let after =
            |name: &[u8], unit: u64| has(name).map(|at| self.now + self.ahead + number(&options[at + 1]) as u64 * unit);
        let ends = match has(b"KEEPTTL") {
            Some(_) => kept.flatten(),
            None => after(b"EX", 1000).or(after(b"PX", 1)),
        };
        let value = Value::Text(value.to_vec());
        self.entries.insert(key.to_vec(), Entry { value, ends });
        Ok(old.map_or(Reply::Ok, bulk))
    }
}

fn bulk(text: Option<Vec<u8>>) -> Reply {
    text.map_or(Reply::Nil, Reply::Bulk)
}

fn number(text: &[u8]) -> i64 {
    let text = std::str::from_utf8(text).unwrap();
    text.parse().unwrap_or_else(|_| panic!("no whole number: {text}"))
}
