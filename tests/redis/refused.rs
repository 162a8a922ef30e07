//! Promise: if Redis refuses what the settings say (the password, the database, the kind of server, a command that
//! sessions need) or its certificate does not verify, the program exits within 5 s of its start, with one line that names
//! the cause and contains no secret. Network errors, and refusals that pass by themselves, never make it exit.

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use crate::common::{
    Authority, Cluster, Redis, Service, Visitor, eventually, free_port, program, run, sentinel, sentinel_with,
};

/// The program exits by then.
const DEADLINE: Duration = Duration::from_secs(5);

/// Part of every password in this file that must not be printed.
const MARK: &str = "hunter2";

/// Asserts that the program exits with one line that names the cause, before it listens.
fn assert_exits(url: &str, certificates: Option<&str>, cause: &str) {
    let stdout = assert_exits_in_time(url, certificates, cause);
    // If it listened, a platform would send it traffic.
    assert!(!stdout.contains("listening"), "{stdout}");
}

/// Asserts that the program exits with one line that names the cause. Returns what it has logged.
fn assert_exits_in_time(url: &str, certificates: Option<&str>, cause: &str) -> String {
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
    stdout
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
    assert_exits(&format!("{url}&sentinelPassword={MARK}"), None, "Sentinel: Redis rejected the password");
}

/// Redis repeats the arguments of a command that it does not know.
#[test]
fn a_command_that_redis_does_not_know() {
    let redis = Redis::start_with(&["--requirepass", MARK, "--rename-command", "AUTH", ""]);
    assert_exits(&format!("redis://:{MARK}@localhost:{}", redis.port), None, "AUTH");
    let redis = Redis::start_with(&["--rename-command", "GETEX", ""]);
    assert_exits(&redis.url(), None, "GETEX");
}

#[test]
fn a_database_that_does_not_exist() {
    let redis = Redis::start();
    assert_exits(&format!("{}/99", redis.url()), None, "the database is refused");
    let sentinel = sentinel(&redis);
    let url = format!("redis-sentinel://127.0.0.1:{}/99?sentinelServiceName=main", sentinel.port);
    assert_exits(&url, None, "the database is refused");
}

#[test]
fn a_service_that_the_sentinel_does_not_know() {
    let redis = Redis::start();
    let sentinel = sentinel(&redis);
    let url = format!("redis-sentinel://127.0.0.1:{}?sentinelServiceName=typo", sentinel.port);
    assert_exits(&url, None, "sentinelServiceName");
}

/// A scheme for another kind of server.
#[test]
fn a_server_of_another_kind() {
    let redis = Redis::start();
    let address = format!("127.0.0.1:{}", redis.port);
    assert_exits(&format!("redis-cluster://{address}"), None, "not a Redis Cluster");
    assert_exits(&format!("redis-sentinel://{address}?sentinelServiceName=main"), None, "not a Sentinel");
    let sentinel = sentinel(&redis);
    assert_exits(&sentinel.url(), None, "unknown command");
    assert_exits(&sentinel.url().replace("redis", "redis-cluster"), None, "unknown command");
    // This server answers in clear text, and not as Redis does.
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let _ = (&connection).read(&mut [0; 1024]);
            let _ = (&connection).write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    assert_exits(&format!("redis://{address}"), None, "Redis's protocol");
    assert_exits(&format!("rediss://{address}"), None, "TLS");
}

/// Asked with TLS, a plain server says nothing or hangs up; asked without, so does a TLS server.
#[tokio::test]
async fn a_scheme_that_is_wrong_about_tls() {
    let authority = Authority::new();
    let secure = authority.redis("localhost", MARK);
    assert_exits(
        &format!("redis://:{MARK}@localhost:{}", secure.port),
        None,
        "the server speaks TLS, which needs rediss",
    );
    let certificates = authority.file();
    for plain in [Redis::start(), Redis::start_with(&["--requirepass", "the right one"])] {
        let url = format!("rediss://:{MARK}@localhost:{}", plain.port);
        assert_exits_in_time(&url, Some(&certificates), "does not speak it");
    }
    let cluster = Cluster::start_with_tls(&authority).await;
    assert_exits(&cluster.short_url(), None, "rediss");
}

/// What passes by itself does not end a start: the service waits for it.
#[tokio::test]
async fn what_passes_does_not_end_the_program() {
    let redis = Redis::start();
    redis.expect_ok(&["CONFIG", "SET", "maxclients", "1"]);
    // It holds the one place.
    let _monitor = redis.monitor();
    let log = assert_keeps_running(&redis.url()).await;
    assert!(log.iter().any(|line| line.contains("max number of clients")), "{log:#?}");
}

#[tokio::test]
async fn one_master_of_a_cluster() {
    let cluster = Cluster::start().await;
    for master in &cluster.masters {
        assert_exits(&master.url(), None, "redis-cluster://");
    }
    assert_exits(&format!("{}/1", cluster.masters[0].url()), None, "the database is refused");
}

