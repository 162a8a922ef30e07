//! Views that were sent and wait for their answers.

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Proxy, Service, Visitor, eventually, visitor::number};

/// A view of `/` on a connection of its own, whose answer is not read yet.
pub struct Waiting(TcpStream);

impl Waiting {
    /// Sends the view of a visitor who has a cookie.
    pub async fn send(service: &Service, visitor: &Visitor) -> Self {
        let cookie = visitor.cookie.as_deref().unwrap();
        let request = format!("GET / HTTP/1.1\r\nhost: localhost\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(("127.0.0.1", service.port)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        Self(stream)
    }

    /// Sends so many views of one visitor, and waits until the service has read them.
    pub async fn send_all(service: &Service, visitor: &Visitor, views: u64) -> Vec<Self> {
        let mut waiting = Vec::new();
        for view in 1..=views {
            waiting.push(Self::send(service, visitor).await);
            // Often enough that the accept queue does not fill up, and after the last one.
            if view % 500 == 0 || view == views {
                service.wait_until_all_is_read().await;
            }
        }
        waiting
    }

    /// Holds replies back, and sends a view of each of these visitors, the others once the first one's call is in
    /// flight. Returns when the service has read all. The caller opens the proxy.
    pub async fn send_behind_a_call(proxy: &Proxy, service: &Service, visitors: &[Visitor]) -> Vec<Self> {
        let (first, others) = visitors.split_first().unwrap();
        let before = proxy.calls();
        proxy.close();
        let mut waiting = vec![Self::send(service, first).await];
        eventually("a call", async || (proxy.calls() > before).then_some(())).await;
        for visitor in others {
            waiting.push(Self::send(service, visitor).await);
        }
        service.wait_until_all_is_read().await;
        waiting
    }

    /// The whole answer.
    pub async fn answer(mut self) -> String {
        let mut answer = String::new();
        self.0.read_to_string(&mut answer).await.unwrap();
        answer
    }

    pub async fn count(self) -> u64 {
        let answer = self.answer().await;
        number(&answer).unwrap_or_else(|| panic!("no sentence: {answer}"))
    }

    pub async fn counts(waiting: Vec<Self>) -> Vec<u64> {
        join_all(waiting.into_iter().map(Self::count)).await
    }
}
