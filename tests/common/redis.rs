//! A `redis-server` process for a test.

use std::{
    env,
    io::{BufRead, BufReader},
    process::{ChildStdout, Command, Stdio},
    thread,
    time::Duration,
};

use fred::{
    clients::Client,
    interfaces::ClientLike,
    types::{CustomCommand, config::Config},
};
use tempfile::TempDir;
use tokio::time::sleep;

use super::{Process, eventually, free_port};

/// The server's program: `REDIS_SERVER`, or the installed `redis-server`.
fn server_program() -> String {
    env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

/// The value of this field of a reply to `INFO`.
fn field_of(info: &str, field: &str) -> Option<String> {
    let mut lines = info.lines().filter_map(|line| line.trim_end().split_once(':'));
    lines.find_map(|(name, value)| (name == field).then(|| value.to_owned()))
}

/// A `redis-server` without persistence, killed when this value is dropped.
pub struct Redis {
    process: Process,
    pub port: u16,
    directory: TempDir,
    /// Options for `redis-cli` in addition to the port.
    pub cli_options: Vec<String>,
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts the server with these options in addition to the fixture's own.
    pub fn start_with(options: &[&str]) -> Self {
        Self::start_with_port(|_| options.iter().map(ToString::to_string).collect())
    }

    pub fn start_on(port: u16) -> Self {
        Self::try_start(port, &[]).expect("redis-server does not start")
    }

    /// Restarts the server on its saved data, with these additional options. Does not wait until it is
    /// ready.
    pub fn restart_with(self, options: &[&str]) -> Self {
        drop(self.process);
        let mut server = Command::new(server_program());
        server
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(options)
            .current_dir(self.directory.path())
            .stdout(Stdio::null());
        Self { process: Process::spawn(&mut server), ..self }
    }

    /// Starts the server on a free port, with options that depend on that port.
    pub fn start_with_port(options: impl Fn(u16) -> Vec<String>) -> Self {
        on_free_port(|port| Self::try_start(port, &options(port)))
    }

    fn try_start(port: u16, options: &[String]) -> Option<Self> {
        let port_option = port.to_string();
        let own = ["--port", &port_option, "--bind", "127.0.0.1", "--save", ""];
        let options: Vec<_> = own.into_iter().chain(options.iter().map(String::as_str)).collect();
        let directory = TempDir::new().unwrap();
        Self::launch(port, directory, &options, "Ready to accept connections")
    }

    /// Starts `redis-server` in this directory and waits until it logs `ready`. Returns `None` if it
    /// exits before.
    pub fn launch(port: u16, directory: TempDir, arguments: &[&str], ready: &str) -> Option<Self> {
        let mut process = Process::spawn(
            Command::new(server_program()).args(arguments).current_dir(directory.path()).stdout(Stdio::piped()),
        );
        let mut log = BufReader::new(process.0.stdout.take().unwrap()).lines();
        let ready = log.by_ref().map_while(Result::ok).any(|line| line.contains(ready));
        // Keep reading: a full pipe would block the server.
        thread::spawn(move || log.for_each(drop));
        ready.then_some(Self { process, port, directory, cli_options: Vec::new() })
    }

    pub fn id(&self) -> u32 {
        self.process.0.id()
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Runs one command with `redis-cli` and returns its output.
    pub fn cli(&self, command: &[&str]) -> String {
        let output = self.cli_command().args(command).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// A client for values that are no text.
    pub async fn client(&self) -> Client {
        let client = Client::new(Config::from_url(&self.url()).unwrap(), None, None, None);
        client.init().await.unwrap();
        client
    }

    /// Runs a command and asserts that its reply is OK.
    pub fn expect_ok(&self, command: &[&str]) {
        assert_eq!(self.cli(command), "OK", "{command:?}");
    }

    /// The value of this field of `INFO`.
    pub fn info(&self, section: &str, field: &str) -> Option<String> {
        field_of(&self.cli(&["INFO", section]), field)
    }

    /// The replication role: `master` or `slave`.
    pub fn role(&self) -> String {
        self.cli(&["ROLE"]).lines().next().unwrap_or_default().to_owned()
    }

    fn cli_command(&self) -> Command {
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &self.port.to_string(), "--raw"]).args(&self.cli_options);
        cli
    }

    /// Cuts all client connections at this interval until `end` completes. Returns the number of cuts.
    ///
    /// The interval doubles whenever nothing was written during it: the machine is so busy that connecting takes longer.
    pub async fn keep_cutting(&self, mut every: Duration, end: impl Future<Output = ()>) -> u64 {
        let client = self.client().await;
        let command = |name| CustomCommand::new_static(name, None::<u16>, false);
        let (mut cuts, mut written) = (0, None);
        let cutting = async {
            loop {
                sleep(every).await;
                let info: String = client.custom(command("INFO"), vec!["persistence"]).await.unwrap();
                let writes = field_of(&info, "rdb_changes_since_last_save");
                if writes == written {
                    every *= 2;
                    continue;
                }
                let () = client.custom(command("CLIENT"), vec!["KILL", "TYPE", "normal"]).await.unwrap();
                (cuts, written) = (cuts + 1, writes);
            }
        };
        tokio::select! {
            () = cutting => {}
            () = end => {}
        }
        cuts
    }

    /// The number of commands executed since the last call, including those inside scripts but not
    /// those of the tests.
    pub fn executed(&self) -> u64 {
        let stats = self.cli(&["INFO", "commandstats"]);
        self.expect_ok(&["CONFIG", "RESETSTAT"]);
        let calls = stats.lines().filter_map(|line| {
            // cmdstat_get:calls=1,usec=…
            let (command, figures) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let is_ours = ["info", "config", "hello", "client", "keys", "ping"];
            let command = command.split('|').next()?;
            let calls: u64 = figures.split(',').next()?.parse().ok()?;
            (!is_ours.contains(&command)).then_some(calls)
        });
        calls.sum()
    }

    /// Whether the server knows `SET … IFEQ`.
    pub fn has_ifeq(&self) -> bool {
        !self.cli(&["SET", "-", "", "PX", "1", "IFEQ", "-", "GET"]).contains("syntax error")
    }

    /// The remaining time to live of a key in ms; negative if the key does not exist or never expires.
    pub fn pttl(&self, key: &str) -> i64 {
        self.cli(&["PTTL", key]).parse().unwrap()
    }

    /// All keys: the ids of sessions.
    pub fn keys(&self) -> Vec<String> {
        self.cli(&["KEYS", "*"]).lines().map(str::to_owned).collect()
    }

    /// Records the commands that clients send from now on, without those inside scripts.
    pub fn monitor(&self) -> Monitor<'_> {
        let mut cli = self.cli_command();
        let mut process = Process::spawn(cli.arg("MONITOR").stdout(Stdio::piped()));
        let mut lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "OK");
        Monitor { redis: self, _process: process, lines }
    }
}

