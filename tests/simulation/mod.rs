//! Promise: the protocol holds in a deterministic world: choices come from a seed, no real time passes.
//!
//! The committer, compare-and-set in its three forms, its script, retries, pacing and what an instance remembers are
//! the real ones. Simulated are the clock (tokio's, paused), the network, and Redis: a model of the few commands that
//! are sent, with Lua 5.1 over it. fred, TLS, Cluster and Sentinel are not simulated, nor Redis's persistence; only the
//! tests on real servers show those.
//!
//! `SEED=7 tests/run simulation::what` plays one history. With `SIMULATE=120` in place of the seed, it plays new ones for
//! 120 s, and with `SIMULATE_HISTORIES=1000000` this many. A history that breaks a promise is shown without the events
//! that it does not need.
//!
//! # Files
//! - `events.rs`: what can happen, and how a seed makes a history of it.
//! - `world.rs`: instances of two threads, visitors, the network and Redis, and what an event does to them. Its `Way`
//!   sends a committer's commands, each with its fate:
//!   [`SendCommand::send`](cloud_run_sessions::store::compare_and_set::SendCommand::send) is all that is replaced in
//!   the service.
//! - `model.rs`, `lua.rs`: Redis's commands, and its script.
//! - `truth.rs`: what must hold. It knows what Redis holds, decoded as tower-sessions-redis-store does, and what requests
//!   were answered, and nothing of the committer.
//! - `script_faults.rs`: faults in the script, each of which must be found; `tests/scripts/mutants` has those in Rust.
//!
//! # How to add an event
//! 1. Give `Event` a variant, or `Fate` if it happens to one sending, with all that it needs, drawn once: a history must
//!    be the same each time it is played. Nothing else may be random, and no `HashMap` may be iterated.
//! 2. Draw it in `event` or `fate`, rarely. Seeds mean other histories then.
//! 3. Let it happen in `World::happens`. What takes time is a task that takes the world in `world(…)` for moments only. A
//!    fate happens in `Way::carry` or `Command::arrive`.
//! 4. Say in `truth.rs` what must hold. Each command that Redis executes comes by in `judge_command`, each answer in a
//!    `judge_…` of its own, and what is left over in `judge_end`. If the event takes away something that otherwise holds,
//!    note for which session, as `broken` does, and not for all.
//! 5. Add a fault to one of these two lists that only this event finds, and see it found.
//!
//! # What is not played
//! A refused command, a new session's first value, and a swap of a session that somebody else has broken never arrive
//! twice: that could do harm, and TCP delivers nothing twice. Any other swap that comes twice is harmless.

mod events;
mod lua;
mod model;
mod script_faults;
mod truth;
mod world;

use std::{cell::RefCell, rc::Rc, time::Duration};

use cloud_run_sessions::store::change::Change;
use events::{Event, History, Server};
use model::{Ifeq, Model, Reply};
use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};
use tokio::{
    task::LocalSet,
    time::{Instant, sleep},
};
use tower_sessions::session::Id;
use world::{Instance, World, play, play_with};

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
    let mut longer = usize::MAX;
    while history.events.len() < longer {
        longer = history.events.len();
        for at in (0..longer).rev() {
            let event = history.events.remove(at);
            if play(&history).violation.is_none() {
                history.events.insert(at, event);
            }
        }
    }
    let violation = play(&history).violation;
    let events: Vec<_> = history.events.iter().map(|event| format!("    {event:?}\n")).collect();
    history.events.clear();
    panic!("SEED={seed} tests/run simulation::what: {violation:?}, after {history:?}\n{}", events.concat());
}

#[test]
fn what_must_hold_holds() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a whole number"));
    // One history, or a number of them, or as many as there is time for.
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
        let world = play(&History::of(seed));
        (world.violation, world.executed, world.log)
    };
    (0..200).for_each(|seed| assert_eq!(outcome(seed), outcome(seed)));
}

/// A random command on one of two keys: each kind and option that is sent, and some others.
fn command() -> impl Strategy<Value = String> {
    let commands = "GET k, GETEX k, GETEX k PX 100000, SET k v PX 100000 NX, SET k v XX GET PX 200000, \
        SET k w XX PX 100000, SET k v KEEPTTL, SET k v PX 100000 IFEQ v GET, SET k w PX 100000 IFEQ v GET, \
        SET k v PX 100000 IFEQ w GET, SET k v IFEQ w, SET k w PX 1 IFEQ - GET, SET k v NX IFEQ v, SET k v NX XX, DEL k, \
        DEL k a, LPUSH k v, PTTL k";
    let commands: Vec<_> = commands.split(", ").collect();
    (select(commands), select(&["a", "b"])).prop_map(|(command, key)| command.replace(" k", &format!(" {key}")))
}

#[test]
fn the_model_replies_as_redis_does() {
    let redis = Redis::start();
    let has_ifeq = redis.has_ifeq();
    println!("IFEQ is {}", if has_ifeq { "compared" } else { "unknown to this server" });
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&vec(command(), 1..40), |mut commands| {
        redis.cli(&["FLUSHALL"]);
        let mut model = Model { ifeq: if has_ifeq { Ifeq::Held } else { Ifeq::Unknown }, ..Model::default() };
        // What is there in the end.
        commands.extend(["GET a", "GET b", "PTTL a", "PTTL b"].map(str::to_owned));
        for command in &commands {
            let words: Vec<_> = command.split(' ').collect();
            let real = redis.cli(&words);
            let ours = match model.execute(&words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>()) {
                Ok(Reply::Nil) => String::new(),
                Ok(Reply::Ok) => "OK".to_owned(),
                Ok(Reply::Int(number)) => number.to_string(),
                Ok(Reply::Bulk(text)) => String::from_utf8(text).unwrap(),
                Err(error) => error.to_owned(),
            };
            if let ("PTTL", Ok(real), Ok(ours)) = (words[0], real.parse::<i64>(), ours.parse::<i64>()) {
                // The real one was a moment earlier.
                prop_assert!((real - ours).abs() < 10_000 && (real < 0) == (ours < 0), "{command}: {real}, {ours}");
            } else {
                prop_assert_eq!(&real, &ours, "{} of {:?}", command, commands);
            }
        }
        Ok(())
    });
    outcome.unwrap();
}

