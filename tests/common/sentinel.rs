//! A primary and its replica, watched by three Sentinels, who have the replica take the primary's
//! place when that is gone.

use std::{fs, time::Instant};

use tempfile::TempDir;
use tokio::net::TcpSocket;

use super::{
    Redis, eventually,
    redis::{in_step, on_free_port},
};

pub struct Sentinels {
    sentinels: Vec<Redis>,
    pub primary: Redis,
    replica: Option<Redis>,
    /// The killed primary's port, kept from others: the Sentinels would have them be a replica.
    kept: Option<TcpSocket>,
}

/// When the replica took the primary's place.
#[derive(Debug)]
pub struct Promotion {
    /// It said itself so.
    pub done: Instant,
    /// All Sentinels said so.
    pub announced: Instant,
}

impl Sentinels {
    pub async fn start() -> Self {
        let primary = Redis::start();
        let port = primary.port.to_string();
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port]);
        in_step(&primary, &replica).await;
        let this = Self {
            sentinels: (0..3).map(|_| sentinel(&primary)).collect(),
            primary,
            replica: Some(replica),
            kept: None,
        };
        for sentinel in &this.sentinels {
            eventually(
                "a Sentinel that knows the others and the replica",
                async || {
                    let main = sentinel.cli(&["SENTINEL", "MASTER", "main"]);
                    let lines: Vec<_> = main.lines().collect();
                    let knows =
                        |field, number| lines.windows(2).any(|pair| pair == [field, number]);
                    (knows("num-slaves", "1") && knows("num-other-sentinels", "2")).then_some(())
                },
            )
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

    /// Waits until the replica has all that the primary was told.
    pub async fn in_step(&self) {
        in_step(&self.primary, self.replica.as_ref().unwrap()).await;
    }

    /// Kills the primary and waits until the replica has taken its place.
    pub async fn kill_primary(&mut self) -> Promotion {
        let replica = self.replica.take().unwrap();
        let killed = std::mem::replace(&mut self.primary, replica);
        let port = killed.port;
        drop(killed);
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(([127, 0, 0, 1], port).into()).unwrap();
        self.kept = Some(socket);
        let done = eventually("the replica's promotion", async || {
            (self.primary.role() == "master").then(Instant::now)
        })
        .await;
        let port = self.primary.port.to_string();
        let announced = eventually("the promotion's announcement", async || {
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

/// A Sentinel that watches this Redis, by the name `main`.
pub fn sentinel(primary: &Redis) -> Redis {
    let primary = primary.port;
    on_free_port(|port| {
        let directory = TempDir::new().unwrap();
        // It keeps what it learns in its configuration, and so needs one that is a file.
        let config = format!(
            "port {port}\n\
             bind 127.0.0.1\n\
             sentinel monitor main 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds main 500\n\
             sentinel failover-timeout main 2000\n"
        );
        fs::write(directory.path().join("sentinel.conf"), config).unwrap();
        Redis::launch(
            port,
            directory,
            &["sentinel.conf", "--sentinel"],
            "+monitor master main",
        )
    })
}
