//! The compared programs and their Redis: processes that are killed when their value is dropped.

use std::{
    env, fmt, fs,
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Longer than any of them takes to start.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Service,
    Embedded,
    TowerSessions,
    TowerSessionsTuned,
    Express,
    AxumAlone,
    AxumAloneTuned,
}

impl Program {
    pub const ALL: [Self; 7] = [
        Self::Service,
        Self::Embedded,
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
        self.has_sessions() && self != Self::Embedded
    }

    /// Starts the program on its own database and waits until it listens.
    pub fn start(self, redis: &Redis) -> Server {
        let server = self.launch(&redis.url(self as usize));
        server.wait();
        server
    }

    /// Starts the program without waiting.
    pub fn launch(self, redis: &str) -> Server {
        let port = free_port();
        let mut command = match self {
            Self::Service | Self::Embedded => Command::new(env!("CARGO_BIN_EXE_cloud-run-sessions")),
            Self::TowerSessions => peer("tower-sessions"),
            Self::TowerSessionsTuned => peer("tower-sessions-tuned"),
            Self::AxumAlone => peer("axum"),
            Self::AxumAloneTuned => peer("axum-tuned"),
            Self::Express => {
                let mut node = Command::new("node");
                node.arg(express().join("index.js")).env("NODE_ENV", "production");
                node
            }
        };
        command.env("PORT", port.to_string());
        if self != Self::Embedded {
            command.env("REDIS_URL", redis);
        }
        Server { process: Process::spawn(command.stdout(Stdio::null())), database: self as usize, port }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Service => "cloud-run-sessions",
            Self::Embedded => "embedded store",
            Self::TowerSessions => "tower-sessions",
            Self::TowerSessionsTuned => "tower-sessions, tuned",
            Self::Express => "Express",
            Self::AxumAlone => "axum alone",
            Self::AxumAloneTuned => "axum alone, tuned",
        })
    }
}

/// The command that runs one of [`crate::peers`].
fn peer(name: &str) -> Command {
    let mut peer = Command::new(env::current_exe().unwrap());
    peer.args(["serve", name]);
    peer
}

fn express() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/express")
}

/// Builds the service as its image has it, and installs the dependencies of the Express app.
pub fn prepare() {
    let root = env!("CARGO_MANIFEST_DIR");
    let dockerfile = fs::read_to_string(format!("{root}/Dockerfile")).unwrap();
    let build = dockerfile.split_once("&& cargo rustc").and_then(|(_, build)| build.split_once("&&"));
    let build = format!("cargo rustc{}", build.expect("the Dockerfile's build").0.replace("\\\n", ""));
    println!("{build}");
    let status = Command::new("sh").args(["-c", &build]).current_dir(root).status();
    assert!(status.unwrap().success(), "the build failed");
    println!("npm ci, in benches/express");
    let status = Command::new("npm").args(["ci", "--silent"]).current_dir(express()).status();
    assert!(status.expect("npm").success(), "npm ci failed");
}

struct Process(Child);

impl Process {
    fn spawn(command: &mut Command) -> Self {
        let child = command.spawn();
        Self(child.unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program())))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running program, which may not listen yet.
pub struct Server {
    process: Process,
    /// Its database in Redis.
    pub database: usize,
    pub port: u16,
}

impl Server {
    fn wait(&self) {
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(begin.elapsed() < PATIENCE, "no answer on port {}", self.port);
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// CPU seconds used so far, in user mode and in the kernel.
    pub fn cpu(&self) -> f64 {
        /// USER_HZ, which is 100 on all common architectures.
        const TICKS_PER_SECOND: f64 = 100.0;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.0.id())).unwrap();
        // The fields after the name in parentheses: state is field 3, utime 14, stime 15.
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks = |field: usize| fields[field - 3].parse::<f64>().unwrap();
        (ticks(14) + ticks(15)) / TICKS_PER_SECOND
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).unwrap();
        let resident = status.split_once("VmRSS:").unwrap().1;
        let kilobytes: f64 = resident.split_whitespace().next().unwrap().parse().unwrap();
        kilobytes * 1024.0
    }
}

/// A `redis-server` without persistence.
pub struct Redis {
    _process: Process,
    pub port: u16,
}

impl Redis {
    pub fn start() -> Self {
        let port = free_port();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]).stdout(Stdio::null());
        let redis = Self { _process: Process::spawn(&mut command), port };
        let begin = Instant::now();
        while redis.cli(0, &["PING"]) != "PONG" {
            assert!(begin.elapsed() < PATIENCE, "redis-server does not start");
        }
        redis
    }

    pub fn url(&self, database: usize) -> String {
        format!("redis://127.0.0.1:{}/{database}", self.port)
    }

    /// Runs one command with `redis-cli` and returns its output.
    pub fn cli(&self, database: usize, command: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-p", &self.port.to_string(), "-n", &database.to_string(), "--raw"])
            .args(command)
            .output()
            .expect("redis-cli");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// A numeric field of INFO.
    pub fn info(&self, section: &str, field: &str) -> f64 {
        let info = self.cli(0, &["INFO", section]);
        let line = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
    }

    /// CPU seconds used so far.
    pub fn cpu(&self) -> f64 {
        self.info("cpu", "used_cpu_user") + self.info("cpu", "used_cpu_sys")
    }

    /// The commands since the last call: those that clients sent, and those that were executed, which
    /// includes commands inside scripts. The benchmark's own commands are excluded.
    pub fn commands(&self) -> Commands {
        let info = self.cli(0, &["INFO", "commandstats"]);
        self.cli(0, &["CONFIG", "RESETSTAT"]);
        let calls = info.lines().filter_map(|line| {
            // cmdstat_get:calls=1,usec=…
            let (command, figures) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let is_ours = ["info", "config", "select", "ping", "hello", "client"];
            let name = command.split('|').next()?;
            let calls: f64 = figures.split(',').next()?.parse().ok()?;
            (!is_ours.contains(&name)).then_some((name.to_owned(), calls))
        });
        let calls: Vec<_> = calls.collect();
        let sum = |is_meant: &dyn Fn(&str) -> bool| {
            let meant = calls.iter().filter(|(name, _)| is_meant(name));
            meant.map(|(_, calls)| calls).sum()
        };
        let executed = sum(&|_| true);
        let scripts = sum(&|name| name.starts_with("eval"));
        Commands {
            executed,
            // For returning visitors, a program sends either only scripts or no scripts.
            sent: if scripts > 0.0 { scripts } else { executed },
        }
    }
}

pub struct Commands {
    pub sent: f64,
    pub executed: f64,
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}
