//! Promise: whatever happens to Redis or to the instance, every visitor gets a response within 3 s: a
//! page, or a 503 with one clear sentence and no cookie. The log reports each outage once, and the
//! service recovers by itself.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use reqwest::Method;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::common::{
    Answer, BROWSER, Proxy, Redis, Service, TIMEOUT, Visitor, eventually, free_port, libnss_wrapper, may_connect,
    one_core, signal, wait_for_replication,
};

/// Every view is answered by then.
const DEADLINE: Duration = Duration::from_secs(3);

/// Connecting is tried at least this often.
const MAX_BACKOFF: Duration = Duration::from_millis(800);

/// The time from the return of Redis until pages are available: connecting is tried again by then, and the rest is for a
/// busy machine.
const RECOVERY: Duration = Duration::from_secs(10);

const SENTENCE: &str = "your session cannot be reached, please try again";

fn assert_503(response: &Answer, content_type: &str) {
    assert_eq!(response.status, 503, "{response:?}");
    assert_eq!(response.header("content-type"), Some(content_type));
    assert_eq!(response.header("retry-after"), Some("1"));
    assert_eq!(response.header("cache-control"), Some("no-store"));
    assert_eq!(response.header("vary"), Some("Accept, Cookie"));
    assert_eq!(response.cookie(), None);
}

/// Asserts that every kind of visitor gets a 503 in time, as text and as HTML, all at once; that the
/// service is not ready; and that the process is alive.
async fn assert_unavailable(service: &Service, returning: &Visitor) {
    let visitors = [
        returning.clone(),
        Visitor::new(),
        Visitor::with_cookie("id=AAAAAAAAAAAAAAAAAAAAAA"),
        Visitor::with_cookie("id=malformed"),
    ];
    let views = visitors.iter().flat_map(|visitor| {
        [("/", "*/*"), ("/foo", BROWSER)].map(|(path, accept)| {
            let mut visitor = visitor.clone();
            async move {
                let begin = Instant::now();
                let response = visitor.request(Method::GET, service, path, accept).await;
                (accept, response, begin.elapsed())
            }
        })
    });
    let mut slowest = Duration::ZERO;
    for (accept, response, elapsed) in join_all(views).await {
        if accept == BROWSER {
            assert_503(&response, "text/html; charset=utf-8");
            assert!(response.body.contains(SENTENCE), "{response:?}");
        } else {
            assert_503(&response, "text/plain; charset=utf-8");
            assert_eq!(response.body, SENTENCE);
        }
        slowest = slowest.max(elapsed);
    }
    let begin = Instant::now();
    let ready = Visitor::new().view(service, "/health/ready").await;
    assert_eq!((ready.status, ready.body.as_str()), (503, "no view could be counted now"));
    slowest = slowest.max(begin.elapsed());
    assert!(slowest < DEADLINE, "a response took {slowest:?}");
    println!("{}: 503 within {slowest:?}", test_name());
    let live = Visitor::new().view(service, "/health/live").await;
    assert_eq!(live.status, 200);
}