/// A history without events, of so many visitors and of instances this far from Redis.
fn quiet(ifeq: Ifeq, distances: Vec<u32>, visitors: usize) -> History {
    let server = Server { ifeq, has_scripts: true, ..Server::default() };
    History { server, distances, visitors, events: Vec::new() }
}

/// The commands that a thousand such views at one moment cost, after a first view of each visitor.
fn cost(mut history: History, views: impl Fn(usize) -> Event) -> u64 {
    let first = (0..history.visitors).map(|visitor| view(visitor, 0));
    history.events = first.chain([Event::Wait(100)]).collect();
    let before = play(&history).executed;
    history.events.extend((0..1000).map(views));
    let World { executed, violation, .. } = play(&history);
    assert_eq!(violation, None);
    executed - before
}

fn view(visitor: usize, instance: usize) -> Event {
    Event::View { visitor, path: "/", instance, patience: 10_000 }
}

#[test]
fn commands_stay_few() {
    for ifeq in [Ifeq::Held, Ifeq::Null, Ifeq::Unknown] {
        // Each event's tasks run before the next event, so the first view of each instance is sent by itself.
        let of_one = cost(quiet(ifeq, vec![2], 1), |_| view(0, 0));
        let of_one_over_two = cost(quiet(ifeq, vec![2, 2], 1), |n| view(0, n % 2));
        let of_thousand = cost(quiet(ifeq, vec![2], 1000), |n| view(n, 0));
        println!("{ifeq:?}: {of_one}, over two instances {of_one_over_two}; of 1000 visitors {of_thousand}");
        assert!(of_one <= 5, "1000 views of a visitor cost {of_one} commands");
        assert!(of_one_over_two <= 15, "1000 views of a visitor over two instances cost {of_one_over_two} commands");
        assert!(of_thousand <= 1010, "views of 1000 visitors cost {of_thousand} commands");
    }
}

/// Visitors who view one session again and again for 10 s, three on each instance: how many views each instance
/// answered, how many it did not, and how long the slowest took.
fn contend(ifeq: Ifeq, distances: &[u32]) -> Vec<(u64, u64, Duration)> {
    let history = quiet(ifeq, distances.to_vec(), 1);
    let tallies = Rc::new(RefCell::new(vec![(0, 0, Duration::ZERO); distances.len()]));
    let counted = tallies.clone();
    let world = play_with(&history, async move {
        world::world(|world| world.happens(view(0, 0)));
        sleep(Duration::from_millis(100)).await;
        let (id, instances) = world::world(|world| (world.visitors[0].id.unwrap(), world.instances.clone()));
        // Each instance writes the session once: the others cannot know of one that never has.
        for instance in &instances {
            assert!(judged_view(id, instance).await);
        }
        let begin = Instant::now();
        let local = LocalSet::new();
        for (place, tallies) in (0..3).flat_map(|_| (0..distances.len()).map(|place| (place, counted.clone()))) {
            let instance = instances[place].clone();
            local.spawn_local(async move {
                while begin.elapsed() < Duration::from_secs(10) {
                    let since = Instant::now();
                    let is_answered = judged_view(id, &instance).await;
                    {
                        let (answered, failed, slowest) = &mut tallies.borrow_mut()[place];
                        *if is_answered { answered } else { failed } += 1;
                        *slowest = since.elapsed().max(*slowest);
                    }
                    sleep(Duration::from_millis(1)).await;
                }
            });
        }
        local.await;
    });
    assert_eq!(world.violation, None);
    drop(world);
    Rc::into_inner(tallies).unwrap().into_inner()
}

/// Views `/` in a session for as long as it takes. Returns whether the view was answered with a number.
async fn judged_view(id: Id, instance: &Instance) -> bool {
    let before = world::world(|world| world.before(id));
    let outcome = instance.committer().change(id, Change::View("/".into())).await;
    let is_answered = matches!(outcome, Ok(Some(_)));
    world::world(|world| world.judge_view(id, "/", &before, instance.way.instance, Some(outcome)));
    is_answered
}

/// Several instances write one session again and again, at one distance from Redis or at two different ones. (With three
/// or more, the farthest is still refused some views.)
#[test]
fn nobody_starves() {
    for ifeq in [Ifeq::Held, Ifeq::Unknown] {
        for distances in [&[1, 1][..], &[1; 8], &[2; 20], &[1, 3], &[1, 10], &[0, 5]] {
            for (place, (answered, failed, slowest)) in contend(ifeq, distances).into_iter().enumerate() {
                let of =
                    format!("{place} of {distances:?}: {answered} answered, {failed} not, the slowest in {slowest:?}");
                println!("{of}");
                assert!(answered > 0 && failed == 0 && slowest < Duration::from_millis(2500), "{of}");
            }
        }
    }
}
