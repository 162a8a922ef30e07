//! A proxy in front of Redis that can inject faults.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};

use super::{Redis, Service, Visitor};

/// Forwards commands and replies, unless a fault is injected.
pub struct Proxy {
    pub port: u16,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    /// The port of the Redis that new connections are forwarded to.
    redis: Mutex<u16>,
    /// Added to the latency of each reply.
    delay: Mutex<Duration>,
    /// Hits the next call of the script.
    script_fault: Mutex<Option<ScriptFault>>,
    /// While true, every call of the script is lost.
    loses_calls: AtomicBool,
    /// The last call of the script.
    last_call: Mutex<Vec<u8>>,
    /// While true, replies are held back.
    is_closed: watch::Sender<bool>,
    /// Connections with a lower number than this forward nothing.
    silent_before: AtomicU64,
    /// The number of connections so far.
    connections: AtomicU64,
}

/// Starts the service on a Redis behind a proxy. The visitor has viewed `/` twice, so Redis has the
/// script in its cache.
pub async fn behind_proxy() -> (Redis, Proxy, Service, Visitor) {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let service = Service::start([("REDIS_URL", proxy.url().as_str())]);
    let mut visitor = Visitor::new();
    for view in 1..=2 {
        assert_eq!(visitor.count(&service, "/").await, view);
    }
    (redis, proxy, service, visitor)
}

enum ScriptFault {
    /// The call does not reach Redis; its connection is cut.
    LosesCall,
    /// Redis runs the call; its connection is cut before the reply.
    LosesReply,
}

impl Proxy {
    pub async fn start(redis: &Redis) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let proxy = Self { port: listener.local_addr().unwrap().port(), faults: Arc::default() };
        proxy.switch_to(redis);
        let faults = proxy.faults.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, faults.clone()));
            }
        });
        proxy
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Forwards new connections to this Redis, as a DNS change does.
    pub fn switch_to(&self, redis: &Redis) {
        *self.faults.redis.lock().unwrap() = redis.port;
    }

    /// Delays each reply.
    pub fn delay(&self, delay: Duration) {
        *self.faults.delay.lock().unwrap() = delay;
    }

    /// Holds replies back until [`open`](Self::open).
    pub fn close(&self) {
        self.faults.is_closed.send_replace(true);
    }

    pub fn open(&self) {
        self.faults.is_closed.send_replace(false);
    }

    /// Drops all traffic of the existing connections without closing them, as a router does that has
    /// lost its state.
    pub fn silence(&self) {
        let connections = self.faults.connections.load(Relaxed);
        self.faults.silent_before.store(connections, Relaxed);
    }

    /// Drops the next call of the script and cuts its connection.
    pub fn lose_call(&self) {
        *self.faults.script_fault.lock().unwrap() = Some(ScriptFault::LosesCall);
    }

    /// Starts or stops dropping all calls of the script.
    pub fn keep_losing_calls(&self, loses: bool) {
        self.faults.loses_calls.store(loses, Relaxed);
    }

    /// Lets Redis run the next call of the script, but cuts the connection before the reply.
    pub fn lose_reply(&self) {
        *self.faults.script_fault.lock().unwrap() = Some(ScriptFault::LosesReply);
    }

    /// The bytes of the last call of the script, whether it was lost or not.
    pub fn last_call(&self) -> Vec<u8> {
        self.faults.last_call.lock().unwrap().clone()
    }

    /// Sends a recorded call to Redis, as a delayed or duplicated packet, and returns the reply.
    pub async fn deliver(&self, call: &[u8]) -> String {
        let mut redis = self.faults.connect().await.unwrap();
        redis.write_all(call).await.unwrap();
        let mut reply = [0; 4096];
        let read = redis.read(&mut reply).await.unwrap();
        String::from_utf8_lossy(&reply[..read]).into_owned()
    }
}

impl Faults {
    async fn connect(&self) -> io::Result<TcpStream> {
        let port = *self.redis.lock().unwrap();
        TcpStream::connect(("127.0.0.1", port)).await
    }
}

/// Forwards both directions until either side closes.
async fn forward(client: TcpStream, faults: Arc<Faults>) {
    let Ok(redis) = faults.connect().await else {
        return;
    };
    let (mut replies, mut to_redis) = redis.into_split();
    let (mut requests, mut to_client) = client.into_split();
    let loses_reply = watch::Sender::new(false);
    let connection = faults.connections.fetch_add(1, Relaxed);
    let is_silent = || connection < faults.silent_before.load(Relaxed);
    let requests = async {
        let mut buffer = [0; 65536];
        while let Ok(read @ 1..) = requests.read(&mut buffer).await {
            let request = &buffer[..read];
            if is_silent() {
                continue;
            }
            if request.windows(4).any(|word| word == b"EVAL") {
                *faults.last_call.lock().unwrap() = request.to_vec();
                if faults.loses_calls.load(Relaxed) {
                    return;
                }
                match faults.script_fault.lock().unwrap().take() {
                    Some(ScriptFault::LosesCall) => return,
                    Some(ScriptFault::LosesReply) => drop(loses_reply.send_replace(true)),
                    None => {}
                }
            }
            if to_redis.write_all(request).await.is_err() {
                return;
            }
        }
    };
    let replies = async {
        let mut buffer = [0; 65536];
        while let Ok(read @ 1..) = replies.read(&mut buffer).await {
            let delay = *faults.delay.lock().unwrap();
            if !delay.is_zero() {
                sleep(delay).await;
            }
            let mut is_closed = faults.is_closed.subscribe();
            is_closed.wait_for(|is_closed| !is_closed).await.unwrap();
            if *loses_reply.borrow() || to_client.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = replies => {}
    }
}
