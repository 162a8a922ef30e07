//! Test fixtures: the real program and real Redis servers on free loopback ports, each killed when
//! its value is dropped; and visitors, which are HTTP clients.

mod browser;
mod cluster;
mod dialect;
mod front;
pub mod http2;
mod in_process;
mod load;
mod nginx;
mod proxy;
mod redis;
mod sentinel;
mod service;
mod tls;
mod visitor;
mod waiting;

use std::{
    fs,
    io::{self, Write},
    iter,
    net::TcpListener,
    ops::Range,
    process::{Child, Command, ExitStatus},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

pub use browser::{Browser, Scheme, UNTRUSTED};
pub use cluster::{Cluster, Migration};
pub use dialect::{Dialect, Form};
pub use front::{Exchange, Front};
pub use in_process::serve;
pub use load::{Load, View};
pub use nginx::Nginx;
pub use proxy::{Proxy, behind_proxy, behind_proxy_as, behind_proxy_in_slow_motion, far_from};
pub use redis::{Redis, wait_for_replication};
pub use sentinel::{Sentinels, kill, sentinel, sentinel_with};
pub use service::{Service, in_slow_motion, libfaketime, libnss_wrapper, one_core, program, run, threads};
pub use tls::Authority;
pub use visitor::{Answer, Port, Visitor, connect, number, session_id};
pub use waiting::Waiting;

/// The longest that a test waits for one thing, unless it says otherwise. After that, it fails.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// The `Accept` header of a browser.
pub const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

/// Polls until `ask` returns a value, and panics after [`TIMEOUT`].
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begin.elapsed() < TIMEOUT, "not within {TIMEOUT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asserts that these are all the numbers of the range, each once, in any order.
pub fn assert_each_once(mut counts: Vec<u64>, numbers: Range<u64>) {
    counts.sort_unstable();
    let wrong = counts.iter().zip(numbers.clone()).find(|(count, right)| **count != *right);
    assert_eq!(wrong, None, "the first wrong number and the expected one, of {counts:?}");
    assert_eq!(counts.len() as u64, numbers.end - numbers.start, "how many of {numbers:?} there are: {counts:?}");
}

/// Says that the current test is left out, and why. It is written past the test harness, which shows what is printed
/// only if a test fails.
pub fn leave_out(why: &str) {
    let test = thread::current();
    let line = format!("left out: {}, {why}\n", test.name().unwrap());
    io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Whether the limit of open files allows a test to hold this many connections. If not, says that the test is left out.
pub fn may_connect(times: u64) -> bool {
    /// Files that a test has open besides.
    const OTHERS: u64 = 100;
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    // The soft limit: a number, or "unlimited".
    let limit = limit.split_whitespace().next().unwrap().parse().unwrap_or(u64::MAX);
    let has_room = times + OTHERS <= limit;
    if !has_room {
        leave_out(&format!("which needs {} open files, and the limit is {limit}", times + OTHERS));
    }
    has_room
}

/// A process that is killed when this value is dropped.
pub struct Process(pub Child);

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        let program = command.get_program().to_owned();
        let spawned = command.spawn();
        Self(spawned.unwrap_or_else(|error| panic!("{program:?}, see tests/run: {error}")))
    }

    /// Waits until the process exits, and panics after [`TIMEOUT`].
    pub fn wait(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < TIMEOUT, "the process does not exit");
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

pub fn signal(process: u32, name: &str) {
    // The shell's built-in: not every machine has `kill` as a program.
    let status = Command::new("sh").args(["-c", "kill -s $0 $1", name, &process.to_string()]).status();
    assert!(status.unwrap().success());
}

/// Whether the system has IPv6.
pub fn has_ipv6() -> bool {
    TcpListener::bind(("::1", 0)).is_ok()
}

/// A free port, which this process does not give out twice. It is below the range that Linux takes the ports of outgoing
/// connections from, so only a process that asks for it takes it, such as another run of the tests.
pub fn free_port() -> u16 {
    static FIRST: LazyLock<u16> = LazyLock::new(|| rand::random::<u16>() % 20_000);
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let ports = iter::repeat_with(|| 10_000 + FIRST.wrapping_add(GIVEN.fetch_add(1, Relaxed)) % 20_000);
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.take(20_000).find(is_free).expect("no port is free")
}
