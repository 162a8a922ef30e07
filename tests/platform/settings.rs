//! Promise: every setting is read from the environment or a flag. An invalid value makes the program
//! exit at once, with one line that names the setting, the error and the allowed values, and contains
//! no secret.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    process::{Command, Stdio},
};

use crate::common::{Process, Redis, Service, TIMEOUT, Visitor, eventually, free_port, program, run};

/// Part of most secrets in this file. It must not be printed.
const MARK: &str = "hunter2";

/// Those that the help lists.
const VARIABLES: [&str; 9] = [
    "PORT",
    "REDIS_URL",
    "SESSION_TTL",
    "SESSION_MAX_AGE",
    "SESSION_SECRET",
    "SESSION_SECRET_PREVIOUS",
    "SECURE_COOKIE",
    "SESSION_COOKIE",
    "RUST_LOG",
];

/// Asserts that the program exits with one line that contains these parts.
fn assert_refused(program: &mut Command, parts: &[&str]) {
    let (code, stdout, stderr) = run(program, TIMEOUT);
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(!stderr.contains(MARK), "prints a secret: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
}

#[test]
fn an_invalid_value_is_refused_from_the_environment_and_from_a_flag() {
    const URLS: &str =
        "redis://, rediss://, redis-cluster://, rediss-cluster://, redis-sentinel://, rediss-sentinel://";
    let long = MARK.repeat(10);
    let invalid: &[(&str, &str, &[&str])] = &[
        ("PORT", "", &["PORT", "0 to 65535"]),
        ("PORT", "http", &["PORT", "0 to 65535"]),
        ("SECURE_COOKIE", "yes", &["SECURE_COOKIE", "true, false"]),
        ("SESSION_SECRET_PREVIOUS", "short", &["SESSION_SECRET_PREVIOUS", "32"]),
        (
            "SESSION_SECRET_PREVIOUS",
            "a secret of more than 32 characters",
            &["SESSION_SECRET_PREVIOUS", "SESSION_SECRET"],
        ),
        ("PORT", "65536", &["PORT", "0 to 65535"]),
        ("PORT", "-1", &["PORT", "0 to 65535"]),
        ("SESSION_TTL", "0", &["SESSION_TTL", "1 to 4294967295"]),
        ("SESSION_TTL", "-5", &["SESSION_TTL", "1 to 4294967295"]),
        ("SESSION_TTL", "1h", &["SESSION_TTL", "1 to 4294967295"]),
        ("SESSION_TTL", "1.5", &["SESSION_TTL", "1 to 4294967295"]),
        ("SESSION_TTL", "4294967296", &["SESSION_TTL", "1 to 4294967295"]),
        ("SESSION_MAX_AGE", "", &["SESSION_MAX_AGE", "1 to 4294967295"]),
        ("SESSION_MAX_AGE", "0", &["SESSION_MAX_AGE", "1 to 4294967295"]),
        ("SESSION_MAX_AGE", "1d", &["SESSION_MAX_AGE", "1 to 4294967295"]),
        ("SESSION_MAX_AGE", "4294967296", &["SESSION_MAX_AGE", "1 to 4294967295"]),
        ("SESSION_SECRET", "", &["SESSION_SECRET", "0 characters", "32 or more"]),
        ("SESSION_SECRET", "hunter2", &["SESSION_SECRET", "7 characters", "32 or more"]),
        // 30 characters in 60 bytes.
        ("SESSION_SECRET", &"ä".repeat(30), &["SESSION_SECRET", "30 characters", "32 or more"]),
        // 31 characters and a line break, which does not count.
        ("SESSION_SECRET", &format!("{}\r\n", "x".repeat(31)), &["SESSION_SECRET", "31 characters", "32 or more"]),
        ("SESSION_SECRET_PREVIOUS", &format!("{}\n", "x".repeat(31)), &["SESSION_SECRET_PREVIOUS", "31 characters"]),
        ("SESSION_COOKIE", "", &["SESSION_COOKIE", "1 to 256"]),
        ("SESSION_COOKIE", "hunter2 a", &["SESSION_COOKIE", "letters, digits"]),
        ("SESSION_COOKIE", "hunter2=", &["SESSION_COOKIE", "letters, digits"]),
        ("SESSION_COOKIE", "hunter2;", &["SESSION_COOKIE", "letters, digits"]),
        ("SESSION_COOKIE", "hunter2\n", &["SESSION_COOKIE", "letters, digits"]),
        ("SESSION_COOKIE", "\"hunter2\"", &["SESSION_COOKIE", "letters, digits"]),
        ("SESSION_COOKIE", "hunter2ä", &["SESSION_COOKIE", "letters, digits"]),
        ("SESSION_COOKIE", &"x".repeat(257), &["SESSION_COOKIE", "1 to 256"]),
        ("SESSION_COOKIE", "__Host-hunter2", &["SESSION_COOKIE", "Secure", "SECURE_COOKIE=true"]),
        ("SESSION_COOKIE", "__hOST-hunter2", &["SESSION_COOKIE", "Secure", "SECURE_COOKIE=true"]),
        ("SESSION_COOKIE", "__Secure-hunter2", &["SESSION_COOKIE", "Secure", "SECURE_COOKIE=true"]),
        ("SESSION_COOKIE", "__http-hunter2", &["SESSION_COOKIE", "Secure", "SECURE_COOKIE=true"]),
        ("RUST_LOG", "", &["RUST_LOG", "no level", "info or debug"]),
        ("RUST_LOG", "loud", &["RUST_LOG", "no level", "info or debug"]),
        ("RUST_LOG", "info,loud", &["RUST_LOG", "no level", "info or debug"]),
        ("RUST_LOG", "cloud_run_sessions=loud", &["RUST_LOG", "info or debug"]),
        ("RUST_LOG", "warn,", &["RUST_LOG", "no level", "info or debug"]),
        ("RUST_LOG", "hyper=", &["RUST_LOG", "no level", "info or debug"]),
        ("RUST_LOG", "info;hyper=debug", &["RUST_LOG", "no level", "info or debug"]),
        ("RUST_LOG", "info, hyper=debug", &["RUST_LOG", "no level", "info or debug"]),
        ("REDIS_URL", "", &["REDIS_URL", "scheme", URLS]),
        ("REDIS_URL", "hunter2", &["REDIS_URL", "scheme", URLS]),
        ("REDIS_URL", &long, &["REDIS_URL", "scheme", URLS]),
        ("REDIS_URL", "localhost:6379", &["REDIS_URL", "scheme", URLS]),
        ("REDIS_URL", "http://:hunter2@localhost", &["REDIS_URL", "scheme", URLS]),
        ("REDIS_URL", "redis+unix://:hunter2@localhost/x", &["REDIS_URL", "scheme", URLS]),
        ("REDIS_URL", "hunter2://localhost", &["REDIS_URL", "scheme", URLS]),
        ("REDIS_URL", "redis://", &["REDIS_URL", "host", URLS]),
        ("REDIS_URL", "redis://:hunter2@", &["REDIS_URL", "host", URLS]),
        ("REDIS_URL", "redis://:hunter2@/1", &["REDIS_URL", "host", URLS]),
        ("REDIS_URL", "redis://:hunter2@localhost:hunter2", &["REDIS_URL", "port", URLS]),
        ("REDIS_URL", "redis://:hunter2@localhost:65536", &["REDIS_URL", "port", URLS]),
        ("REDIS_URL", "redis://:hunter2@localhost/hunter2", &["REDIS_URL", "malformed", URLS]),
        ("REDIS_URL", "redis://:hunter2@localhost/1/2", &["REDIS_URL", "database", URLS]),
        ("REDIS_URL", "redis://:hunter2#@localhost", &["REDIS_URL", "malformed", URLS]),
        ("REDIS_URL", "redis://:hunter2%ff@localhost", &["REDIS_URL", "malformed", URLS]),
        ("REDIS_URL", "redis://:hunter2\n@localhost", &["REDIS_URL", "line break", URLS]),
        ("REDIS_URL", "redis://:hunter2@localhost/\t1", &["REDIS_URL", "line break", URLS]),
        ("REDIS_URL", "redis://localhost\nredis://hunter2", &["REDIS_URL", "line break", URLS]),
        ("REDIS_URL", "redis://localhost:0", &["REDIS_URL", "port 0", URLS]),
        ("REDIS_URL", "redis://one,two", &["REDIS_URL", "host", URLS]),
        // Nothing in a URL is ignored: what is not used is refused.
        ("REDIS_URL", "redis://localhost?db=3", &["REDIS_URL", "parameter", "redis:// does not know: db;", URLS]),
        ("REDIS_URL", "redis://localhost/3?db=3", &["REDIS_URL", "does not know: db;", "[/database]", URLS]),
        ("REDIS_URL", "redis://localhost?ssl=true", &["REDIS_URL", "does not know: ssl;", "rediss://", URLS]),
        ("REDIS_URL", "rediss://localhost?ssl_cert_reqs=none", &["REDIS_URL", "does not know: ssl_cert_reqs;", URLS]),
        ("REDIS_URL", "redis://localhost?node=localhost:1", &["REDIS_URL", "redis:// does not know: node;", URLS]),
        ("REDIS_URL", "redis://localhost?sentinelServiceName=main", &["REDIS_URL", "sentinelServiceName;", URLS]),
        ("REDIS_URL", "redis-cluster://localhost?sentinelPassword=hunter2", &["REDIS_URL", "sentinelPassword;", URLS]),
        ("REDIS_URL", "redis://localhost?password=hunter2", &["REDIS_URL", "does not know: password;", URLS]),
        ("REDIS_URL", "redis://localhost?hunter2", &["REDIS_URL", "parameter", URLS]),
        ("REDIS_URL", "redis://ada:1?hunter@localhost", &["REDIS_URL", "parameter", "may be a secret", URLS]),
        ("REDIS_URL", "redis-cluster://localhost/3", &["REDIS_URL", "only database 0", URLS]),
        ("REDIS_URL", "redis-cluster://localhost/hunter2", &["REDIS_URL", "path", "database", URLS]),
        ("REDIS_URL", "redis://localhost//3", &["REDIS_URL", "path", "database", URLS]),
        ("REDIS_URL", "redis://localhost/+3", &["REDIS_URL", "path", "database", URLS]),
        ("REDIS_URL", "redis://localhost/256", &["REDIS_URL", "database", "malformed", URLS]),
        ("REDIS_URL", "redis://localhost/1#hunter2", &["REDIS_URL", "fragment", URLS]),
        ("REDIS_URL", "redis://hunter2@localhost", &["REDIS_URL", "user without a password", URLS]),
        ("REDIS_URL", "redis://ada:@localhost", &["REDIS_URL", "user without a password", URLS]),
        ("REDIS_URL", "redis-cluster://localhost?node=other", &["REDIS_URL", "node", "host:port", URLS]),
        ("REDIS_URL", "redis-cluster://localhost?node=:hunter2@other:1", &["REDIS_URL", "node", "host:port", URLS]),
        ("REDIS_URL", "redis-sentinel://localhost?sentinelServiceName=", &["REDIS_URL", "empty sentinelServiceName"]),
        ("GOOGLE_CLOUD_PROJECT", "", &["GOOGLE_CLOUD_PROJECT", "is empty"]),
        (
            "REDIS_URL",
            "redis-sentinel://localhost?sentinelServiceName=a&sentinelServiceName=b",
            &["REDIS_URL", "sentinelServiceName twice", URLS],
        ),
        (
            "REDIS_URL",
            "redis-sentinel://localhost?sentinelServiceName=a&sentinelUsername=ada",
            &["REDIS_URL", "sentinelUsername without sentinelPassword", URLS],
        ),
        (
            "REDIS_URL",
            "redis-sentinel://:hunter2@localhost",
            &["REDIS_URL", "sentinel service name", "?sentinelServiceName=name", URLS],
        ),
    ];
    for (name, value, parts) in invalid {
        assert_refused(program([]).env(name, value), parts);
        let flag = format!("--{}={value}", name.to_lowercase().replace('_', "-"));
        assert_refused(program([]).arg(flag), parts);
    }
    for name in VARIABLES.into_iter().chain(["GOOGLE_CLOUD_PROJECT", "K_REVISION"]) {
        assert_refused(program([]).env(name, OsStr::from_bytes(b"hunter2\xff")), &[name, "UTF-8"]);
    }
}

#[test]
fn an_invalid_flag_is_refused() {
    assert_refused(program([]).arg("--port"), &["--port", "--help"]);
    assert_refused(program([]).args(["--port=1", "--port=2"]), &["--port", "--help"]);
    for unknown in [
        "--prot=80",
        "redis://:hunter2@localhost",
        "--redis-urlredis://:hunter2@localhost",
        "--session-secrethunter2hunter2hunter2hunter2hunter2",
        "-xhunter2",
    ] {
        assert_refused(program([]).arg(unknown), &["unknown", "--help"]);
    }
}

#[test]
fn unreadable_certificates_are_named() {
    let url = "rediss://:hunter2@localhost";
    let settings = [("REDIS_URL", url), ("SSL_CERT_FILE", "/nonexistent")];
    assert_refused(&mut program(settings), &["REDIS_URL", "TLS", "SSL_CERT_FILE"]);
}

#[test]
fn cloud_run_without_redis_is_refused() {
    let parts = ["REDIS_URL", "not set", "Cloud Run", "redis://"];
    assert_refused(program([]).env("K_SERVICE", "sessions"), &parts);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, _, stderr) = run(program([]).env("PORT", &port), TIMEOUT);
    assert_eq!(code, Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("PORT") && stderr.contains(&port), "{stderr}");
}