/// Restricts the user ada to the rights that docs/deploy.md names, changed by these. The tests are another user.
fn restrict(redis: &mut Redis, change: &[&str]) {
    let docs = include_str!("../../docs/deploy.md");
    let line = docs.lines().find(|line| line.starts_with("ACL SETUSER sessions ")).unwrap();
    let rights = line.split(' ').skip(3).map(|right| if right.starts_with('>') { ">hunter2" } else { right });
    let rights: Vec<_> = rights.chain(change.iter().copied()).collect();
    redis.expect_ok(&["ACL", "SETUSER", "admin", "on", ">admin", "~*", "&*", "+@all"]);
    redis.expect_ok(&[&["ACL", "SETUSER", "ada"], &rights[..]].concat());
    redis.expect_ok(&["ACL", "SETUSER", "default", "off"]);
    redis.cli_options = ["--user", "admin", "--pass", "admin", "--no-auth-warning"].map(str::to_owned).into();
}

/// The rights that docs/deploy.md names are enough, also for a key pattern that allows no more than ids.
#[tokio::test]
async fn a_user_with_just_the_rights() {
    for (change, database) in [(&[][..], ""), (&["+select"], "/1"), (&["resetkeys", "~??????????????????????"], "")] {
        let mut redis = Redis::start();
        restrict(&mut redis, change);
        let url = format!("redis://ada:{MARK}@localhost:{}{database}", redis.port);
        let service = Service::start([("REDIS_URL", url.as_str())]);
        service.wait_until_ready().await;
        let mut visitors = vec![Visitor::new(); 20];
        for view in 1..=3 {
            let counts = join_all(visitors.iter_mut().map(|visitor| visitor.count(&service, "/"))).await;
            assert_eq!(counts, vec![view; 20], "{change:?}");
        }
        let other = Service::start([("REDIS_URL", url.as_str())]);
        assert_eq!(visitors[0].count(&other, "/").await, 4);
        let log = service.stop();
        assert!(!log.iter().any(|line| line.contains("WARN")), "{log:#?}");
    }
}

/// What Redis refuses after the start has changed nothing, and its visitor is answered at once.
#[tokio::test]
async fn a_right_that_is_taken_away() {
    let mut redis = Redis::start();
    restrict(&mut redis, &[]);
    let url = format!("redis://ada:{MARK}@localhost:{}", redis.port);
    let service = Service::start([("REDIS_URL", url.as_str())]);
    let mut visitors = vec![Visitor::new(); 5];
    join_all(visitors.iter_mut().map(|visitor| visitor.count(&service, "/"))).await;
    let mut counts = [1; 5];
    let has_ifeq = redis.has_ifeq();
    for change in [&["-set"][..], &["-getex"], &["-evalsha"], &["-eval", "-evalsha"], &["resetkeys"], &["-@all"]] {
        redis.expect_ok(&[&["ACL", "SETUSER", "ada"], change].concat());
        let can_set = !matches!(change[0], "-set" | "resetkeys" | "-@all");
        // Nobody needs GETEX whose session the instance knows, nor a script where the server knows `SET … IFEQ`.
        let can_change = can_set && (has_ifeq || !change.contains(&"-evalsha"));
        let status = |can: bool| if can { 200 } else { 503 };
        for (visitor, count) in visitors.iter_mut().zip(&mut counts) {
            let answer = visitor.view(&service, "/").await;
            assert_eq!(answer.status, status(can_change), "{change:?}: {answer:?}");
            *count += u64::from(can_change);
        }
        assert_eq!(Visitor::new().view(&service, "/").await.status, status(can_set), "{change:?}, a new visitor");
        let ready = Visitor::new().view(&service, "/health/ready").await.status;
        assert_eq!(ready, status(can_set), "{change:?}, /health/ready");
        restrict(&mut redis, &[]);
        // A refused view is not counted. From now on, the instance knows the session again.
        for (visitor, count) in visitors.iter_mut().zip(&mut counts) {
            *count += 1;
            assert_eq!(visitor.count(&service, "/").await, *count, "after {change:?}");
        }
    }
    // No refusal was taken for silence.
    let log = service.stop();
    assert!(!log.iter().any(|line| line.contains("does not answer")), "{log:#?}");
    assert!(log.iter().any(|line| line.contains("Redis refuses")), "{log:#?}");
}

#[test]
fn a_user_who_lacks_a_right() {
    for (change, cause) in [
        (&["-set"][..], "set"),
        (&["-getex"], "getex"),
        (&["-del"], "del"),
        (&["resetkeys", "~sessions:*"], "key"),
        (&["resetkeys"], "key"),
    ] {
        let mut redis = Redis::start();
        restrict(&mut redis, change);
        assert_exits(&format!("redis://ada:{MARK}@localhost:{}", redis.port), None, cause);
    }
    // Where the server lacks SET … IFEQ.
    if !Redis::start().has_ifeq() {
        for command in ["eval", "evalsha"] {
            let mut redis = Redis::start();
            restrict(&mut redis, &[&format!("-{command}")]);
            assert_exits(&format!("redis://ada:{MARK}@localhost:{}", redis.port), None, command);
        }
    }
    let mut redis = Redis::start();
    restrict(&mut redis, &[]);
    assert_exits(&format!("redis://ada:{MARK}@localhost:{}/1", redis.port), None, "select");
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

async fn assert_keeps_running(url: &str) -> Vec<String> {
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
    log
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
