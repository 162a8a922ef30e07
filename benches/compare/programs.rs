//! The compared programs.

use std::{
    env, fmt, fs,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    builds,
    client::Connection,
    process::{PATIENCE, Process, free_port},
    redis::Redis,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Service,
    /// The service as its image has it.
    Image,
    InMemory,
    TowerSessions,
    TowerSessionsTuned,
    Express,
    AxumAlone,
    AxumAloneTuned,
}

impl Program {
    pub const ALL: [Self; 8] = [
        Self::Service,
        Self::Image,
        Self::InMemory,
        Self::TowerSessions,
        Self::TowerSessionsTuned,
        Self::Express,
        Self::AxumAlone,
        Self::AxumAloneTuned,
    ];

    pub fn has_sessions(self) -> bool {
        !matches!(self, Self::AxumAlone | Self::AxumAloneTuned)
    }

    pub fn uses_redis(self) -> bool {
        self.has_sessions() && self != Self::InMemory
    }

    /// The program's own database in Redis.
    pub fn database(self) -> usize {
        self as usize
    }

    /// Starts the program and waits until it listens.
    pub fn start(self, redis: &Redis) -> Server {
        self.start_at(&redis.url(self.database()))
    }

    /// Starts the program on the Redis at this URL and waits until it listens.
    pub fn start_at(self, redis: &str) -> Server {
        let server = self.launch(redis);
        server.wait();
        server
    }

    /// Starts the program without waiting.
    pub fn launch(self, redis: &str) -> Server {
        let command = match self {
            Self::Service | Self::InMemory => Command::new(builds::service()),
            Self::Image => Command::new(builds::image()),
            Self::TowerSessions => served_here("tower-sessions"),
            Self::TowerSessionsTuned => served_here("tower-sessions-tuned"),
            Self::AxumAlone => served_here("axum"),
            Self::AxumAloneTuned => served_here("axum-tuned"),
            Self::Express => {
                let mut node = Command::new("node");
                node.arg(express().join("index.js")).env("NODE_ENV", "production");
                node
            }
        };
        self.run(command, redis)
    }

    /// Starts the program with the pages of [`crate::own_pages`] and waits until it listens. The image does not have
    /// them.
    pub fn start_with_own_pages(self, redis: &Redis) -> Option<Server> {
        self.start_with_own_pages_at(&redis.url(self.database()))
    }

    /// As [`Self::start_with_own_pages`], on the Redis at this URL.
    pub fn start_with_own_pages_at(self, redis: &str) -> Option<Server> {
        let server = match self {
            Self::Service | Self::InMemory => self.run(served_here("own-pages"), redis),
            Self::TowerSessions | Self::TowerSessionsTuned | Self::Express => self.launch(redis),
            Self::Image | Self::AxumAlone | Self::AxumAloneTuned => return None,
        };
        server.wait();
        Some(server)
    }

    fn run(self, mut command: Command, redis: &str) -> Server {
        let port = free_port();
        command.env("PORT", port.to_string());
        if self != Self::InMemory {
            command.env("REDIS_URL", redis);
        }
        Server { process: Process::spawn(command.stdout(Stdio::null())), port }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Service => "cloud-run-sessions",
            Self::Image => "cloud-run-sessions, image with profile",
            Self::InMemory => "in-memory store",
            Self::TowerSessions => "tower-sessions",
            Self::TowerSessionsTuned => "tower-sessions, tuned",
            Self::Express => "Express",
            Self::AxumAlone => "axum alone",
            Self::AxumAloneTuned => "axum alone, tuned",
        })
    }
}

/// The command that serves this program from the benchmark's own executable.
fn served_here(program: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["serve", program]);
    command
}

/// The folder of the Express app.
fn express() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/express")
}

/// Installs the dependencies of the Express app.
pub fn install_express() {
    println!("npm ci, in benches/express");
    let status = Command::new("npm").args(["ci", "--silent"]).current_dir(express()).status();
    assert!(status.expect("npm").success(), "npm ci failed");
}

/// A running program, which may not listen yet.
pub struct Server {
    process: Process,
    pub port: u16,
}

impl Server {
    fn wait(&self) {
        let begin = Instant::now();
        while Connection::try_to(self.port).is_none() {
            assert!(begin.elapsed() < PATIENCE, "no answer on port {}", self.port);
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn connect(&self) -> Connection {
        Connection::to(self.port)
    }

    /// CPU seconds used so far, in user mode and in the kernel.
    pub fn cpu(&self) -> f64 {
        /// USER_HZ, which is 100 on all common architectures.
        const TICKS_PER_SECOND: f64 = 100.0;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        // The fields after the name in parentheses: state is field 3, utime 14, stime 15.
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks = |field: usize| fields[field - 3].parse::<f64>().unwrap();
        (ticks(14) + ticks(15)) / TICKS_PER_SECOND
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let resident = status.split_once("VmRSS:").unwrap().1;
        let kilobytes: f64 = resident.split_whitespace().next().unwrap().parse().unwrap();
        kilobytes * 1024.0
    }
}
