//! A proxy in front of Redis that can inject faults.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};

use super::{Dialect, Form, Port, Redis, Service, Visitor, in_slow_motion, one_core};

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
    /// Hits the next call.
    call_fault: Mutex<Option<CallFault>>,
    /// The reply to the next command that contains this.
    forged: Mutex<Option<(&'static str, Vec<u8>)>>,
    /// The last call.
    last_call: Mutex<Vec<u8>>,
    /// How many calls there were.
    calls: AtomicU64,
    /// While true, replies are held back.
    is_closed: watch::Sender<bool>,
    /// Connections with a lower number than this forward nothing.
    silent_before: AtomicU64,
    /// The number of connections so far.
    connections: AtomicU64,
}

/// Starts the service on a Redis behind a proxy. The visitor has viewed `/` twice.
pub async fn behind_proxy() -> (Redis, Proxy, Service, Visitor) {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let (service, visitor) = on_proxy(&proxy).await;
    (redis, proxy, service, visitor)
}

/// Like [`behind_proxy`], with a server of this form.
pub async fn behind_proxy_as(form: Form) -> (Redis, Proxy, Service, Visitor) {
    println!("{form:?}");
    let redis = Redis::start();
    let proxy = Proxy::start(&Dialect::start(&redis, form).await).await;
    let (service, visitor) = on_proxy(&proxy).await;
    (redis, proxy, service, visitor)
}

/// Like [`behind_proxy`], with a service whose clock is slow: its deadlines are ten times as long, which leaves a busy
/// machine the time to send many views before they end.
pub async fn behind_proxy_in_slow_motion() -> (Redis, Proxy, Service, Visitor) {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let url = proxy.url();
    let (service, visitor) = with_visitor(move || Service::connected_in_slow_motion(&url)).await;
    (redis, proxy, service, visitor)
}

/// Starts the service far from this server: its calls are slow, so one is in flight at a time, and what waits shares the
/// next, however busy the machine is. For that it has one thread, since each thread has calls of its own, and the slow
/// clock.
pub async fn far_from(server: &impl Port, settings: &[(&str, &str)]) -> (Proxy, Service) {
    let proxy = Proxy::start(server).await;
    // 5 ms by the service's clock.
    proxy.delay(Duration::from_millis(50));
    let url = proxy.url();
    let mut program = one_core(settings.iter().copied().chain([("REDIS_URL", url.as_str())]));
    let start = move || Service::launch(in_slow_motion(&mut program)).once_connected();
    // The proxy runs on this runtime.
    (proxy, tokio::task::spawn_blocking(start).await.unwrap())
}

async fn on_proxy(proxy: &Proxy) -> (Service, Visitor) {
    let url = proxy.url();
    with_visitor(move || Service::connected(&url)).await
}

async fn with_visitor(start: impl FnOnce() -> Service + Send + 'static) -> (Service, Visitor) {
    // The proxy runs on this runtime.
    let service = tokio::task::spawn_blocking(start).await.unwrap();
    let mut visitor = Visitor::new();
    for view in 1..=2 {
        assert_eq!(visitor.count(&service, "/").await, view);
    }
    (service, visitor)
}

enum CallFault {
    /// The call does not reach Redis; its connection is cut.
    LosesCall,
    /// Redis runs the call; its connection is cut before the reply.
    LosesReply,
}

impl Proxy {
    pub async fn start(redis: &impl Port) -> Self {
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
    pub fn switch_to(&self, redis: &impl Port) {
        *self.faults.redis.lock().unwrap() = redis.port();
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

    /// Drops the next call and cuts its connection.
    pub fn lose_call(&self) {
        *self.faults.call_fault.lock().unwrap() = Some(CallFault::LosesCall);
    }

    /// Lets Redis execute the next call, but cuts the connection before the reply.
    pub fn lose_reply(&self) {
        *self.faults.call_fault.lock().unwrap() = Some(CallFault::LosesReply);
    }

    /// Lets Redis execute the next command that has this as its name or an argument, and sends these bytes in place of
    /// the reply. Nothing else may be in flight.
    pub fn forge_reply(&self, command: &'static str, reply: &[u8]) {
        *self.faults.forged.lock().unwrap() = Some((command, reply.to_vec()));
    }

    /// Stops forging. Returns whether the forged reply was still waiting for its command.
    pub fn stop_forging(&self) -> bool {
        self.faults.forged.lock().unwrap().take().is_some()
    }

    /// The bytes of the last call, whether it was lost or not.
    pub fn last_call(&self) -> Vec<u8> {
        self.faults.last_call.lock().unwrap().clone()
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.faults.calls.load(Relaxed)
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

/// How many calls there are in these bytes: commands that change sessions, in one of their forms. The command that checks
/// a server is none: it compares with a single byte.
fn calls(request: &[u8]) -> u64 {
    const SCRIPT: &[u8] = b"$7\r\nEVALSHA\r\n";
    const IF_EQUAL: &[u8] = b"$4\r\nIFEQ\r\n";
    let scripts = request.windows(SCRIPT.len()).filter(|part| *part == SCRIPT);
    let sets =
        request.windows(IF_EQUAL.len() + 3).filter(|part| part.starts_with(IF_EQUAL) && !part.ends_with(b"$1\r"));
    (scripts.count() + sets.count()) as u64
}

/// Forwards both directions until either side closes.
async fn forward(client: TcpStream, faults: Arc<Faults>) {
    let Ok(redis) = faults.connect().await else {
        return;
    };
    let (mut replies, mut to_redis) = redis.into_split();
    let (mut requests, mut to_client) = client.into_split();
    let loses_reply = watch::Sender::new(false);
    let forged = Mutex::new(None);
    let connection = faults.connections.fetch_add(1, Relaxed);
    let is_silent = || connection < faults.silent_before.load(Relaxed);
    let requests = async {
        let mut buffer = [0; 65536];
        while let Ok(read @ 1..) = requests.read(&mut buffer).await {
            let request = &buffer[..read];
            if is_silent() {
                continue;
            }
            let calls = calls(request);
            faults.calls.fetch_add(calls, Relaxed);
            if calls > 0 {
                *faults.last_call.lock().unwrap() = request.to_vec();
                match faults.call_fault.lock().unwrap().take() {
                    Some(CallFault::LosesCall) => return,
                    Some(CallFault::LosesReply) => drop(loses_reply.send_replace(true)),
                    None => {}
                }
            }
            let is_forged = |(command, _): &mut (&str, _)| {
                let argument = format!("\r\n{command}\r\n");
                request.windows(argument.len()).any(|part| part == argument.as_bytes())
            };
            if let Some((_, reply)) = faults.forged.lock().unwrap().take_if(is_forged) {
                *forged.lock().unwrap() = Some(reply);
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
            let forged = forged.lock().unwrap().take();
            let reply = forged.as_deref().unwrap_or(&buffer[..read]);
            if *loses_reply.borrow() || to_client.write_all(reply).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = replies => {}
    }
}
