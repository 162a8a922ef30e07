//! Promise: with `rediss://`, `rediss-cluster://` and `rediss-sentinel://`, the service uses Redis over TLS if the
//! certificates are signed by a trusted authority. Cluster and Sentinel name servers by address, so those servers'
//! certificates hold addresses, as Memorystore's do.

use crate::common::{Authority, Cluster, Redis, Service, TIMEOUT, Visitor, has_ipv6, leave_out, sentinel_with};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

#[tokio::test]
async fn sessions_are_stored_in_redis_over_tls() {
    let authority = Authority::new();
    let redis = authority.redis("localhost", "hunter2");
    let url = format!("rediss://:hunter2@localhost:{}", redis.port);
    let service = Service::start([("REDIS_URL", url.as_str()), ("SSL_CERT_FILE", &authority.file())]);
    let mut visitor = Visitor::new();
    for view in 1..=3 {
        assert_eq!(visitor.count(&service, "/foo").await, view);
    }
    let keys = redis.keys();
    assert_eq!(keys.len(), 1, "{keys:#?}");
    // That Redis accepts only TLS.
    let mut plain = TcpStream::connect(("127.0.0.1", redis.port)).await.unwrap();
    plain.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
    let mut answer = [0; 64];
    let read = timeout(TIMEOUT, plain.read(&mut answer)).await.expect("Redis neither replies nor closes");
    let answer = String::from_utf8_lossy(&answer[..read.unwrap_or(0)]);
    assert!(!answer.starts_with(['+', '-']), "Redis replies without TLS: {answer}");
}

/// A URL puts brackets around it, a certificate does not.
#[tokio::test]
async fn the_host_is_an_ipv6_address() {
    if !has_ipv6() {
        leave_out("since the system has no IPv6");
        return;
    }
    let authority = Authority::new();
    let redis = Redis::start_with_port(|port| {
        let mut options = authority.server_options(port, "::1");
        options.extend(["--bind", "::1"].map(str::to_owned));
        options
    });
    assert_counts(&authority, &format!("rediss://[::1]:{}", redis.port)).await;
}

/// Starts the service, and views a page as ten visitors.
async fn assert_counts(authority: &Authority, url: &str) {
    let service = Service::start([("REDIS_URL", url), ("SSL_CERT_FILE", &authority.file())]);
    service.wait_until_ready().await;
    for _ in 0..10 {
        let mut visitor = Visitor::new();
        for view in 1..=3 {
            assert_eq!(visitor.count(&service, "/foo").await, view);
        }
    }
}

#[tokio::test]
async fn sessions_are_stored_in_a_cluster_over_tls() {
    let authority = Authority::new();
    let cluster = Cluster::start_with_tls(&authority).await;
    assert_counts(&authority, &cluster.short_url().replace("redis-", "rediss-")).await;
    let keys = cluster.keys();
    assert_eq!(keys.concat().len(), 10, "{keys:?}");
}

#[tokio::test]
async fn sessions_are_stored_behind_a_sentinel_over_tls() {
    let authority = Authority::new();
    let mut redis = Redis::start_with_port(|port| authority.server_options(port, "127.0.0.1"));
    redis.cli_options = authority.cli_options();
    let sentinel = sentinel_with(&redis, |port| authority.server_options(port, "127.0.0.1"));
    let url = format!("rediss-sentinel://127.0.0.1:{}?sentinelServiceName=main", sentinel.port);
    assert_counts(&authority, &url).await;
    assert_eq!(redis.keys().len(), 10);
}
