//! Promise: the log is quiet, reports each failure once, names the request's trace on Cloud Run, and
//! never contains a session id, a secret or a password.

use crate::common::{BROWSER, Proxy, Redis, Service, Visitor, eventually, session_id, threads};
use reqwest::{Method, header::HeaderValue};
use serde_json::Value;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SECRET: &str = "signed with this, which nobody may read";
const PASSWORD: &str = "hunter2";

/// A header's value that names the trace.
fn traceparent() -> String {
    format!("00-{TRACE}-00f067aa0ba902b7-01")
}

#[tokio::test]
async fn a_view_logs_nothing() {
    let redis = Redis::start();
    for service in [Service::on(&redis), Service::start([])] {
        let mut visitor = Visitor::new();
        visitor.view(&service, "/").await;
        for path in ["/", "/foo", "/unknown", "/health/ready", "/"] {
            visitor.view(&service, path).await;
            Visitor::with_cookie("id=malformed").view(&service, path).await;
            Visitor::with_cookie("id=AAAAAAAAAAAAAAAAAAAAAA").view(&service, path).await;
        }
        // The store, the address, and the shutdown.
        let log = service.stop();
        assert_eq!(log.len(), 3, "{log:#?}");
    }
}

#[tokio::test]
async fn an_outage_and_its_end_are_logged_once() {
    let redis = Redis::start();
    let port = redis.port;
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    drop(redis);
    // A returning visitor, a new one, and one with an unknown id.
    let mut failed = [visitor.clone(), Visitor::new(), Visitor::with_cookie("id=AAAAAAAAAAAAAAAAAAAAAA")];
    for visitor in &mut failed {
        assert_eq!(visitor.request(Method::GET, &service, "/", BROWSER).await.status, 503);
    }
    let _redis = Redis::start_on(port);
    let lines = |log: Vec<String>, part: &str| log.iter().filter(|line| line.contains(part)).count();
    eventually("the reconnect is logged", async || (lines(service.log(), "connected to Redis") == 2).then_some(()))
        .await;
    visitor.view(&service, "/").await;
    let log = service.stop();
    // The first if a command was in flight when the connection ended, else the second.
    let outages = ["the connection to Redis is lost", "Redis cannot be reached:"];
    assert_eq!(outages.map(|line| lines(log.clone(), line)).iter().sum::<usize>(), 1, "{log:#?}");
    assert_eq!(lines(log.clone(), "connected to Redis"), 2, "{log:#?}");
    assert_eq!(lines(log.clone(), "could not be used"), 1, "{log:#?}");
    assert_eq!(lines(log.clone(), "WARN"), 2, "{log:#?}");
}

#[tokio::test]
async fn the_first_503_of_each_outage_is_a_warning_with_its_trace() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let url = proxy.url();
    let settings = [("K_SERVICE", "sessions"), ("GOOGLE_CLOUD_PROJECT", "a-project"), ("REDIS_URL", url.as_str())];
    let service = Service::start(settings);
    let mut visitor = Visitor::new();
    visitor.headers.insert("traceparent", traceparent().parse().unwrap());
    assert_eq!(visitor.count(&service, "/").await, 1);
    for outage in 1..=2 {
        proxy.close();
        for _ in 0..2 {
            assert_eq!(visitor.view(&service, "/").await.status, 503);
        }
        proxy.open();
        service.wait_until_ready().await;
        let warnings = entries(&service).into_iter().filter(|entry| {
            entry["severity"] == "WARNING" && entry["message"].as_str().unwrap().contains("could not be used")
        });
        let warnings: Vec<_> = warnings.collect();
        assert_eq!(warnings.len(), outage, "{warnings:#?}");
        let trace = format!("projects/a-project/traces/{TRACE}");
        assert!(warnings.iter().all(|entry| entry["logging.googleapis.com/trace"] == trace), "{warnings:#?}");
    }
}

#[tokio::test]
async fn an_eviction_policy_is_named_once() {
    for policy in ["noeviction", "allkeys-lru"] {
        let redis = Redis::start_with(&["--maxmemory-policy", policy]);
        let mut monitor = redis.monitor();
        let service = Service::on(&redis);
        service.wait_until_ready().await;
        let commands = monitor.commands();
        let asked = commands.iter().filter(|command| *command == "\"INFO\"").count();
        // A thread does not ask if another one is connected already.
        assert!((1..=threads()).contains(&asked), "{commands:#?}");
        let log = service.stop();
        let warnings = log.iter().filter(|line| line.contains("WARN") && line.contains(policy)).count();
        assert_eq!(warnings, usize::from(policy != "noeviction"), "{log:#?}");
    }
    // A server that does not say it, as serverless ones may.
    let redis = Redis::start_with(&["--maxmemory-policy", "allkeys-lru", "--rename-command", "INFO", ""]);
    let service = Service::on(&redis);
    service.wait_until_ready().await;
    let log = service.stop();
    assert!(!log.iter().any(|line| line.contains("WARN")), "{log:#?}");
}