#[test]
fn help_lists_the_settings_and_shows_no_secret() {
    let url = format!("redis://:{MARK}@localhost");
    let secret = MARK.repeat(10);
    let secrets = [("REDIS_URL", url.as_str()), ("SESSION_SECRET", secret.as_str())];
    for flag in ["--help", "-h"] {
        let (code, stdout, stderr) = run(program(secrets).arg(flag), TIMEOUT);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        assert!(!stdout.contains(MARK), "{stdout}");
        for name in VARIABLES {
            let flag = format!("--{} ", name.to_lowercase().replace('_', "-"));
            assert!(stdout.contains(&flag) && stdout.contains(name), "no {name} in {stdout}");
        }
        for default in ["8080", "86400", "info"] {
            assert!(stdout.contains(&format!("[default: {default}]")), "{stdout}");
        }
    }
}

#[test]
fn version_is_that_of_the_package() {
    let (code, stdout, _) = run(program([]).arg("--version"), TIMEOUT);
    let expected = format!("cloud-run-sessions {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((code, stdout), (Some(0), expected));
}

#[tokio::test]
async fn a_flag_overrides_the_environment() {
    let port = free_port().to_string();
    let mut program = program([("PORT", "1")]);
    let _process = Process::spawn(program.args(["--port", &port]).stdout(Stdio::null()));
    eventually("the program listens on the port", async || {
        reqwest::get(format!("http://127.0.0.1:{port}/health/live")).await.ok()
    })
    .await;
}

#[tokio::test]
async fn the_shortest_and_the_longest_time_to_live_work() {
    let redis = Redis::start();
    for ttl in ["1", "4294967295"] {
        for url in [Some(redis.url()), None] {
            let url = url.as_deref().map(|url| ("REDIS_URL", url));
            let service = Service::start(url.into_iter().chain([("SESSION_TTL", ttl)]));
            let mut visitor = Visitor::new();
            assert_eq!(visitor.count(&service, "/").await, 1);
            // On a busy machine, a session of 1 s may have expired by then.
            let again = visitor.count(&service, "/").await;
            assert!(again == 2 || ttl == "1", "{again}");
        }
    }
}

#[tokio::test]
async fn credentials_and_database_of_the_url_are_used() {
    let redis = Redis::start();
    // The password contains characters that must be escaped in a URL.
    redis.cli(&["ACL", "SETUSER", "ada", "on", ">p@ss:word/", "~*", "&*", "+@all"]);
    redis.cli(&["ACL", "SETUSER", "default", "off"]);
    // A secret often ends with a line break.
    let url = format!("redis://ada:p%40ss%3Aword%2F@localhost:{}/3\n", redis.port);
    let service = Service::start([("REDIS_URL", url.as_str())]);
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&service, "/").await, 1);
    assert_eq!(visitor.count(&service, "/").await, 2);
    let info = redis.cli(&["--user", "ada", "--pass", "p@ss:word/", "INFO", "keyspace"]);
    assert!(info.contains("db3:keys=1"), "{info}");
    let log = service.stop();
    assert!(!log.iter().any(|line| line.contains("p@ss")), "{log:#?}");
}