pub struct Monitor<'a> {
    redis: &'a Redis,
    _process: Process,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Monitor<'_> {
    /// The commands since the last call, in the order of execution.
    pub fn commands(&mut self) -> Vec<String> {
        self.commands_by_client().into_iter().map(|(_, command)| command).collect()
    }

    /// The same, with the address of each one's client.
    pub fn commands_by_client(&mut self) -> Vec<(String, String)> {
        const MARK: &str = "\"ECHO\" \"end of the commands\"";
        self.redis.cli(&["ECHO", "end of the commands"]);
        self.lines
            .by_ref()
            .map(Result::unwrap)
            .take_while(|line| !line.ends_with(MARK))
            .filter(|line| !line.contains(" lua] "))
            // 1700000000.000000 [0 127.0.0.1:50000] "EVALSHA" …
            .map(|line| {
                let (from, command) = line.split_once("] ").unwrap();
                (from.rsplit(' ').next().unwrap().to_owned(), command.to_owned())
            })
            .collect()
    }
}

/// Starts a server on a free port.
pub fn on_free_port(start: impl Fn(u16) -> Option<Redis>) -> Redis {
    // Another process, such as another run of the tests, may take the port before the server binds it. Try again.
    (0..10).find_map(|_| start(free_port())).expect("redis-server does not start")
}

/// Waits until the replica has all data of its primary.
pub async fn wait_for_replication(primary: &Redis, replica: &Redis) {
    eventually("the replica has caught up", async || {
        let has = |redis: &Redis| redis.info("replication", "master_repl_offset");
        let linked = replica.info("replication", "master_link_status")? == "up";
        (linked && has(primary)? == has(replica)?).then_some(())
    })
    .await;
}
