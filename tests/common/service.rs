//! The service's program.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{Process, Redis, TIMEOUT, Visitor, eventually, signal};

/// A running instance, killed when this value is dropped.
pub struct Service {
    process: Process,
    pub port: u16,
    output: Output,
}

/// The lines that a process has written so far to standard output and standard error.
#[derive(Default)]
struct Output {
    lines: Arc<Mutex<Vec<String>>>,
    /// One thread per stream; each ends with its stream.
    readers: Vec<JoinHandle<()>>,
}

impl Output {
    fn collect(&mut self, stream: impl Read + Send + 'static) {
        let lines = self.lines.clone();
        self.readers.push(thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        }));
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

/// The command that starts the program with these settings and no others. PROGRAM names another build of it.
pub fn program<'a>(settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Command {
    let built = env!("CARGO_BIN_EXE_cloud-run-sessions").to_owned();
    let mut program = Command::new(env::var("PROGRAM").unwrap_or(built));
    program.env_clear().env("PORT", "0").envs(settings);
    program
}

/// The same on one core, where it has one thread.
pub fn one_core<'a>(settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Command {
    let program = program(settings);
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(program.get_program()).env_clear();
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// Lets the program's clock run at a tenth of its speed.
pub fn in_slow_motion(program: &mut Command) -> &mut Command {
    program.env("LD_PRELOAD", libfaketime()).env("FAKETIME", "+0 x0.1")
}

/// The threads that serve, and so the connections to Redis.
pub fn threads() -> usize {
    thread::available_parallelism().unwrap().get().min(16)
}

/// The library in Debian's package faketime.
pub fn libfaketime() -> String {
    library("faketime/libfaketime.so.1")
}

/// The library in Debian's package libnss-wrapper. A process that preloads it knows the hosts in the file that
/// NSS_WRAPPER_HOSTS names.
pub fn libnss_wrapper() -> String {
    library("libnss_wrapper.so")
}

fn library(name: &str) -> String {
    let folders = std::fs::read_dir("/usr/lib").unwrap();
    let files = folders.map(|folder| folder.unwrap().path().join(name));
    let file = files.into_iter().find(|file| file.exists());
    file.unwrap_or_else(|| panic!("{name}, see tests/run")).display().to_string()
}

