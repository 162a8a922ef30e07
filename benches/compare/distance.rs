//! The latency of a view with a distant Redis.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::{
    figures::median,
    load,
    open_loop::{self, Took},
    programs::Program,
    proxy::Proxy,
    redis::Redis,
    wrk,
};

/// Requests a second, at random times.
pub const RATES: [f64; 3] = [20.0, 200.0, 800.0];

/// Views in flight where each client waits for its answer (a closed loop).
pub const IN_FLIGHT: usize = 64;

/// The latency that the proxy adds to a round trip to Redis.
const ROUND_TRIP: Duration = Duration::from_millis(5);

/// The latency of a view, in round trips to Redis.
pub struct Latency {
    /// The median with one view in flight.
    pub idle: f64,
    /// The median with [`IN_FLIGHT`].
    pub in_flight: f64,
    /// For each of [`RATES`], the median and the 99th percentile.
    pub open_loop: [Took; RATES.len()],
}

/// Measures the latency of a view with a distant Redis.
pub fn latency(program: Program, redis: &Redis, time: Duration) -> Latency {
    let proxy = Proxy::start(redis.port, ROUND_TRIP);
    let server = program.start_at(&format!("redis://127.0.0.1:{}/{}", proxy.port, program.database()));
    let cookies = load::new_visitors(&server, 64, None);
    let round_trip = round_trip(&proxy);
    let closed_loop = |connections| {
        let done = wrk::run(server.port, &cookies, connections, 1, time);
        done.p50.as_secs_f64() / round_trip
    };
    let open_loop = RATES.map(|rate| {
        let took = open_loop::run(server.port, &cookies, rate, time);
        Took { median: took.median / round_trip, p99: took.p99 / round_trip }
    });
    Latency { idle: closed_loop(1), in_flight: closed_loop(IN_FLIGHT), open_loop }
}

/// The median time of a PING through the proxy, in seconds.
fn round_trip(proxy: &Proxy) -> f64 {
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port)).unwrap();
    stream.set_nodelay(true).unwrap();
    median((0..200).map(|_| {
        let begin = Instant::now();
        stream.write_all(b"PING\r\n").unwrap();
        stream.read_exact(&mut [0; 7]).unwrap();
        begin.elapsed().as_secs_f64()
    }))
}
