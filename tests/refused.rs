//! Promise: if Redis refuses the password or its certificate does not verify, the program exits within
//! 5 s of its start, with one line that names the cause and contains no secret. Network errors never
//! make it exit.

use std::time::{Duration, Instant};

use crate::common::{Authority, Redis, Service, Visitor, eventually, free_port, program, run, sentinel, sentinel_with};

/// The program exits by then.
const DEADLINE: Duration = Duration::from_secs(5);

/// Part of every password in this file that must not be printed.
const MARK: &str = "hunter2";

/// Asserts that the program exits with one line that names the cause.
fn assert_exits(url: &str, certificates: Option<&str>, cause: &str) {
    let mut program = program([("REDIS_URL", url)]);
    program.envs(certificates.map(|file| ("SSL_CERT_FILE", file)));
    let begin = Instant::now();
    let (code, stdout, stderr) = run(&mut program, 2 * DEADLINE);
    let output = format!("{url}, standard output:\n{stdout}standard error:\n{stderr}");
    assert_eq!(code, Some(1), "{output}");
    assert!(begin.elapsed() < DEADLINE, "{:?}: {output}", begin.elapsed());
    assert_eq!(stderr.lines().count(), 1, "{output}");
    assert!(stderr.starts_with("REDIS_URL"), "{output}");
    assert!(stderr.contains(cause), "no {cause:?}: {output}");
    assert!(!stdout.contains(MARK), "prints a secret: {output}");
    assert!(!stderr.contains(MARK), "prints a secret: {output}");
    // No platform sends it traffic.
    assert!(!stdout.contains("listening"), "{output}");
}

#[test]
fn a_wrong_password() {
    let redis = Redis::start_with(&["--requirepass", "the right one"]);
    let address = format!("localhost:{}", redis.port);
    assert_exits(&format!("redis://:{MARK}@{address}"), None, "password");
    assert_exits(&format!("redis://ada:{MARK}@{address}"), None, "password");
}

#[test]
fn no_password_where_one_is_required() {
    let redis = Redis::start_with(&["--requirepass", MARK]);
    assert_exits(&redis.url(), None, "password");
}

#[test]
fn a_wrong_password_over_tls() {
    let authority = Authority::new();
    let redis = authority.redis("localhost", "the right one");
    let url = format!("rediss://:{MARK}@localhost:{}", redis.port);
    assert_exits(&url, Some(&authority.file()), "password");
}

#[test]
fn a_wrong_password_in_a_cluster() {
    let bus = free_port().to_string();
    let redis =
        Redis::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus, "--requirepass", "the right one"]);
    let url = format!("redis-cluster://:{MARK}@127.0.0.1:{}", redis.port);
    assert_exits(&url, None, "password");
}

#[test]
fn a_wrong_password_behind_sentinel() {
    let redis = Redis::start_with(&["--requirepass", "the right one"]);
    let sentinel = sentinel(&redis);
    let url = format!("redis-sentinel://:{MARK}@127.0.0.1:{}?sentinelServiceName=main", sentinel.port);
    assert_exits(&url, None, "password");
}

#[test]
fn a_wrong_password_for_the_sentinels() {
    let redis = Redis::start();
    let sentinel = sentinel_with(&redis, |port| {
        ["--port", &port.to_string(), "--requirepass", "the right one"].map(str::to_owned).to_vec()
    });
    let url = format!("redis-sentinel://127.0.0.1:{}?sentinelServiceName=main", sentinel.port);
    assert_exits(&url, None, "password");
    assert_exits(&format!("{url}&sentinelPassword={MARK}"), None, "at a Sentinel, the password");
}

#[test]
fn a_certificate_of_an_unknown_authority() {
    let (trusted, other) = (Authority::new(), Authority::new());
    let redis = other.redis("localhost", MARK);
    let url = format!("rediss://:{MARK}@localhost:{}", redis.port);
    assert_exits(&url, Some(&trusted.file()), "certificate");
}

#[test]
fn a_certificate_for_another_host() {
    let authority = Authority::new();
    let redis = authority.redis("redis.example", MARK);
    let url = format!("rediss://:{MARK}@localhost:{}", redis.port);
    assert_exits(&url, Some(&authority.file()), "certificate");
}

async fn assert_keeps_running(url: &str) {
    let service = Service::start([("REDIS_URL", url)]);
    eventually("a line with the cause", async || {
        let log = service.log();
        let line = log.iter().find(|line| line.contains("cannot be reached"));
        line.is_some().then_some(())
    })
    .await;
    let live = Visitor::new().view(&service, "/health/live").await;
    assert_eq!(live.status, 200, "{live:?}");
    // SIGTERM ends it as usual, with exit code 0.
    let log = service.stop();
    assert!(!log.iter().any(|line| line.contains(MARK)), "{log:#?}");
}

#[tokio::test]
async fn an_unknown_host_does_not_end_the_program() {
    assert_keeps_running(&format!("redis://:{MARK}@no-such-host.invalid")).await;
}

#[tokio::test]
async fn a_closed_port_does_not_end_the_program() {
    let port = free_port();
    assert_keeps_running(&format!("redis://:{MARK}@localhost:{port}")).await;
    assert_keeps_running(&format!("rediss://:{MARK}@localhost:{port}")).await;
}
