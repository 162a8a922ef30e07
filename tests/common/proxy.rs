//! A way to Redis that can be trouble.

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

/// Passes on what a client and Redis say to each other, unless it is told to make trouble.
pub struct Proxy {
    pub port: u16,
    trouble: Arc<Trouble>,
}

#[derive(Default)]
struct Trouble {
    /// The port of the Redis to which new connections go.
    redis: Mutex<u16>,
    /// By so much each answer comes later.
    delay: Mutex<Duration>,
    /// What happens to the next call of the script.
    mishap: Mutex<Option<Mishap>>,
    /// While it is true, every call of the script is lost.
    loses_calls: AtomicBool,
    /// The last call of the script.
    last_call: Mutex<Vec<u8>>,
    /// While it is true, answers are kept back.
    is_closed: watch::Sender<bool>,
    /// Connections that are older than this, counted from the first, are silent.
    silent_before: AtomicU64,
    connections: AtomicU64,
}

/// The service, on a Redis behind a proxy; and somebody who has viewed `/` twice, so that the script
/// is known.
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

enum Mishap {
    /// It does not get to Redis, and its connection is cut.
    LosesCall,
    /// Redis runs it, but its connection is cut before the answer.
    LosesAnswer,
}

impl Proxy {
    pub async fn start(redis: &Redis) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let proxy = Self {
            port: listener.local_addr().unwrap().port(),
            trouble: Arc::default(),
        };
        proxy.switch_to(redis);
        let trouble = proxy.trouble.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass_on(client, trouble.clone()));
            }
        });
        proxy
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Sends new connections to this Redis, as a name that is given to another server does.
    pub fn switch_to(&self, redis: &Redis) {
        *self.trouble.redis.lock().unwrap() = redis.port;
    }

    /// Has each answer come so much later.
    pub fn delay(&self, delay: Duration) {
        *self.trouble.delay.lock().unwrap() = delay;
    }

    /// Keeps answers back until it is opened.
    pub fn close(&self) {
        self.trouble.is_closed.send_replace(true);
    }

    pub fn open(&self) {
        self.trouble.is_closed.send_replace(false);
    }

    /// Has nothing come through any more on the connections that there are, as when a router in between
    /// has forgotten them.
    pub fn silence(&self) {
        let connections = self.trouble.connections.load(Relaxed);
        self.trouble.silent_before.store(connections, Relaxed);
    }

    /// Loses the next call of the script on its way, and cuts its connection.
    pub fn lose_call(&self) {
        *self.trouble.mishap.lock().unwrap() = Some(Mishap::LosesCall);
    }

    /// Loses all calls of the script from now on, or none.
    pub fn keep_losing_calls(&self, loses: bool) {
        self.trouble.loses_calls.store(loses, Relaxed);
    }

    /// Has Redis run the next call of the script, and cuts its connection instead of the answer.
    pub fn lose_answer(&self) {
        *self.trouble.mishap.lock().unwrap() = Some(Mishap::LosesAnswer);
    }

    /// The last call of the script, lost or not, as it was sent.
    pub fn last_call(&self) -> Vec<u8> {
        self.trouble.last_call.lock().unwrap().clone()
    }

    /// Has a call come to Redis, late or once more. Gives the answer.
    pub async fn deliver(&self, call: &[u8]) -> String {
        let mut redis = self.trouble.connect().await.unwrap();
        redis.write_all(call).await.unwrap();
        let mut answer = [0; 4096];
        let read = redis.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..read]).into_owned()
    }
}

impl Trouble {
    async fn connect(&self) -> io::Result<TcpStream> {
        let port = *self.redis.lock().unwrap();
        TcpStream::connect(("127.0.0.1", port)).await
    }
}

/// Passes on what either says, until either ends.
async fn pass_on(client: TcpStream, trouble: Arc<Trouble>) {
    let Ok(redis) = trouble.connect().await else {
        return;
    };
    let (mut answers, mut to_redis) = redis.into_split();
    let (mut requests, mut to_client) = client.into_split();
    let loses_answer = watch::Sender::new(false);
    let connection = trouble.connections.fetch_add(1, Relaxed);
    let is_silent = || connection < trouble.silent_before.load(Relaxed);
    let requests = async {
        let mut buffer = [0; 65536];
        while let Ok(read @ 1..) = requests.read(&mut buffer).await {
            let request = &buffer[..read];
            if is_silent() {
                continue;
            }
            if request.windows(4).any(|word| word == b"EVAL") {
                *trouble.last_call.lock().unwrap() = request.to_vec();
                if trouble.loses_calls.load(Relaxed) {
                    return;
                }
                match trouble.mishap.lock().unwrap().take() {
                    Some(Mishap::LosesCall) => return,
                    Some(Mishap::LosesAnswer) => drop(loses_answer.send_replace(true)),
                    None => {}
                }
            }
            if to_redis.write_all(request).await.is_err() {
                return;
            }
        }
    };
    let answers = async {
        let mut buffer = [0; 65536];
        while let Ok(read @ 1..) = answers.read(&mut buffer).await {
            let delay = *trouble.delay.lock().unwrap();
            if !delay.is_zero() {
                sleep(delay).await;
            }
            let mut is_closed = trouble.is_closed.subscribe();
            is_closed.wait_for(|is_closed| !is_closed).await.unwrap();
            if *loses_answer.borrow() || to_client.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}
