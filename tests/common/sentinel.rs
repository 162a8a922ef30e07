//! A primary and its replica, with three Sentinels that promote the replica when the primary fails.

use std::{fs, time::Instant};

use tempfile::TempDir;
use tokio::net::TcpSocket;

use super::{
    Redis, eventually,
    redis::{on_free_port, wait_for_replication},
};

pub struct Sentinels {
    sentinels: Vec<Redis>,
    pub primary: Redis,
    replica: Option<Redis>,
    /// The killed primary's.
    reserved_port: Option<TcpSocket>,
}

/// When the replica was promoted.
#[derive(Debug)]
pub struct Promotion {
    /// The replica reported that it is a primary.
    pub done: Instant,
    /// All Sentinels reported its address.
    pub announced: Instant,
}

impl Sentinels {
    pub async fn start() -> Self {
        let primary = Redis::start();
        let port = primary.port.to_string();
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port]);
        wait_for_replication(&primary, &replica).await;
        let this = Self {
            sentinels: (0..3).map(|_| sentinel(&primary)).collect(),
            primary,
            replica: Some(replica),
            reserved_port: None,
        };
        for sentinel in &this.sentinels {
            eventually("the Sentinel knows the others and the replica", async || {
                let main = sentinel.cli(&["SENTINEL", "MASTER", "main"]);
                let lines: Vec<_> = main.lines().collect();
                let knows = |field, number| lines.windows(2).any(|pair| pair == [field, number]);
                (knows("num-slaves", "1") && knows("num-other-sentinels", "2")).then_some(())
            })
            .await;
        }
        this
    }

    pub fn url(&self) -> String {
        let [first, second, third] = [0, 1, 2].map(|n| self.sentinels[n].port);
        format!(
            "redis-sentinel://127.0.0.1:{first}/0?sentinelServiceName=main\
             &node=127.0.0.1:{second}&node=127.0.0.1:{third}"
        )
    }

    /// Waits until the replica has all data of the primary.
    pub async fn wait_for_replication(&self) {
        wait_for_replication(&self.primary, self.replica.as_ref().unwrap()).await;
    }

    /// Kills the primary and waits until all Sentinels announce the replica in its place.
    pub async fn kill_primary(&mut self) -> Promotion {
        let replica = self.replica.take().unwrap();
        self.reserved_port = Some(kill(std::mem::replace(&mut self.primary, replica)));
        let done =
            eventually("the replica is promoted", async || (self.primary.role() == "master").then(Instant::now)).await;
        let port = self.primary.port.to_string();
        let announced = eventually("the Sentinels announce the promotion", async || {
            let all = self.sentinels.iter().all(|sentinel| {
                let address = sentinel.cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"]);
                address.lines().nth(1) == Some(&port)
            });
            all.then(Instant::now)
        })
        .await;
        Promotion { done, announced }
    }
}

/// Kills a Redis that Sentinels know, and keeps its port in use: they would turn any Redis that another test starts on it
/// into a replica.
pub fn kill(redis: Redis) -> TcpSocket {
    let port = redis.port;
    drop(redis);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([127, 0, 0, 1], port).into()).unwrap();
    socket
}

/// A Sentinel that monitors this Redis under the name `main`.
pub fn sentinel(primary: &Redis) -> Redis {
    sentinel_with(primary, |port| vec!["--port".to_owned(), port.to_string()])
}

/// The same with these options, which depend on its port.
pub fn sentinel_with(primary: &Redis, options: impl Fn(u16) -> Vec<String>) -> Redis {
    let primary = primary.port;
    on_free_port(|port| {
        let directory = TempDir::new().unwrap();
        // A Sentinel writes its state to its configuration, so this must be a file.
        let options: String =
            options(port).chunks(2).map(|option| format!("{} \"{}\"\n", &option[0][2..], option[1])).collect();
        let config = format!(
            "{options}\
             bind 127.0.0.1\n\
             sentinel monitor main 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds main 500\n\
             sentinel failover-timeout main 2000\n"
        );
        fs::write(directory.path().join("sentinel.conf"), config).unwrap();
        Redis::launch(port, directory, &["sentinel.conf", "--sentinel"], "+monitor master main")
    })
}
