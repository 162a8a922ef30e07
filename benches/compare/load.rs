//! Rounds of load.

use std::{collections::BTreeMap, time::Duration};

use crate::{client::Visitor, figures::median, programs::Server, redis::Redis, wrk};

/// The load that most figures are of.
pub const MAIN: Load = Load::Connections(64);

/// What loads a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// This many connections, each with one view in flight.
    Connections(usize),
}

/// One round of load.
pub struct Drive {
    pub views_per_second: f64,
    /// CPU seconds of the program per view.
    pub cpu: f64,
    /// CPU seconds of Redis per view.
    pub redis_cpu: f64,
    /// Commands sent to Redis per view.
    pub sent: f64,
    /// Commands that Redis executes per view, including those inside scripts.
    pub executed: f64,
}

/// The rounds of each load of one program.
#[derive(Default)]
pub struct Drives(BTreeMap<Load, Vec<Drive>>);

impl Drives {
    pub fn add(&mut self, load: Load, drive: Drive) {
        self.0.entry(load).or_default().push(drive);
    }

    /// The median of the rounds of this load, if the program had it.
    pub fn median(&self, load: Load, figure: impl Fn(&Drive) -> f64) -> Option<f64> {
        Some(median(self.0.get(&load)?.iter().map(figure)))
    }
}

/// One round of load.
pub fn drive(server: &Server, redis: &Redis, cookies: &[String], load: Load, time: Duration) -> Drive {
    let Load::Connections(connections) = load;
    redis.statistics();
    let (cpu, redis_cpu) = (server.cpu(), redis.cpu());
    let done = wrk::run(server.port, cookies, connections, time);
    let (cpu, redis_cpu) = (server.cpu() - cpu, redis.cpu() - redis_cpu);
    let statistics = redis.statistics();
    Drive {
        views_per_second: done.views_per_second,
        cpu: cpu / done.views,
        redis_cpu: redis_cpu / done.views,
        sent: statistics.sent / done.views,
        executed: statistics.executed / done.views,
    }
}

/// The cookies of new visitors after two views each. Programs without sessions get a dummy cookie.
pub fn visitors(server: &Server, visitors: usize) -> Vec<String> {
    let mut connection = server.connect();
    let cookies = (0..visitors).map(|_| {
        let mut visitor = Visitor::default();
        visitor.view(&mut connection, "/");
        visitor.view(&mut connection, "/");
        visitor.cookie.unwrap_or_else(|| "id=none".to_owned())
    });
    cookies.collect()
}