/// Views `/` until the response is a page instead of a 503, which must happen in time.
async fn recovers(service: &Service, visitor: &mut Visitor, since: Instant) -> Answer {
    let answer = eventually("the page", async || {
        let answer = visitor.view(service, "/").await;
        assert!([200, 503].contains(&answer.status), "{answer:?}");
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert!(since.elapsed() < RECOVERY, "recovered after {:?}", since.elapsed());
    println!("{}: recovered after {:?}", test_name(), since.elapsed());
    // All threads are connected, and the log says so.
    service.wait_until_ready().await;
    answer
}

/// Views a page, which must be answered in time, and returns the number on it.
async fn count_in_time(visitor: &mut Visitor, service: &Service, path: &str) -> u64 {
    let begin = Instant::now();
    let count = visitor.count(service, path).await;
    assert!(begin.elapsed() < DEADLINE, "answered after {:?}", begin.elapsed());
    println!("{}: answered after {:?}", test_name(), begin.elapsed());
    count
}

/// The name of the current test.
fn test_name() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}

fn count_lines(log: &[String], part: &str) -> usize {
    log.iter().filter(|line| line.contains(part)).count()
}

/// Asserts that the log reports the outage once, its first 503, and each connection.
fn assert_logged_once(log: &[String], outage: &str, connected: usize) {
    assert_eq!(count_lines(log, outage), 1, "{outage}: {log:#?}");
    assert_eq!(count_lines(log, "a session could not be used"), 1, "{log:#?}");
    assert_eq!(count_lines(log, "WARN"), 2, "{log:#?}");
    assert_eq!(count_lines(log, "connected to Redis"), connected, "{log:#?}");
}

#[tokio::test]
async fn redis_is_unreachable_at_the_start() {
    let port = free_port();
    let service = Service::start([("REDIS_URL", format!("redis://127.0.0.1:{port}").as_str())]);
    assert_unavailable(&service, &Visitor::new()).await;
    let redis = Redis::start_on(port);
    let since = Instant::now();
    let mut visitor = Visitor::new();
    assert_eq!(recovers(&service, &mut visitor, since).await.count(), 1);
    assert_eq!(visitor.view(&service, "/health/ready").await.status, 200);
    let keys = redis.keys();
    assert_eq!(keys.len(), 1, "a 503 created a session: {keys:#?}");
    assert_logged_once(&service.stop(), "Redis cannot be reached:", 1);
}

#[tokio::test]
async fn redis_is_killed_and_returns_empty() {
    let redis = Redis::start();
    let port = redis.port;
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    for view in 1..=2 {
        assert_eq!(visitor.count(&service, "/").await, view);
    }
    drop(redis);
    assert_unavailable(&service, &visitor).await;
    let old = visitor.cookie.clone();
    let _redis = Redis::start_on(port);
    let since = Instant::now();
    // The data is lost, so the visitor gets a new session, not an error.
    assert_eq!(recovers(&service, &mut visitor, since).await.count(), 1);
    assert_ne!(visitor.cookie, old);
    assert_eq!(visitor.count(&service, "/").await, 2);
    let log = service.stop();
    // If no command was in flight when the connection ended, its end is no news.
    let is_lost = count_lines(&log, "the connection to Redis is lost") > 0;
    let outage = if is_lost { "the connection to Redis is lost" } else { "Redis cannot be reached:" };
    assert_logged_once(&log, outage, 2);
}

#[tokio::test]
async fn redis_is_frozen() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    signal(redis.id(), "STOP");
    assert_unavailable(&service, &visitor).await;
    signal(redis.id(), "CONT");
    recovers(&service, &mut visitor, Instant::now()).await;
    let log = service.stop();
    let without_cause = log.iter().find(|line| line.contains("was not read and answered within 2.5s"));
    assert_eq!(without_cause, None, "{log:#?}");
}

#[tokio::test]
async fn redis_is_slow() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let service = Service::start([("REDIS_URL", proxy.url().as_str())]);
    assert_eq!(Visitor::new().count(&service, "/").await, 1);
    // Each reply is in time, but a request with four unknown ids needs several.
    proxy.delay(Duration::from_millis(700));
    let begin = Instant::now();
    let unknown = ["A", "B", "C", "D"].map(|letter| format!("id={}A", letter.repeat(21)));
    let mut unknown = Visitor::with_cookie(unknown.join("; "));
    let response = unknown.view(&service, "/").await;
    let elapsed = begin.elapsed();
    assert_503(&response, "text/plain; charset=utf-8");
    assert!(elapsed < DEADLINE, "the response took {elapsed:?}");
    let log = service.stop();
    assert_eq!(count_lines(&log, "was not read and answered within 2.5s"), 1, "{log:#?}");
}

#[tokio::test]
async fn the_reply_to_a_new_visitor_is_lost() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let service = Service::start([("REDIS_URL", proxy.url().as_str())]);
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    proxy.lose_reply();
    let mut new = Visitor::new();
    for view in 1..=3 {
        assert_eq!(new.count(&service, "/").await, view, "{:#?}", service.log());
    }
    assert_eq!(visitor.count(&service, "/").await, 2);
}

