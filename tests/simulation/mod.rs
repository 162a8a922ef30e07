//! Promise: the protocol holds in a simulated world, where chance is a seed and time costs nothing.
//!
//! The committer, its retries, its pacing and both scripts are the real ones. Simulated are the clock (tokio's, paused),
//! the network, and Redis: Lua 5.1 over the few commands that the scripts call. fred, TLS, Cluster and Sentinel
//! are not simulated, nor Redis's own persistence; only the tests on real servers show those.
//!
//! `SEED=7 tests/run simulation` plays one history. `SIMULATE=120 tests/run simulation` plays new ones for 120 s.

mod events;
mod lua;
mod model;
mod mutants;
mod world;

use std::{
    env, thread,
    time::{Duration, Instant},
};

use events::History;
use model::{Model, Reply};
use proptest::{collection::vec, prelude::*, test_runner::TestRunner};
use world::play;

use crate::common::Redis;

const COUNT_VIEWS: &str = include_str!("../../src/store/count_views.lua");
const SAVE: &str = include_str!("../../src/store/save.lua");

/// The first of these seeds whose history has a violation, and the seeds played until then.
fn search(seeds: impl Iterator<Item = u64>) -> (Option<u64>, u64) {
    let mut played = 0;
    for seed in seeds {
        played += 1;
        if play(&History::of(seed)).is_some() {
            return (Some(seed), played);
        }
    }
    (None, played)
}

/// A history without the events that its violation does not need.
fn shortened(mut history: History) -> History {
    let mut at = 0;
    while at < history.events.len() {
        let mut shorter = history.clone();
        shorter.events.remove(at);
        if play(&shorter).is_some() {
            history = shorter;
        } else {
            at += 1;
        }
    }
    history
}

fn report(seed: u64) -> String {
    let history = shortened(History::of(seed));
    let violation = play(&history);
    format!("SEED={seed} tests/run simulation: {violation:?}, after {history:#?}")
}

#[test]
fn what_must_hold_holds() {
    world::use_scripts(COUNT_VIEWS, SAVE);
    if let Ok(seed) = env::var("SEED") {
        let seed = seed.parse().expect("SEED is a whole number");
        let violation = play(&History::of(seed));
        assert!(violation.is_none(), "{}", report(seed));
        return;
    }
    let number = |name: &str| env::var(name).map(|text| text.parse::<u64>().expect("a whole number"));
    let begin = Instant::now();
    // For some time, or for a number of histories.
    let most = number("SIMULATE_HISTORIES").unwrap_or(u64::MAX);
    let end = begin + Duration::from_secs(number("SIMULATE").unwrap_or(if most < u64::MAX { 3600 } else { 5 }));
    let first: u64 = rand::random();
    let threads = [0, 1].map(|thread| {
        thread::spawn(move || {
            world::use_scripts(COUNT_VIEWS, SAVE);
            let seeds = (0..most / 2).map(|n| first.wrapping_add(2 * n + thread));
            search(seeds.take_while(|_| Instant::now() < end))
        })
    });
    let found = threads.map(|thread| thread.join().unwrap());
    let histories: u64 = found.iter().map(|(_, played)| played).sum();
    let speed = histories as f64 / begin.elapsed().as_secs_f64();
    println!("{histories} histories from seed {first} on, {speed:.0} a second");
    for (seed, _) in found {
        assert!(seed.is_none(), "{}", report(seed.unwrap()));
    }
}

#[test]
fn a_seed_repeats_its_history() {
    world::use_scripts(COUNT_VIEWS, SAVE);
    let trace = |seed| {
        let history = History::of(seed);
        let violation = play(&history);
        // The names of kept replies are random.
        let mut entries = lua::SERVER.take().model.entries;
        entries.retain(|key, _| !key.starts_with(b"calls:"));
        (format!("{history:?}"), violation, entries)
    };
    for seed in 0..200 {
        assert_eq!(trace(seed), trace(seed));
    }
}

/// Random commands on a few keys: of each type, and of each option that a script uses.
fn command() -> impl Strategy<Value = Vec<String>> {
    let key = prop_oneof![Just("a"), Just("b"), Just("c")];
    let field = prop_oneof![Just("/"), Just("/foo")];
    let shapes = prop_oneof![
        Just("GET k"),
        Just("SET k v EX 100 GET"),
        Just("SET k v PX 100000"),
        Just("SET k v NX PX 200000"),
        Just("SET k v XX KEEPTTL"),
        Just("SET k 7"),
        Just("DEL k"),
        Just("DEL k a"),
        Just("HINCRBY k f 1"),
        Just("HINCRBY k f -1"),
        Just("HSETNX k f 1"),
        Just("HSETNX k f x"),
        Just("HDEL k f"),
        Just("HLEN k"),
        Just("PTTL k"),
        Just("PEXPIRE k 50000"),
        Just("PEXPIRE k 0"),
    ];
    (shapes, key, field).prop_map(|(shape, key, field)| {
        let word = |word: &str| match word {
            "k" => key.to_owned(),
            "f" => field.to_owned(),
            word => word.to_owned(),
        };
        shape.split(' ').map(word).collect()
    })
}

/// Redis's reply, and the model's, as `redis-cli` prints it.
fn printed(reply: Reply) -> String {
    match reply {
        Reply::Ok => "OK".to_owned(),
        Reply::Nil => String::new(),
        Reply::Int(number) => number.to_string(),
        Reply::Bulk(text) => String::from_utf8(text).unwrap(),
        Reply::Error(error) => error,
    }
}

#[test]
fn the_model_replies_as_redis_does() {
    let redis = Redis::start();
    let config = proptest::test_runner::Config { cases: 40, failure_persistence: None, ..Default::default() };
    let outcome = TestRunner::new(config).run(&vec(command(), 1..40), |commands| {
        redis.cli(&["FLUSHALL"]);
        let begin = Instant::now();
        let mut model = Model::default();
        for command in &commands {
            let words: Vec<_> = command.iter().map(String::as_str).collect();
            let real = redis.cli(&words);
            model.now = begin.elapsed().as_millis() as u64;
            let bytes: Vec<_> = command.iter().map(|word| word.clone().into_bytes()).collect();
            let reply = printed(model.execute(&bytes));
            if words[0] == "PTTL" {
                let [real, model] = [&real, &reply].map(|left| left.parse::<i64>().unwrap());
                // The real one was a moment earlier.
                prop_assert!((real - model).abs() < 2_000 && (real < 0) == (model < 0), "{words:?}: {real}, {model}");
            } else {
                prop_assert_eq!(&real, &reply, "{:?} of {:?}", words, commands);
            }
        }
        for key in ["a", "b", "c"] {
            let real = redis.cli(&["TYPE", key]);
            let ours = model.get(key.as_bytes()).map(|entry| entry.value.clone());
            let same = match ours {
                None => real == "none",
                Some(model::Value::Text(text)) => redis.cli(&["GET", key]).as_bytes() == text,
                Some(model::Value::Hash(hash)) => {
                    hash.iter().all(|(field, value)| {
                        redis.cli(&["HGET", key, std::str::from_utf8(field).unwrap()]).as_bytes() == value
                    }) && redis.cli(&["HLEN", key]) == hash.len().to_string()
                }
            };
            prop_assert!(same, "{} differs after {:?}", key, commands);
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}
