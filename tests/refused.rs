//! Promise: a password that Redis refuses, or a certificate of Redis that does not verify, ends the
//! program within 5 s of its start, with one line that says which and shows no secret. Trouble of
//! the network never ends it.

use std::time::{Duration, Instant};

use crate::common::{
    Authority, Redis, Service, Visitor, eventually, free_port, program, run, sentinel,
};

const PROMISE: Duration = Duration::from_secs(5);

/// Stands in every password here.
const MARK: &str = "hunter2";

/// The program must end by itself, with one line that names the cause.
fn assert_ends(url: &str, certificates: Option<&str>, cause: &str) {
    let mut program = program([("REDIS_URL", url)]);
    program.envs(certificates.map(|file| ("SSL_CERT_FILE", file)));
    let begin = Instant::now();
    let (code, stdout, stderr) = run(&mut program, 2 * PROMISE);
    let said = format!("{url}, on standard output:\n{stdout}on standard error:\n{stderr}");
    assert_eq!(code, Some(1), "{said}");
    assert!(begin.elapsed() < PROMISE, "{:?}: {said}", begin.elapsed());
    assert_eq!(stderr.lines().count(), 1, "{said}");
    assert!(stderr.starts_with("REDIS_URL"), "{said}");
    assert!(stderr.contains(cause), "no {cause:?}: {said}");
    assert!(!stdout.contains(MARK), "shows a secret: {said}");
    assert!(!stderr.contains(MARK), "shows a secret: {said}");
}

#[test]
fn a_wrong_password() {
    let redis = Redis::start_with(&["--requirepass", "the right one"]);
    let address = format!("localhost:{}", redis.port);
    assert_ends(&format!("redis://:{MARK}@{address}"), None, "password");
    assert_ends(&format!("redis://ada:{MARK}@{address}"), None, "password");
}

#[test]
fn no_password_where_one_is_required() {
    let redis = Redis::start_with(&["--requirepass", MARK]);
    assert_ends(&redis.url(), None, "password");
}

#[test]
fn a_wrong_password_by_tls() {
    let authority = Authority::new();
    let redis = authority.redis("localhost", "the right one");
    let url = format!("rediss://:{MARK}@localhost:{}", redis.port);
    assert_ends(&url, Some(&authority.file()), "password");
}

#[test]
fn a_wrong_password_in_a_cluster() {
    let bus = free_port().to_string();
    let redis = Redis::start_with(&[
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus,
        "--requirepass",
        "the right one",
    ]);
    let url = format!("redis-cluster://:{MARK}@127.0.0.1:{}", redis.port);
    assert_ends(&url, None, "password");
}

#[test]
fn a_wrong_password_behind_sentinel() {
    let redis = Redis::start_with(&["--requirepass", "the right one"]);
    let sentinel = sentinel(&redis);
    let url = format!(
        "redis-sentinel://:{MARK}@127.0.0.1:{}?sentinelServiceName=main",
        sentinel.port
    );
    assert_ends(&url, None, "password");
}

#[test]
fn a_certificate_that_somebody_else_has_signed() {
    let (trusted, other) = (Authority::new(), Authority::new());
    let redis = other.redis("localhost", MARK);
    let url = format!("rediss://:{MARK}@localhost:{}", redis.port);
    assert_ends(&url, Some(&trusted.file()), "certificate");
}

#[test]
fn a_certificate_for_another_host() {
    let authority = Authority::new();
    let redis = authority.redis("redis.example", MARK);
    let url = format!("rediss://:{MARK}@localhost:{}", redis.port);
    assert_ends(&url, Some(&authority.file()), "certificate");
}

async fn assert_goes_on(url: &str) {
    let service = Service::start([("REDIS_URL", url)]);
    eventually("a line that says why", async || {
        let log = service.log();
        let line = log.iter().find(|line| line.contains("cannot be reached"));
        line.is_some().then_some(())
    })
    .await;
    let live = Visitor::new().view(&service, "/health/live").await;
    assert_eq!(live.status, 200, "{live:?}");
    // With 0, as any other program that is told to go.
    let log = service.stop();
    assert!(!log.iter().any(|line| line.contains(MARK)), "{log:#?}");
}

#[tokio::test]
async fn a_host_that_nobody_knows_is_looked_for_on() {
    assert_goes_on(&format!("redis://:{MARK}@no-such-host.invalid")).await;
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_tried_on() {
    let port = free_port();
    assert_goes_on(&format!("redis://:{MARK}@localhost:{port}")).await;
    assert_goes_on(&format!("rediss://:{MARK}@localhost:{port}")).await;
}