#[tokio::test]
async fn redis_is_frozen_under_800_requests() {
    const REQUESTS: u32 = 800;
    if !may_connect(REQUESTS.into()) {
        return;
    }
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    let view_all = async |visitor: &Visitor| {
        let views = (0..REQUESTS).map(async |n| {
            // One in four is a new visitor.
            let mut visitor = if n % 4 == 0 { Visitor::sharing_connections(visitor) } else { visitor.clone() };
            let begin = Instant::now();
            let answer = visitor.view(&service, "/").await;
            (answer.status, begin.elapsed())
        });
        join_all(views).await
    };
    // Opens all client connections while Redis is available, before memory is measured.
    view_all(&visitor).await;
    let mut bytes = vec![service.memory("VmRSS")];
    signal(redis.id(), "STOP");
    for round in 1..=3 {
        let answers = view_all(&visitor).await;
        let slowest = answers.iter().map(|(_, elapsed)| elapsed).max().unwrap();
        println!("{}: 503 within {slowest:?}", test_name());
        assert!(answers.iter().all(|(status, _)| *status == 503), "round {round}");
        assert!(*slowest < DEADLINE, "round {round}: a response took {slowest:?}");
        bytes.push(service.memory("VmRSS"));
    }
    signal(redis.id(), "CONT");
    let since = Instant::now();
    recovers(&service, &mut visitor, since).await;
    let answers = view_all(&visitor).await;
    assert!(answers.iter().all(|(status, _)| *status == 200));
    assert!(since.elapsed() < RECOVERY, "all views are counted after {:?}", since.elapsed());
    println!("{}: bytes before, and after each round: {bytes:?}", test_name());
    assert!(bytes[3].saturating_sub(bytes[0]) < 20_000_000, "{bytes:?}");
    // Each thread may take its part in the first round or in the second.
    let grown = bytes[3].saturating_sub(bytes[2]);
    assert!(grown < 1_000_000, "memory grows with each round: {bytes:?}");
}

#[tokio::test]
async fn the_instance_is_frozen_while_redis_disconnects() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    for view in 1..=5 {
        assert_eq!(visitor.count(&service, "/").await, view);
        signal(service.id(), "STOP");
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        signal(service.id(), "CONT");
        // The first view after the thaw is by a new or by the returning visitor, in turn.
        if view % 2 == 0 {
            assert_eq!(count_in_time(&mut Visitor::new(), &service, "/").await, 1);
        }
        assert_eq!(count_in_time(&mut visitor, &service, "/bar").await, view);
    }
}

#[tokio::test]
async fn a_connection_dies_silently() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let service = Service::start([("REDIS_URL", proxy.url().as_str())]);
    let mut visitor = Visitor::new();
    for view in 1..=4 {
        assert_eq!(count_in_time(&mut visitor, &service, "/").await, view);
        // A new visitor's view needs the connection as well.
        assert_eq!(count_in_time(&mut Visitor::new(), &service, "/").await, 1);
        proxy.silence();
    }
}

/// Hosts close idle connections every few minutes. That is no warning, and costs nothing until the next view.
#[tokio::test]
async fn an_idle_connection_is_closed() {
    assert_idle_ends_are_no_outages(false).await;
    assert_idle_ends_are_no_outages(true).await;
}

/// `is_late`: Redis starts after the service.
async fn assert_idle_ends_are_no_outages(is_late: bool) {
    const ENDED: &str = "the idle connection to Redis has ended";
    let early = (!is_late).then(Redis::start);
    let port = early.as_ref().map_or_else(free_port, |redis| redis.port);
    // One thread, so that the log tells of one link only.
    let url = format!("redis://127.0.0.1:{port}");
    let service = Service::launch(&mut one_core([("REDIS_URL", url.as_str()), ("RUST_LOG", "debug")]));
    if is_late {
        let is_warned = async || (count_lines(&service.log(), "WARN") > 0).then_some(());
        eventually("a warning", is_warned).await;
    }
    let redis = early.unwrap_or_else(|| Redis::start_on(port));
    service.wait_until_ready().await;
    let mut visitor = Visitor::new();
    for n in 1..=4 {
        assert_eq!(visitor.count(&service, "/").await, n as u64);
        redis.executed();
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        let is_noticed = async || (count_lines(&service.log(), ENDED) == n).then_some(());
        eventually("the service notices", is_noticed).await;
        // Connecting again would execute some, and take less time than these.
        for _ in 0..50 {
            assert_eq!(Visitor::new().view(&service, "/health/live").await.status, 200);
        }
        assert_eq!(redis.executed(), 0, "commands before the next view");
        if n % 2 == 0 {
            assert_eq!(Visitor::new().view(&service, "/health/ready").await.status, 200);
        } else {
            assert_eq!(count_in_time(&mut Visitor::new(), &service, "/").await, 1);
        }
        // The log is written by a thread of its own.
        let is_logged = async || (count_lines(&service.log(), "connected to Redis") == n + 1).then_some(());
        eventually("one more connection", is_logged).await;
    }
    let log = service.stop();
    assert_eq!(count_lines(&log, "WARN"), usize::from(is_late), "{log:#?}");
    assert_eq!(count_lines(&log, " INFO cloud_run_sessions::store::redis_link: connected to Redis"), 1, "{log:#?}");
}

