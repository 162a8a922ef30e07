//! What the tests stand on: the real program and real Redis servers, on free ports of loopback,
//! each ended with its value; and visitors, who speak HTTP.

mod proxy;

pub use proxy::Proxy;

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use reqwest::{
    Client, Method,
    header::{ACCEPT, COOKIE, HeaderMap, SET_COOKIE},
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longer than anything here takes, unless it never comes.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a browser sends as `Accept`.
pub const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

/// Asks again until the answer is there.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(
            begin.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A process that ends with this value.
pub struct Process(pub Child);

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        let program = command.get_program().to_owned();
        let spawned = command.spawn();
        Self(spawned.unwrap_or_else(|error| panic!("{program:?}, see tests/run: {error}")))
    }

    /// Waits for the end of the process, but not for ever.
    pub fn wait(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "the process does not end");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program, as its user starts it.
pub struct Service {
    process: Process,
    pub port: u16,
    output: Output,
}

/// What a process has said so far, line by line, on both its streams.
#[derive(Default)]
struct Output {
    lines: Arc<Mutex<Vec<String>>>,
    /// One a stream; each ends with its stream.
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

/// The program with these settings and no others, not started yet.
pub fn program<'a>(settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_cloud-run-sessions"));
    program.env_clear().env("PORT", "0").envs(settings);
    program
}

impl Service {
    /// Starts the program and waits until it listens.
    pub fn start<'a>(settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut program = program(settings);
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
                ended.is_none() && begin.elapsed() < PATIENCE,
                "the program does not listen: {ended:?} {:?}",
                output.lines()
            );
            thread::sleep(Duration::from_millis(1));
        };
        Self {
            process,
            port,
            output,
        }
    }

    /// Starts the program on this Redis.
    pub fn on(redis: &Redis) -> Self {
        Self::start([("REDIS_URL", redis.url().as_str())])
    }

    /// What the program has said so far.
    pub fn log(&self) -> Vec<String> {
        self.output.lines()
    }

    pub fn id(&self) -> u32 {
        self.process.0.id()
    }

    /// Sends a signal by name, as `kill` does.
    pub fn signal(&self, name: &str) {
        signal(self.process.0.id(), name);
    }

    /// Waits for the end of the program.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Has the program end, and gives all that it said.
    pub fn stop(mut self) -> Vec<String> {
        self.signal("TERM");
        assert_eq!(self.wait().code(), Some(0));
        self.all_lines()
    }

    /// All that the program said, once it has ended.
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
        if !thread::panicking() {
            assert!(
                !log.iter().any(|line| line.contains("panicked")),
                "{log:#?}"
            );
        }
    }
}

fn listening_port(line: &str) -> Option<u16> {
    let (_, address) = line.split_once("listening on http://0.0.0.0:")?;
    let digits = address.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

pub fn signal(process: u32, name: &str) {
    // The shell's own; a program of that name is not on every machine.
    let status = Command::new("sh")
        .args(["-c", "kill -s $0 $1", name, &process.to_string()])
        .status();
    assert!(status.unwrap().success());
}

fn command(port: u16, options: &[&str]) -> Command {
    let mut command = Command::new("redis-server");
    command
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
        ])
        .args(options);
    command
}

/// A `redis-server` of the test's own, without persistence.
pub struct Redis {
    process: Process,
    pub port: u16,
    directory: TempDir,
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts it with these options beside its own.
    pub fn start_with(options: &[&str]) -> Self {
        // Between choosing a free port and taking it, another may: then with the next.
        (0..10)
            .find_map(|_| Self::try_start(free_port(), options))
            .expect("redis-server does not start")
    }

    pub fn start_on(port: u16) -> Self {
        Self::try_start(port, &[]).expect("redis-server does not start")
    }

    /// Ends it, and starts it with these options beside its own on what it has saved. It may not be
    /// ready yet.
    pub fn restart_with(self, options: &[&str]) -> Self {
        let Self {
            process,
            port,
            directory,
        } = self;
        drop(process);
        let mut command = command(port, options);
        command.current_dir(directory.path()).stdout(Stdio::null());
        Self {
            process: Process::spawn(&mut command),
            port,
            directory,
        }
    }

