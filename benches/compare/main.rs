//! Compares the service with others: `cargo bench`.
//!
//! All programs run on one Redis, and wrk loads them in turn. The results go into the README as a table
//! and a chart. Every figure comes from /proc, Redis's INFO and MEMORY USAGE, wrk or the clock. Nothing
//! passes or fails.
//!
//! Needs redis-server, redis-cli, wrk, and Node with npm.

mod figures;
mod open_loop;
mod peers;
mod programs;
mod proxy;
mod report;
mod wrk;

use std::{env, time::Duration};

use figures::Figures;
use programs::{Program, Redis};

/// Rounds of load per program. The report shows the median.
const ROUNDS: usize = 7;

/// Starts per program. The report shows the median of the first answers.
const STARTS: usize = 21;

/// Connections under load, each with one view in flight.
const CONNECTIONS: [usize; 5] = [1, 8, 64, 256, 900];

/// The load that most figures are of.
const MAIN: usize = 64;

/// Visitors under load. They have made two views before.
const SESSIONS: usize = 200;

/// The duration of a round.
const ROUND: Duration = Duration::from_secs(2);

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if let [serve, peer] = &arguments[..]
        && serve == "serve"
    {
        return peers::serve(peer);
    }
    programs::prepare();
    let redis = Redis::start();
    let mut all: Vec<_> = Program::ALL.map(|program| (program, Figures::default())).into();

    println!("first answers after start");
    for start in 0..=STARTS {
        for (program, figures) in &mut all {
            let first_answer = figures::first_answer(program, &redis);
            // The first start reads the program from disk.
            if start > 0 {
                figures.first_answers.push(first_answer);
            }
        }
    }
    for (program, figures) in &mut all {
        println!("{program}: views that overlap, bytes in Redis");
        if program.has_sessions() {
            let server = program.start(&redis);
            figures.overlapping = Some(figures::overlapping(&server));
        }
        if program.uses_redis() {
            let server = program.start(&redis);
            figures.bytes = Some(figures::bytes(&server, &redis));
            figures.visit = Some(figures::visit(&server, &redis));
        }
    }

    let servers: Vec<_> = all.iter().map(|(program, _)| program.start(&redis)).collect();
    let cookies: Vec<_> = servers.iter().map(|server| figures::sessions(server, SESSIONS)).collect();
    for round in 1..=ROUNDS {
        for connections in CONNECTIONS {
            for ((program, figures), (server, cookies)) in all.iter_mut().zip(servers.iter().zip(&cookies)) {
                let drive = figures::drive(server, &redis, cookies, connections, ROUND);
                println!(
                    "round {round} of {ROUNDS}, {connections} connections, {program}: {:.0} views/s",
                    drive.views_per_second
                );
                figures.drives.entry(connections).or_default().push(drive);
                if connections == MAIN {
                    figures.memory = figures.memory.max(server.memory());
                }
            }
        }
    }
    for ((_, figures), server) in all.iter_mut().zip(&servers) {
        figures.memory_connected = figures::memory_connected(server);
    }
    drop(servers);

    for (program, figures) in all.iter_mut().filter(|(program, _)| program.uses_redis()) {
        println!("{program}: a round trip of 5 ms to Redis");
        figures.far = Some(figures::far(program, &redis, 2 * ROUND));
    }
    report::report(&all);
}
