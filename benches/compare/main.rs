//! Compares the service with others: `cargo bench`.
//!
//! All programs run on one Redis, for some figures also on one Valkey, and wrk loads them in turn. Tables go into the
//! README and docs/benchmark.md, charts into docs/. Every figure comes from /proc, Redis's INFO and MEMORY USAGE, wrk,
//! the clock, or the number that a page shows. Nothing passes or fails.
//!
//! Needs redis-server, redis-cli, wrk, Node with npm, Python with venv, and a static glibc.
//!
//! [`figures`] holds what is measured. These modules measure it: [`start`], [`overlapping`], [`billing`], [`size`],
//! [`load`] and [`distance`]. They stand on [`programs`] with [`peers`] and [`own_pages`], [`builds`], [`process`],
//! [`redis`], [`client`], [`wrk`], [`open_loop`] and [`proxy`]. [`report`] writes it all down, with [`capacity`] and
//! [`charts`].

mod billing;
mod builds;
mod capacity;
mod charts;
mod client;
mod distance;
mod figures;
mod load;
mod open_loop;
mod overlapping;
mod own_pages;
mod peers;
mod process;
mod programs;
mod proxy;
mod redis;
mod report;
mod size;
mod start;
mod wrk;

use std::{env, time::Duration};

use figures::{Figures, OnValkey};
use load::{CLOSED, Drives, Load, Loaded, PIPELINED};
use programs::Program;
use redis::Redis;

/// Rounds of each load, unless BENCH_ROUNDS is set. The report shows the median; of the memory, the maximum.
const ROUNDS: usize = 5;

/// Starts per round. The report shows the median of the first answers.
const STARTS: usize = 4;

/// Visitors under load. They have made two views before.
const VISITORS: usize = 200;

/// The duration of a round.
const ROUND: Duration = Duration::from_secs(2);

/// How many rounds to make of each load: fewer while the benchmark itself is worked on.
fn rounds() -> usize {
    env::var("BENCH_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("BENCH_ROUNDS is a number"))
}

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if let [serve, program] = &arguments[..]
        && serve == "serve"
    {
        return match program.as_str() {
            "own-pages" => own_pages::serve(),
            peer => peers::serve(peer),
        };
    }
    builds::build_image();
    programs::install_express();
    let redis = Redis::start("redis-server");
    let mut all: Vec<_> = Program::ALL.map(|program| (program, Figures::default())).into();

    println!("first answers after start");
    for start in 0..=STARTS * rounds() {
        for (program, figures) in &mut all {
            let first_answer = start::first_answer(*program, &redis);
            // The first start reads the program from disk.
            if start > 0 {
                figures.first_answers.push(first_answer);
            }
        }
    }
    for (program, figures) in &mut all {
        println!("{program}: requests that overlap, commands executed, bytes in Redis");
        if program.has_sessions() {
            let server = program.start(&redis);
            figures.counted = Some(overlapping::kept("/", &[&server]));
            figures.changes_kept = changes_kept(*program, &redis);
        }
        if program.uses_redis() {
            let server = program.start(&redis);
            figures.bytes = Some(size::in_redis(*program, &server, &redis));
            figures.billing = Some(billing::measure(*program, &redis));
        }
    }
    let loaded: Vec<_> = all.iter().map(|(program, _)| Loaded::start(*program, &redis, VISITORS)).collect();
    let drives = drive_in_turn(&loaded, &redis, &[&CLOSED[..], &[Load::OwnData, PIPELINED]].concat());
    for (((_, figures), loaded), drives) in all.iter_mut().zip(&loaded).zip(drives) {
        figures.drives = drives;
        figures.memory_connected = size::with_connections(&loaded.server);
    }
    drop(loaded);
    for (program, figures) in all.iter_mut().filter(|(program, _)| program.uses_redis()) {
        println!("{program}: a round trip of 5 ms to Redis");
        figures.latency = Some(distance::latency(*program, &redis, 2 * ROUND));
    }

    let valkey = Redis::start(redis::install_valkey());
    let mut on_valkey: Vec<_> =
        all.iter_mut().filter(|(program, _)| program.uses_redis() && *program != Program::Image).collect();
    let billings: Vec<_> = on_valkey.iter().map(|(program, _)| billing::measure(*program, &valkey)).collect();
    let loaded: Vec<_> = on_valkey.iter().map(|(program, _)| Loaded::start(*program, &valkey, VISITORS)).collect();
    let drives = drive_in_turn(&loaded, &valkey, &CLOSED);
    for (((_, figures), billing), drives) in on_valkey.iter_mut().zip(billings).zip(drives) {
        figures.on_valkey = Some(OnValkey { billing, drives });
    }
    report::report(&all, &redis.name(), &valkey.name());
}

/// How many of the overlapping changes of a page's own number are kept over two instances. The in-memory store has one.
fn changes_kept(program: Program, redis: &Redis) -> Option<u64> {
    let first = program.start_with_own_pages(redis)?;
    let second = if program.uses_redis() { program.start_with_own_pages(redis) } else { None };
    let instances: Vec<_> = [Some(&first), second.as_ref()].into_iter().flatten().collect();
    Some(overlapping::kept("/change", &instances))
}

/// Loads the programs in turn, as often as there are rounds.
fn drive_in_turn(all: &[Loaded], redis: &Redis, loads: &[Load]) -> Vec<Drives> {
    let mut drives: Vec<_> = all.iter().map(|_| Drives::default()).collect();
    for round in 1..=rounds() {
        for load in loads {
            for (loaded, drives) in all.iter().zip(&mut drives) {
                let Some(drive) = loaded.drive(redis, *load, ROUND) else { continue };
                let (name, program, speed) = (redis.name(), loaded.program, drive.views_per_second);
                println!("{name}, round {round} of {}, {load}, {program}: {speed:.0} views/s", rounds());
                drives.add(*load, drive);
            }
        }
    }
    drives
}