/// Runs a program that must exit within this time. Returns exit code, standard output and standard
/// error.
pub fn run(program: &mut Command, within: Duration) -> (Option<i32>, String, String) {
    let mut process = Process::spawn(program.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let begin = Instant::now();
    let status = loop {
        let status = process.0.try_wait().unwrap();
        if status.is_some() || begin.elapsed() > within {
            break status;
        }
        thread::sleep(Duration::from_millis(1));
    };
    let _ = process.0.kill();
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let (out, err) = (process.0.stdout.take(), process.0.stderr.take());
    out.unwrap().read_to_string(&mut stdout).unwrap();
    err.unwrap().read_to_string(&mut stderr).unwrap();
    let status =
        status.unwrap_or_else(|| panic!("the program does not exit within {within:?}, and prints:\n{stdout}{stderr}"));
    (status.code(), stdout, stderr)
}

impl Service {
    /// Starts the program and waits until it listens.
    pub fn start<'a>(settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::launch(&mut program(settings))
    }

    /// Runs this command and waits until the program listens.
    pub fn launch(program: &mut Command) -> Self {
        let mut process = Process::spawn(program.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let mut output = Output::default();
        output.collect(process.0.stdout.take().unwrap());
        output.collect(process.0.stderr.take().unwrap());
        let begin = Instant::now();
        let port = loop {
            if let Some(port) = output.lines().iter().find_map(|line| listening_port(line)) {
                break port;
            }
            let ended = process.0.try_wait().unwrap();
            assert!(
                ended.is_none() && begin.elapsed() < TIMEOUT,
                "the program does not listen: {ended:?} {:?}",
                output.lines()
            );
            thread::sleep(Duration::from_millis(1));
        };
        Self { process, port, output }
    }

    /// Starts the program on this Redis, and waits until each of its threads is connected: the last may be late, and its
    /// commands would be counted with those of views.
    pub fn on(redis: &Redis) -> Self {
        Self::connected(&redis.url())
    }

    /// The same at this URL.
    pub fn connected(url: &str) -> Self {
        Self::start([("REDIS_URL", url)]).once_connected()
    }

    /// The same with a clock that runs at a tenth of its speed, so that all deadlines are ten times as long.
    pub fn connected_in_slow_motion(url: &str) -> Self {
        Self::launch(in_slow_motion(&mut program([("REDIS_URL", url)]))).once_connected()
    }

    /// Waits until each thread is connected to Redis.
    pub fn once_connected(self) -> Self {
        let service = self;
        let begin = Instant::now();
        while !service.log().iter().any(|line| line.contains("connected to Redis")) {
            assert!(begin.elapsed() < TIMEOUT, "the program is not connected: {:?}", service.log());
            thread::sleep(Duration::from_millis(1));
        }
        service
    }

    /// Waits until the store responds.
    pub async fn wait_until_ready(&self) {
        eventually("the store responds", async || {
            let answer = Visitor::new().view(self, "/health/ready").await;
            (answer.status == 200).then_some(())
        })
        .await;
    }

    /// The lines that the program has logged so far.
    pub fn log(&self) -> Vec<String> {
        self.output.lines()
    }

    pub fn id(&self) -> u32 {
        self.process.0.id()
    }

    /// Waits until the program has read all requests that were sent so far. It accepts connections in order, so theirs
    /// are accepted before this one.
    pub async fn wait_until_all_is_read(&self) {
        let live = Visitor::new().view(self, "/health/live").await;
        assert_eq!(live.status, 200);
        eventually("all requests are read", async || (self.unread() == 0).then_some(())).await;
    }

    /// The number of bytes that the program has not read yet, on all its clients' connections.
    fn unread(&self) -> u64 {
        let port = format!(":{:04X}", self.port);
        // IPv4 clients of a listener that is for IPv6 too are in the latter file.
        let files = ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| fs::read_to_string(file).unwrap_or_default());
        let sockets = files.iter().flat_map(|file| file.lines()).filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            // local address, remote address, state (01: established), send queue:receive queue
            let is_ours = fields[1].ends_with(&port) && fields[3] == "01";
            is_ours.then(|| u64::from_str_radix(fields[4].split_once(':').unwrap().1, 16).unwrap())
        });
        sockets.sum()
    }

    /// The bytes in this field of `/proc/…/status`, such as `VmRSS`: memory of the process.
    pub fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// How many sockets the program has open: those of its clients, and a constant number of its own.
    pub fn sockets(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap();
        let is_socket =
            |name: PathBuf| fs::read_link(name).is_ok_and(|file| file.to_string_lossy().starts_with("socket:"));
        files.filter(|file| is_socket(file.as_ref().unwrap().path())).count()
    }

    /// Sends a signal by name, as `kill` does.
    pub fn signal(&self, name: &str) {
        signal(self.process.0.id(), name);
    }

    /// Waits until the program exits.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Stops the program with SIGTERM and returns its log.
    pub fn stop(mut self) -> Vec<String> {
        self.signal("TERM");
        assert_eq!(self.wait().code(), Some(0));
        self.all_lines()
    }

    /// The complete log. Call it only after the program has exited.
    fn all_lines(&mut self) -> Vec<String> {
        for reader in self.output.readers.drain(..) {
            reader.join().unwrap();
        }
        self.output.lines()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.0.kill();
        let log = self.all_lines();
        if thread::panicking() {
            let last = &log[log.len().saturating_sub(20)..];
            println!("the last log lines of the failed test's program: {last:#?}");
        } else {
            assert!(!log.iter().any(|line| line.contains("panicked")), "{log:#?}");
        }
    }
}

fn listening_port(line: &str) -> Option<u16> {
    let (_, address) = line.split_once("listening on http://")?;
    let (_, port) = address.rsplit_once(':')?;
    port.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
