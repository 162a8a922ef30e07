//! Load as visitors bring it: requests at random times, whether or not earlier ones are answered (an open loop).

use std::{
    sync::{Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::client::Connection;

/// More clients than ever wait for an answer at a time.
const CLIENTS: usize = 64;

/// How long views took, in seconds.
pub struct Took {
    pub median: f64,
    pub p99: f64,
}

/// Views `/` on `port`, on average `rate` times a second, and measures each from the moment at which it was due.
pub fn run(port: u16, cookies: &[String], rate: f64, time: Duration) -> Took {
    let (due, clients) = mpsc::channel::<Instant>();
    let clients = Mutex::new(clients);
    let took = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (clients, took) = (&clients, &took);
            let cookie = &cookies[client % cookies.len()];
            let mut connection = Connection::to(port);
            scope.spawn(move || {
                loop {
                    let next = clients.lock().unwrap().recv();
                    let Ok(due) = next else { break };
                    connection.get("/", Some(cookie)).expect("a page");
                    took.lock().unwrap().push(due.elapsed().as_secs_f64());
                }
            });
        }
        let mut next = Instant::now();
        let end = next + time;
        while next < end {
            // The pauses of a Poisson process.
            next += Duration::from_secs_f64(-(1.0 - rand::random::<f64>()).ln() / rate);
            thread::sleep(next.saturating_duration_since(Instant::now()));
            due.send(next).unwrap();
        }
        drop(due);
    });
    let mut took = took.into_inner().unwrap();
    took.sort_by(f64::total_cmp);
    Took { median: took[took.len() / 2], p99: took[took.len() * 99 / 100] }
}