    fn try_start(port: u16, options: &[&str]) -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let mut process = Process::spawn(
            command(port, options)
                .current_dir(directory.path())
                .stdout(Stdio::piped()),
        );
        let mut log = BufReader::new(process.0.stdout.take().unwrap()).lines();
        let ready = log
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line.contains("Ready to accept connections"));
        // Read on, or a full pipe would stop it.
        thread::spawn(move || log.for_each(drop));
        ready.then_some(Self {
            process,
            port,
            directory,
        })
    }

    pub fn id(&self) -> u32 {
        self.process.0.id()
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Runs one command by `redis-cli` and gives what it prints.
    pub fn cli(&self, command: &[&str]) -> String {
        let output = self.cli_command().args(command).output().unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .trim_end()
            .to_owned()
    }

    fn cli_command(&self) -> Command {
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &self.port.to_string(), "--raw"]);
        cli
    }

    /// The keys of sessions.
    /// Cuts all connections of clients every 10 ms until `end` is there. Gives how often.
    pub async fn keep_cutting(&self, end: impl Future<Output = ()>) -> u64 {
        let connection = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await;
        let (mut answers, mut commands) = connection.unwrap().into_split();
        let mut cuts = 0;
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        let cutting = async {
            loop {
                tick.tick().await;
                commands
                    .write_all(b"CLIENT KILL TYPE normal\r\n")
                    .await
                    .unwrap();
                answers.read_exact(&mut [0; 4]).await.unwrap();
                cuts += 1;
            }
        };
        tokio::select! {
            () = cutting => {}
            () = end => {}
        }
        cuts
    }

    /// The keys of sessions.
    pub fn keys(&self) -> Vec<String> {
        let keys = self.cli(&["KEYS", "*"]);
        let sessions = keys.lines().filter(|key| !key.starts_with("calls:"));
        sessions.map(str::to_owned).collect()
    }

    /// The commands that clients send from now on, what they call inside a script left out.
    pub fn monitor(&self) -> Monitor<'_> {
        let mut cli = self.cli_command();
        let mut process = Process::spawn(cli.arg("MONITOR").stdout(Stdio::piped()));
        let mut lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "OK");
        Monitor {
            redis: self,
            _process: process,
            lines,
        }
    }
}

pub struct Monitor<'a> {
    redis: &'a Redis,
    _process: Process,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Monitor<'_> {
    /// The commands since the last call, in the order in which Redis ran them.
    pub fn commands(&mut self) -> Vec<String> {
        const MARK: &str = "\"ECHO\" \"end of the commands\"";
        self.redis.cli(&["ECHO", "end of the commands"]);
        self.lines
            .by_ref()
            .map(Result::unwrap)
            .take_while(|line| !line.ends_with(MARK))
            .filter(|line| !line.contains(" lua] "))
            // 1700000000.000000 [0 127.0.0.1:50000] "EVALSHA" …
            .map(|line| line.split_once("] ").unwrap().1.to_owned())
            .collect()
    }
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// What a visitor can visit, by its port on this machine.
pub trait Port {
    fn port(&self) -> u16;
}

impl Port for Service {
    fn port(&self) -> u16 {
        self.port
    }
}

impl Port for u16 {
    fn port(&self) -> u16 {
        *self
    }
}

/// Somebody with a cookie jar.
#[derive(Clone)]
pub struct Visitor {
    client: Client,
    /// `name=value` of the session's cookie.
    pub cookie: Option<String>,
    /// Sent with each request.
    pub headers: HeaderMap,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Visitor {
    pub fn new() -> Self {
        Self {
            client: Client::builder().timeout(PATIENCE).build().unwrap(),
            cookie: None,
            headers: HeaderMap::new(),
        }
    }

    /// A new visitor who shares the connections of another.
    pub fn of(other: &Self) -> Self {
        Self {
            cookie: None,
            ..other.clone()
        }
    }

    pub fn with_cookie(cookie: impl Into<String>) -> Self {
        Self {
            cookie: Some(cookie.into()),
            ..Self::new()
        }
    }

    /// Views a page as curl does, and keeps the cookie.
    pub async fn view(&mut self, service: &impl Port, path: &str) -> Answer {
        self.request(Method::GET, service, path, "*/*").await
    }

    /// The number that the page shows this visitor.
    pub async fn count(&mut self, service: &impl Port, path: &str) -> u64 {
        self.view(service, path).await.count()
    }

    pub async fn request(
        &mut self,
        method: Method,
        service: &impl Port,
        path: &str,
        accept: &str,
    ) -> Answer {
        let mut request = self
            .client
            .request(method, format!("http://127.0.0.1:{}{path}", service.port()))
            .headers(self.headers.clone())
            .header(ACCEPT, accept);
        if let Some(cookie) = &self.cookie {
            request = request.header(COOKIE, cookie);
        }
        let response = request.send().await.unwrap();
        let answer = Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.text().await.unwrap(),
        };
        if let Some(cookie) = answer.cookie() {
            self.cookie = Some(cookie);
        }
        answer
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The number in the sentence, in text or in a page.
    pub fn count(&self) -> u64 {
        assert_eq!(self.status, 200, "{self:?}");
        let number = self
            .body
            .split_once("you viewed this page ")
            .and_then(|(_, rest)| rest.split_once(" times"))
            .unwrap_or_else(|| panic!("no sentence: {self:?}"))
            .0;
        number.parse().unwrap()
    }

    /// `name=value` of the cookie that the answer sets.
    pub fn cookie(&self) -> Option<String> {
        let cookie = self.headers.get(SET_COOKIE)?.to_str().unwrap();
        Some(cookie.split(';').next().unwrap().to_owned())
    }
}

/// The session's id in a cookie, signed or not. A signature is 44 characters of Base64.
pub fn session_id(cookie: &str) -> String {
    let value = cookie.split_once('=').unwrap().1;
    value[value.len() - 22..].to_owned()
}
