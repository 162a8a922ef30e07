//! Rounds of load.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    client::Visitor,
    figures::median,
    programs::{Program, Server},
    redis::Redis,
    wrk,
};

/// The load that most figures are of.
pub const MAIN: Load = Load::Connections(64);

/// The loads whose clients wait for each answer.
pub const CLOSED: [Load; 5] =
    [Load::Connections(1), Load::Connections(8), MAIN, Load::Connections(256), Load::Connections(900)];

/// The load under which the program is the limit, as far as that is possible beside the client.
pub const PIPELINED: Load = Load::Pipelined(32, 64);

/// What loads a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// This many connections, each with one view in flight.
    Connections(usize),
    /// As [`MAIN`], by visitors whose sessions hold 4 kB of a page's own data.
    OwnData,
    /// This many connections, each with as many views in flight as the second number says. The client then costs
    /// little.
    Pipelined(usize, usize),
}

impl Load {
    pub fn connections(self) -> usize {
        match self {
            Self::Connections(connections) | Self::Pipelined(connections, _) => connections,
            Self::OwnData => MAIN.connections(),
        }
    }

    /// Views in flight on each connection.
    fn pipelined(self) -> usize {
        if let Self::Pipelined(_, pipelined) = self { pipelined } else { 1 }
    }
}

/// One round of load.
pub struct Drive {
    pub views_per_second: f64,
    /// CPU seconds of the program per view.
    pub cpu: f64,
    /// Resident bytes of the program after the round.
    pub memory: f64,
    /// CPU seconds of Redis per view.
    pub redis_cpu: f64,
    /// Commands sent to Redis per view.
    pub sent: f64,
    /// Commands that Redis executes per view, including those inside scripts.
    pub executed: f64,
    /// Bytes that Redis receives per view.
    pub received: f64,
    /// Bytes that Redis replies with per view.
    pub replied: f64,
}

impl Drive {
    /// The cores that the program used.
    pub fn cores(&self) -> f64 {
        self.cpu * self.views_per_second
    }
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

    /// The most that any round of this load had.
    pub fn most(&self, load: Load, figure: impl Fn(&Drive) -> f64) -> Option<f64> {
        self.0.get(&load)?.iter().map(figure).reduce(f64::max)
    }
}

/// A program under load, and the visitors who view its pages.
pub struct Loaded {
    pub program: Program,
    pub server: Server,
    /// The visitors' cookies. Programs without sessions get a dummy.
    cookies: Vec<String>,
    /// The cookies of visitors whose sessions hold 4 kB of a page's own data, if sessions are in Redis.
    with_own_data: Option<Vec<String>>,
}

impl Loaded {
    /// Starts the program for this many visitors, who make two views each.
    pub fn start(program: Program, redis: &Redis, visitors: usize) -> Self {
        let server = program.start(redis);
        let cookies = new_visitors(&server, visitors, None);
        let with_own_data = program.uses_redis().then(|| {
            // The image has no page that keeps data, but finds it in the sessions.
            let filler = if program == Program::Image { Program::Service } else { program };
            let filler = filler.start_with_own_pages_at(&redis.url(program.database()));
            new_visitors(&filler.expect("pages"), visitors, Some("/fill"))
        });
        Self { program, server, cookies, with_own_data }
    }

    /// One round of load, if the program can have it.
    pub fn drive(&self, redis: &Redis, load: Load, time: Duration) -> Option<Drive> {
        let cookies = match load {
            Load::Connections(_) | Load::Pipelined(..) => &self.cookies,
            Load::OwnData => self.with_own_data.as_ref()?,
        };
        redis.wait_until_idle();
        let (cpu, redis_cpu) = (self.server.cpu(), redis.cpu());
        let done = wrk::run(self.server.port, cookies, load.connections(), load.pipelined(), time);
        let (cpu, redis_cpu) = (self.server.cpu() - cpu, redis.cpu() - redis_cpu);
        let statistics = redis.statistics();
        Some(Drive {
            views_per_second: done.views_per_second,
            cpu: cpu / done.views,
            memory: self.server.memory(),
            redis_cpu: redis_cpu / done.views,
            sent: statistics.sent / done.views,
            executed: statistics.executed / done.views,
            received: statistics.received / done.views,
            replied: statistics.replied / done.views,
        })
    }
}

/// The cookies of new visitors after two views each, and one of the page that fills the session.
pub fn new_visitors(server: &Server, visitors: usize, fill: Option<&str>) -> Vec<String> {
    let mut connection = server.connect();
    let cookies = (0..visitors).map(|_| {
        let mut visitor = Visitor::default();
        for path in ["/", "/"].into_iter().chain(fill) {
            visitor.view(&mut connection, path);
        }
        visitor.cookie.unwrap_or_else(|| "id=none".to_owned())
    });
    cookies.collect()
}
