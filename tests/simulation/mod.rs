//! Promise: the protocol holds in a deterministic world: choices come from a seed, no real time passes.
//!
//! The committer, its retries, its pacing and both scripts are the real ones. Simulated are the clock (tokio's,
//! paused), the network, and Redis: Lua 5.1 over the few commands that the scripts call. fred, TLS, Cluster and
//! Sentinel are not simulated, nor Redis's own persistence; only the tests on real servers show those.
//!
//! `SEED=7 tests/run simulation` plays one history. `SIMULATE=120 tests/run simulation` plays new ones for 120 s.

mod events;
mod lua;
mod model;
mod mutants;
mod truth;
mod world;

// The other files use these, too.
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use cloud_run_sessions::store::committer::Committer;
use cloud_run_sessions::store::lifetime::{Lifetime, MARGIN, REPLY_KEPT_FOR, Renewed};
use cloud_run_sessions::store::script::{RunScript, Script};
use cloud_run_sessions::store::{DEADLINE, Error, FirstView};
use events::{Event, Fate, History, PATHS, VISITORS};
use model::{Entries, Model, Reply};
use proptest::{collection::vec, prelude::*, sample::select, test_runner::TestRunner};
use tokio::time::{Instant, sleep, timeout};
use tower_sessions::session::{Id, Record};
use tower_sessions_redis_store::fred::types::{Key, Value};
use tower_sessions_redis_store::fred::util::redis_keyslot;
use truth::{Page, Truth, must};
use world::{Call, TTL, World, keys, play, world};

use crate::common::Redis;

/// The first of these seeds whose history has a violation, and the seeds played until then.
fn search(seeds: impl Iterator<Item = u64>) -> (Option<u64>, u64) {
    let mut played = 0;
    let found = seeds.inspect(|_| played += 1).find(|seed| play(&History::of(*seed)).violation.is_some());
    (found, played)
}

/// Reports the violation in the history of this seed, if there is one, without the events that it does not need.
fn assert_holds(seed: Option<u64>) {
    let Some(seed) = seed else { return };
    let mut history = History::of(seed);
    for at in (0..history.events.len()).rev() {
        let event = history.events.remove(at);
        if play(&history).violation.is_none() {
            history.events.insert(at, event);
        }
    }
    panic!("SEED={seed} tests/run simulation: {:?}, after {history:#?}", play(&history).violation);
}

#[test]
fn what_must_hold_holds() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a whole number"));
    // One history, or so many, or as many as there is time for.
    let seed = number("SEED");
    let most = seed.map(|_| 1).or_else(|| number("SIMULATE_HISTORIES"));
    let time = number("SIMULATE").unwrap_or(if most.is_some() { 3600 } else { 5 });
    let (begin, first) = (Instant::now(), seed.unwrap_or_else(rand::random));
    let threads = [0, 1].map(|thread| {
        std::thread::spawn(move || {
            let seeds = (thread..most.unwrap_or(u64::MAX)).step_by(2).map(|n| first.wrapping_add(n));
            search(seeds.take_while(|_| begin.elapsed() < Duration::from_secs(time)))
        })
    });
    let found = threads.map(|thread| thread.join().unwrap());
    let histories: u64 = found.iter().map(|(_, played)| played).sum();
    let took = begin.elapsed().as_secs_f64();
    println!("{histories} histories from seed {first} on, {:.0} a second", histories as f64 / took);
    found.into_iter().for_each(|(seed, _)| assert_holds(seed));
}

#[test]
fn a_seed_repeats_its_history() {
    let outcome = |seed| {
        let World { violation, mut model, truth, .. } = play(&History::of(seed));
        // The names of kept replies are random.
        model.entries.retain(|key, _| !key.starts_with(b"calls:"));
        (violation, model.entries, truth.counts)
    };
    (0..200).for_each(|seed| assert_eq!(outcome(seed), outcome(seed)));
}

/// Random commands on a few keys, of each type, and of each option that a script uses.
fn command() -> impl Strategy<Value = String> {
    let commands = "GET k, SET k v EX 100 GET, SET k v PX 100000, SET k v NX PX 200000, SET k v XX KEEPTTL, SET k 7, \
        DEL k, DEL k a, HINCRBY k f 1, HINCRBY k f -1, HSETNX k f 1, HSETNX k f x, HDEL k f, HLEN k, PTTL k, \
        PEXPIRE k 50000, PEXPIRE k 0";
    let (key, field) = (select(&["a", "b", "c"]), select(&["/", "/foo"]));
    (select(commands.split(", ").collect::<Vec<_>>()), key, field)
        .prop_map(|(command, key, field)| command.replace(" k", &format!(" {key}")).replace(" f", &format!(" {field}")))
}

#[test]
fn the_model_replies_as_redis_does() {
    // A script that replies as `redis-cli` prints replies.
    const PRINT: &str = "local reply = redis.pcall(unpack(ARGV))
        return type(reply) == 'table' and (reply.err or reply.ok) or tostring(reply or '')";
    lua::load("print", PRINT);
    let redis = Redis::start();
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() };
    let outcome = TestRunner::new(config).run(&vec(command(), 1..40), |mut commands| {
        redis.cli(&["FLUSHALL"]);
        world(|world| *world = World::default());
        // What is there in the end.
        for look in ["GET k", "HLEN k", "PTTL k", "HINCRBY k / 0", "HINCRBY k /foo 0"] {
            commands.extend(["a", "b", "c"].map(|key| look.replace('k', key)));
        }
        for command in &commands {
            let words: Vec<_> = command.split(' ').collect();
            let real = redis.cli(&words);
            world(|_| ()); // Time passes.
            let ours = lua::run("print", &[], &words.iter().map(|word| (*word).into()).collect::<Vec<_>>()).unwrap();
            if let ("PTTL", Ok(real), Ok(ours)) = (words[0], real.parse::<i64>(), ours.parse::<i64>()) {
                // The real one was a moment earlier.
                prop_assert!((real - ours).abs() < 2_000 && (real < 0) == (ours < 0), "{command}: {real}, {ours}");
            } else {
                prop_assert_eq!(&real, &ours, "{} of {:?}", command, commands);
            }
        }
        Ok(())
    });
    outcome.unwrap();
}