#[tokio::test]
async fn redis_is_full() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&service, "/").await, 1);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for _ in 0..3 {
        for mut visitor in [visitor.clone(), Visitor::new()] {
            let response = visitor.view(&service, "/").await;
            assert_503(&response, "text/plain; charset=utf-8");
        }
    }
    assert_eq!(Visitor::new().view(&service, "/health/ready").await.status, 503);
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(Visitor::new().view(&service, "/health/ready").await.status, 200);
    // A refused view is not counted.
    assert_eq!(visitor.count(&service, "/").await, 2);
    assert_eq!(Visitor::new().count(&service, "/").await, 1);
    let log = service.stop();
    let warnings: Vec<_> = log.iter().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{log:#?}");
    assert!(warnings[0].contains("OOM"), "no cause: {warnings:#?}");
    assert_eq!(count_lines(&log, "OOM"), 1, "{log:#?}");
}

#[tokio::test]
async fn the_password_of_redis_changes() {
    let mut redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&service, "/").await, 1);
    redis.cli(&["CONFIG", "SET", "requirepass", "another"]);
    redis.cli_options = ["--no-auth-warning", "-a", "another"].map(str::to_owned).into();
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    // The password was accepted once, so the program keeps trying instead of exiting, and logs why.
    assert_unavailable(&service, &visitor).await;
    redis.cli(&["CONFIG", "SET", "requirepass", ""]);
    let since = Instant::now();
    assert_eq!(recovers(&service, &mut visitor, since).await.count(), 2);
    let log = service.stop();
    assert_eq!(count_lines(&log, "NOAUTH"), 1, "{log:#?}");
    // The cause and the first 503, and the loss if a command was in flight.
    let losses = count_lines(&log, "the connection to Redis is lost");
    assert_eq!(count_lines(&log, "WARN"), 2 + losses, "{log:#?}");
}

#[tokio::test]
async fn redis_becomes_a_replica_and_a_primary_again() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&service, "/").await, 1);
    // Its primary does not exist, so it keeps its data and refuses writes.
    redis.cli(&["REPLICAOF", "127.0.0.1", &free_port().to_string()]);
    assert_unavailable(&service, &visitor).await;
    redis.cli(&["REPLICAOF", "NO", "ONE"]);
    let since = Instant::now();
    assert_eq!(recovers(&service, &mut visitor, since).await.count(), 2);
    let log = service.stop();
    assert_eq!(count_lines(&log, "READONLY"), 1, "{log:#?}");
    assert_logged_once(&log, "the connection to Redis is lost", 2);
}

#[tokio::test]
async fn the_host_name_moves_to_another_redis() {
    let (old, new) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&old).await;
    let service = Service::start([("REDIS_URL", proxy.url().as_str())]);
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&service, "/").await, 1);
    new.cli(&["REPLICAOF", "127.0.0.1", &old.port.to_string()]);
    eventually("the session is replicated", async || (new.keys() == old.keys()).then_some(())).await;
    new.cli(&["REPLICAOF", "NO", "ONE"]);
    // The old Redis stays connected, but refuses writes.
    old.cli(&["REPLICAOF", "127.0.0.1", &new.port.to_string()]);
    proxy.switch_to(&new);
    assert_eq!(visitor.count(&service, "/").await, 2);
}

/// A file of host names, and the settings of a service that knows only these.
struct Hosts(TempDir);

impl Hosts {
    fn path(&self) -> String {
        self.0.path().join("hosts").display().to_string()
    }

    /// Gives the name `redis.example` these addresses.
    fn set(&self, addresses: &[&str]) {
        let lines: String = addresses.iter().map(|address| format!("{address} redis.example\n")).collect();
        let new = self.0.path().join("new");
        fs::write(&new, lines).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    /// On one core: with several threads that look up the name at once, the wrapper frees memory twice.
    fn start_service(&self, port: u16) -> Service {
        Service::launch(&mut one_core([
            ("REDIS_URL", format!("redis://redis.example:{port}").as_str()),
            ("LD_PRELOAD", &libnss_wrapper()),
            ("NSS_WRAPPER_HOSTS", &self.path()),
        ]))
    }
}

/// A listener that takes no connection and refuses none, like a host behind a router that drops packets.
fn black_hole(address: &str, port: u16) -> (Socket, Vec<TcpStream>) {
    let address: SocketAddr = format!("{address}:{port}").parse().unwrap();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(1).unwrap();
    let mut queued = Vec::new();
    while let Ok(connection) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        queued.push(connection);
        assert!(queued.len() < 1000, "the queue of connections has no end");
    }
    (socket, queued)
}

