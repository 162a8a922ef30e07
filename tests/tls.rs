//! Promise: with `rediss://`, the service uses Redis over TLS if the certificate is signed by a trusted
//! authority.

use crate::common::{Authority, Service, Visitor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
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
    let views = keys.iter().filter(|key| key.starts_with("v:"));
    assert_eq!(views.count(), 1, "{keys:#?}");
    // That Redis accepts only TLS.
    let mut plain = TcpStream::connect(("127.0.0.1", redis.port)).await.unwrap();
    plain.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(
        !answer.starts_with(b"+") && !answer.starts_with(b"-"),
        "Redis replies without TLS: {}",
        String::from_utf8_lossy(&answer)
    );
}
