//! Redis's replies: a session is taken for stored, read or begun only if a reply says so, and each of several sessions gets
//! a result of its own.

#![no_main]

use std::{collections::VecDeque, sync::Mutex, time::Duration};

use cloud_run_sessions::store::{
    Error,
    compare_and_set::{CompareAndSet, SendCommand, Swap, Swapped},
    ttl::SessionTtl,
};
use fred::{bytes::Bytes, error::ErrorKind, types::Value};
use futures_util::FutureExt;
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use tokio::time::Instant;
use tower_sessions::session::Id;

#[derive(Arbitrary, Clone, Debug, PartialEq)]
enum Reply {
    Expected,
    New,
    Ok,
    One,
    Null,
    Int(i64),
    Double(f64),
    Boolean(bool),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Reply>),
    Refusal(Refusal),
}

#[derive(Arbitrary, Clone, Debug, PartialEq)]
enum Refusal {
    Syntax,
    NoScript,
    SeveralSlots,
    Forbidden,
    Other(String),
}

const EXPECTED: &[u8] = b"expected";
const NEW: &[u8] = b"new";

impl Reply {
    fn read(self) -> Result<Value, Error> {
        Ok(match self {
            Self::Expected => Value::Bytes(Bytes::from_static(EXPECTED)),
            Self::New => Value::Bytes(Bytes::from_static(NEW)),
            Self::Ok => Value::from_static_str("OK"),
            Self::One => Value::Integer(1),
            Self::Null => Value::Null,
            Self::Int(number) => Value::Integer(number),
            Self::Double(number) => Value::Double(number),
            Self::Boolean(is) => Value::Boolean(is),
            Self::Text(text) => Value::String(text.into()),
            Self::Bytes(bytes) => Value::Bytes(bytes.into()),
            Self::List(list) => Value::Array(list.into_iter().filter_map(|reply| reply.read().ok()).collect()),
            Self::Refusal(refusal) => {
                let text = match refusal {
                    Refusal::Syntax => "ERR syntax error".to_owned(),
                    Refusal::NoScript => "NOSCRIPT no".to_owned(),
                    Refusal::SeveralSlots => "CROSSSLOT no".to_owned(),
                    Refusal::Forbidden => "NOPERM no".to_owned(),
                    Refusal::Other(text) => text,
                };
                return Err(fred::error::Error::new(ErrorKind::Unknown, text).into());
            }
        })
    }

    /// Whether this or a part of it is such a reply.
    fn has(&self, is: &impl Fn(&Self) -> bool) -> bool {
        is(self) || matches!(self, Self::List(list) if list.iter().any(|reply| reply.has(is)))
    }

    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Expected => Some(EXPECTED),
            Self::New => Some(NEW),
            Self::Ok => Some(b"OK"),
            Self::Text(text) => Some(text.as_bytes()),
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// A server that gives these replies, and then is away.
struct Server(Mutex<VecDeque<Reply>>);

impl SendCommand for Server {
    async fn send(&self, _: Instant, _: &'static str, _: Option<usize>, _: Vec<Value>) -> Result<Value, Error> {
        self.0.lock().unwrap().pop_front().map_or(Err(Error::Unreached), Reply::read)
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("it does not wait")
}

fuzz_target!(|input: (u8, Vec<Reply>)| {
    let (sessions, replies) = (usize::from(input.0 % 4) + 1, input.1);
    let server = || Server(Mutex::new(replies.clone().into()));
    let ttl = SessionTtl::new(Duration::from_secs(60), None);
    let (compare_and_set, until) = (CompareAndSet::new(ttl, false), Instant::now());
    let says = |is: &dyn Fn(&Reply) -> bool| replies.iter().any(|reply| reply.has(&is));

    let swap = |id| Swap { id: Id(id), expected: EXPECTED.into(), new: NEW.into(), ttl: Duration::from_secs(1) };
    let swaps: Vec<_> = (0..sessions as i128).map(swap).collect();
    if let Ok(outcomes) = now(compare_and_set.swap(&server(), until, &swaps)) {
        assert_eq!(outcomes.len(), sessions);
        for outcome in outcomes.into_iter().flatten() {
            assert!(match outcome {
                Swapped::Stored => says(&|reply| {
                    matches!(reply, Reply::One | Reply::Int(1)) || [Some(EXPECTED), Some(NEW)].contains(&reply.bytes())
                }),
                Swapped::Other(held) => says(&|reply| reply.bytes() == Some(&held)),
                Swapped::Gone => says(&|reply| *reply == Reply::Null),
            });
        }
    }
    let _ = now(compare_and_set.check(&server(), until));

    let first = replies.first();
    match now(compare_and_set.read(&server(), until, &Id(0))) {
        Ok(Some(held)) => assert_eq!(first.and_then(Reply::bytes), Some(&held[..])),
        Ok(None) => assert_eq!(first, Some(&Reply::Null)),
        Err(_) => {}
    }
    let begun = now(compare_and_set.create(&server(), until, &Id(0), NEW.into(), Duration::from_secs(1)));
    if begun.is_ok() {
        assert_eq!(first.and_then(Reply::bytes), Some(&b"OK"[..]));
    }
});
