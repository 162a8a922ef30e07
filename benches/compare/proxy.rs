//! A proxy that adds latency, as if Redis ran in another data center.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::mpsc,
    time::{Instant, sleep_until},
};

/// Runs until this value is dropped.
pub struct Proxy {
    pub port: u16,
    _runtime: Runtime,
}

impl Proxy {
    /// Forwards to the Redis on port `redis`, and delays each direction by half of `round_trip`.
    pub fn start(redis: u16, round_trip: Duration) -> Self {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let redis = TcpStream::connect(("127.0.0.1", redis)).await.unwrap();
                for stream in [&client, &redis] {
                    stream.set_nodelay(true).unwrap();
                }
                let (client, redis) = (client.into_split(), redis.into_split());
                tokio::spawn(pass_on(client.0, redis.1, round_trip / 2));
                tokio::spawn(pass_on(redis.0, client.1, round_trip / 2));
            }
        });
        Self { port, _runtime: runtime }
    }
}

/// Forwards each chunk after `delay`, without delaying the chunks behind it further.
async fn pass_on(mut from: impl AsyncRead + Unpin + Send + 'static, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    let (pieces, mut late) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65536];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let piece = buffer[..read].to_vec();
            if pieces.send((Instant::now() + delay, piece)).is_err() {
                return;
            }
        }
    });
    while let Some((time, piece)) = late.recv().await {
        sleep_until(time).await;
        if to.write_all(&piece).await.is_err() {
            return;
        }
    }
}