#[tokio::test]
async fn the_first_address_of_the_host_name_does_not_answer() {
    let redis = Redis::start();
    let _black_hole = black_hole("127.0.0.2", redis.port);
    let hosts = Hosts(TempDir::new().unwrap());
    hosts.set(&["127.0.0.2", "127.0.0.1"]);
    let service = hosts.start_service(redis.port);
    let mut visitor = Visitor::new();
    for view in 1..=3 {
        // On a busy machine, connecting may take longer than a view waits.
        let page = async || Some(visitor.view(&service, "/").await).filter(|answer| answer.status == 200);
        assert_eq!(eventually("the page", page).await.count(), view);
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    }
}

/// As hosts do it at a failover, and the old server is gone.
#[tokio::test]
async fn the_host_name_gets_another_address() {
    let old = Redis::start();
    let options = ["--port", &old.port.to_string(), "--bind", "127.0.0.2", "--save", ""];
    let new = Redis::launch(old.port, TempDir::new().unwrap(), &options, "Ready to accept connections");
    let mut new = new.expect("redis-server does not start");
    new.cli_options = ["-h", "127.0.0.2"].map(str::to_owned).into();
    let hosts = Hosts(TempDir::new().unwrap());
    hosts.set(&["127.0.0.1"]);
    let service = hosts.start_service(old.port);
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&service, "/").await, 1);
    new.cli(&["REPLICAOF", "127.0.0.1", &old.port.to_string()]);
    wait_for_replication(&old, &new).await;
    drop(old);
    assert_eq!(visitor.view(&service, "/").await.status, 503);
    new.cli(&["REPLICAOF", "NO", "ONE"]);
    hosts.set(&["127.0.0.2"]);
    assert_eq!(recovers(&service, &mut visitor, Instant::now()).await.count(), 2);
}

#[tokio::test]
async fn redis_is_loading() {
    let redis = Redis::start();
    // While loading, Redis replies after each 2 MB: here every half second, for 12 s.
    redis.cli(&["CONFIG", "SET", "rdbcompression", "no"]);
    let fill = "for key = 1, 120 do redis.call('SET', key, string.rep('x', 400000)) end";
    redis.cli(&["EVAL", fill, "0"]);
    redis.cli(&["SAVE"]);
    let redis = redis.restart_with(&["--key-load-delay", "100000"]);
    eventually("Redis is loading", async || redis.cli(&["PING"]).contains("LOADING").then_some(())).await;
    let service = Service::start([("REDIS_URL", redis.url().as_str())]);
    assert_unavailable(&service, &Visitor::new()).await;
    let mut visitor = Visitor::new();
    eventually("Redis has loaded its data", async || redis.cli(&["PING"]).contains("PONG").then_some(())).await;
    assert_eq!(recovers(&service, &mut visitor, Instant::now()).await.count(), 1);
    let log = service.stop();
    assert_eq!(count_lines(&log, "LOADING"), 1, "{log:#?}");
    assert_logged_once(&log, "Redis cannot be reached:", 1);
}

#[tokio::test]
async fn connecting_is_retried_with_backoff_forever() {
    const CONNECTIONS: usize = 50;
    // A server that accepts connections and closes them at once.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    // One thread, since each one's connection is retried.
    let service = Service::launch(&mut one_core([("REDIS_URL", url.as_str())]));
    let mut attempts = Vec::new();
    while attempts.len() < CONNECTIONS {
        drop(tokio::time::timeout(TIMEOUT, listener.accept()).await.expect("another attempt"));
        attempts.push(Instant::now());
    }
    let pauses: Vec<_> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // Other tests on this machine may delay some attempts, but not all.
    assert!(pauses[..5].iter().min() < Some(&Duration::from_millis(100)), "the first pauses: {pauses:?}");
    // In the end, an attempt comes after half of the longest pause at least. An attempt may be followed at once by a
    // second connection, which tests whether the scheme of the URL is wrong.
    let last: Vec<_> = pauses[pauses.len() - 20..].iter().filter(|pause| **pause >= MAX_BACKOFF / 2).collect();
    assert!(last.len() >= 5, "too many attempts: {pauses:?}");
    let (shortest, longest) = (*last.iter().min().unwrap(), *last.iter().max().unwrap());
    assert!(*shortest < MAX_BACKOFF, "the last pauses: {pauses:?}");
    assert!(*longest - *shortest > Duration::from_millis(30), "no jitter: {pauses:?}");
    assert_eq!(count_lines(&service.stop(), "WARN"), 1);
}
