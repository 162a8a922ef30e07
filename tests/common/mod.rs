//! What the tests stand on: the real program and real Redis servers, on free ports of loopback,
//! each ended with its value; and visitors, who speak HTTP.

mod browser;
mod cluster;
mod front;
mod load;
mod proxy;
mod redis;
mod sentinel;
mod service;
mod tls;
mod visitor;

use std::{
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

pub use browser::{Browser, Scheme};
pub use cluster::{Cluster, Migration};
pub use front::{Exchange, Front};
pub use load::{Load, View};
pub use proxy::{Proxy, behind_proxy};
pub use redis::Redis;
pub use sentinel::{Sentinels, sentinel};
pub use service::{Service, program, run};
pub use tls::Authority;
pub use visitor::{Answer, Visitor, session_id};

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

pub fn signal(process: u32, name: &str) {
    // The shell's own; a program of that name is not on every machine.
    let status = Command::new("sh")
        .args(["-c", "kill -s $0 $1", name, &process.to_string()])
        .status();
    assert!(status.unwrap().success());
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