#[tokio::test]
async fn plain_http_with_a_secure_cookie_is_a_warning_once() {
    const HTTP: (&str, &str) = ("x-forwarded-proto", "http");
    for (secure, header, warnings) in [
        ("true", HTTP, 1),
        ("true", ("x-forwarded-proto", "http, https"), 1),
        ("true", ("forwarded", "for=192.0.2.1;proto=http"), 1),
        ("true", ("x-forwarded-proto", "https"), 0),
        ("true", ("x-forwarded-for", "192.0.2.1"), 0),
        ("false", HTTP, 0),
    ] {
        let service = Service::start([("SECURE_COOKIE", secure)]);
        for _ in 0..3 {
            let mut visitor = Visitor::new();
            visitor.headers.insert(header.0, HeaderValue::from_static(header.1));
            assert_eq!(visitor.count(&service, "/").await, 1);
        }
        let log = service.stop();
        let told = log.iter().filter(|line| line.contains("WARN") && line.contains("SECURE_COOKIE=false")).count();
        assert_eq!(told, warnings, "{secure} {header:?}: {log:#?}");
    }
}

#[tokio::test]
async fn a_start_without_redis_is_logged_once() {
    let service = Service::start([]);
    Visitor::new().view(&service, "/").await;
    let log = service.stop();
    assert_eq!(log.iter().filter(|line| line.contains("REDIS_URL")).count(), 1, "{log:#?}");
}

/// Parses the log and asserts that each line has the fields of Cloud Logging.
fn entries(service: &Service) -> Vec<Value> {
    let entries: Vec<Value> = service
        .log()
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
        .collect();
    for entry in &entries {
        let severity = entry["severity"].as_str().unwrap();
        assert!(["DEBUG", "INFO", "WARNING", "ERROR"].contains(&severity), "{entry}");
        assert!(entry["message"].is_string(), "{entry}");
        let time = entry["time"].as_str().unwrap();
        assert!(time.len() > 20 && time.contains('T') && time.ends_with('Z'), "{entry}");
    }
    entries
}

#[tokio::test]
async fn on_cloud_run_lines_are_json_with_the_trace() {
    let redis = Redis::start();
    let service = Service::start([
        ("K_SERVICE", "sessions"),
        ("GOOGLE_CLOUD_PROJECT", "a-project"),
        ("REDIS_URL", &redis.url()),
        ("RUST_LOG", "cloud_run_sessions=debug"),
    ]);
    Visitor::new().view(&service, "/").await;
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let traceparent = traceparent();
    let cases = [
        ("traceparent", traceparent.as_str(), true),
        ("x-cloud-trace-context", &format!("{TRACE}/1;o=1"), true),
        ("x-cloud-trace-context", TRACE, true),
        ("x-other", &traceparent, false),
        ("traceparent", "00", false),
        ("traceparent", "00-4bf9-00f067aa0ba902b7-01", false),
        ("x-cloud-trace-context", "4bf92f3577b34da6a3ce929d0e0e473\"/1", false),
        ("x-cloud-trace-context", "", false),
    ];
    for (index, (name, value, has_trace)) in cases.into_iter().enumerate() {
        let mut visitor = Visitor::new();
        visitor.headers.insert(name, HeaderValue::from_str(value).unwrap());
        assert_eq!(visitor.view(&service, "/").await.status, 503);
        let warning = eventually("the warning", async || {
            // The first is a warning, the others are debug lines.
            let is_ours = |entry: &Value| entry["message"].as_str().unwrap().contains("could not be used");
            entries(&service).into_iter().filter(is_ours).nth(index)
        })
        .await;
        let trace = warning.get("logging.googleapis.com/trace");
        let expected = Value::from(format!("projects/a-project/traces/{TRACE}"));
        assert_eq!(trace, has_trace.then_some(&expected), "{name}: {value}");
    }
    // A line that is logged outside a request has no trace.
    assert!(entries(&service)[0].get("logging.googleapis.com/trace").is_none());
}

#[tokio::test]
async fn no_secret_is_logged() {
    let redis = Redis::start_with(&["--requirepass", PASSWORD]);
    let service = Service::start([
        ("REDIS_URL", format!("redis://:{PASSWORD}@127.0.0.1:{}", redis.port).as_str()),
        ("SESSION_SECRET", SECRET),
        ("RUST_LOG", "trace,tower_sessions=trace,tower_sessions_core=trace"),
    ]);
    let mut secrets = vec![SECRET.to_owned(), PASSWORD.to_owned()];
    let mut visitor = Visitor::new();
    for path in ["/", "/", "/foo"] {
        visitor.view(&service, path).await;
        secrets.extend(visitor.cookie.clone());
        secrets.extend(visitor.cookie.as_deref().map(session_id));
    }
    // Without its record, the session layer loads the session once more.
    redis.cli(&["-a", PASSWORD, "DEL", &session_id(visitor.cookie.as_ref().unwrap())]);
    visitor.view(&service, "/").await;
    drop(redis);
    visitor.view(&service, "/").await;
    let log = service.stop();
    assert!(log.iter().any(|line| line.contains("WARN")), "{log:#?}");
    for line in &log {
        let leaked = secrets.iter().find(|secret| line.contains(secret.as_str()));
        assert_eq!(leaked, None, "{line}");
    }
}
