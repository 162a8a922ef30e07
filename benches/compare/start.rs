//! How fast a program starts.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{client::Connection, programs::Program, redis::Redis};

/// Measures the seconds from exec to the first response, with Redis available.
pub fn first_answer(program: Program, redis: &Redis) -> f64 {
    let url = redis.url(program.database());
    let begin = Instant::now();
    let server = program.launch(&url);
    loop {
        let answer = Connection::try_to(server.port).and_then(|mut connection| connection.get("/", None));
        if answer.is_some() {
            return begin.elapsed().as_secs_f64();
        }
        thread::sleep(Duration::from_micros(100));
    }
}
