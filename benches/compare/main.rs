//! Compares the service with others: `cargo bench`.
//!
//! All programs run on one Redis, and wrk loads them in turn. Tables go into the README and docs/benchmark.md, charts
//! into docs/. Every figure comes from /proc, Redis's INFO and MEMORY USAGE, wrk or the clock. Nothing passes or fails.
//!
//! Needs redis-server, redis-cli, wrk, and Node with npm.
//!
//! [`figures`] holds what is measured. These modules measure it: [`start`], [`overlapping`], [`billing`], [`size`],
//! [`load`] and [`distance`]. They stand on [`programs`], [`builds`], [`redis`], [`client`], [`wrk`], [`open_loop`] and [`proxy`].
//! [`report`] writes it all down.

mod billing;
mod builds;
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

use figures::Figures;
use load::{Load, Loaded, MAIN};
use programs::Program;
use redis::Redis;

/// Rounds of each load, unless BENCH_ROUNDS is set. The report shows the median.
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
    if !builds::is_plain() {
        return builds::run_plain();
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
    drive_in_turn(&mut all, &redis);
    for (program, figures) in all.iter_mut().filter(|(program, _)| program.uses_redis()) {
        println!("{program}: a round trip of 5 ms to Redis");
        figures.latency = Some(distance::latency(*program, &redis, 2 * ROUND));
    }
    report::report(&all);
}

/// How many of the overlapping changes of a page's own number are kept over two instances. The embedded store has one.
fn changes_kept(program: Program, redis: &Redis) -> Option<u64> {
    let first = program.start_with_own_pages(redis)?;
    let second = if program.uses_redis() { program.start_with_own_pages(redis) } else { None };
    let instances: Vec<_> = [Some(&first), second.as_ref()].into_iter().flatten().collect();
    Some(overlapping::kept("/change", &instances))
}

/// Loads the programs in turn, as often as there are rounds.
fn drive_in_turn(all: &mut [(Program, Figures)], redis: &Redis) {
    let loaded: Vec<_> = all.iter().map(|(program, _)| Loaded::start(*program, redis, VISITORS)).collect();
    for round in 1..=rounds() {
        for load in Load::all() {
            for ((program, figures), loaded) in all.iter_mut().zip(&loaded) {
                let Some(drive) = loaded.drive(redis, load, ROUND) else { continue };
                println!("round {round} of {}, {load}, {program}: {:.0} views/s", rounds(), drive.views_per_second);
                figures.drives.add(load, drive);
                if load == MAIN {
                    figures.memory = figures.memory.max(loaded.server.memory());
                }
            }
        }
    }
    for ((_, figures), Loaded { server, .. }) in all.iter_mut().zip(&loaded) {
        figures.memory_connected = size::with_connections(server);
    }
}
