//! Host names with several addresses, of which some may not answer: IPv6 ones without a way out, a server that is gone.
//!
//! fred 10.1 tries the addresses of a name one after another, all within one limit of time. If the first answers nothing,
//! not even with a refusal, no other is reached. So the first address to answer is found beforehand, as in RFC 8305.

use std::{net::SocketAddr, time::Duration};

use fred::types::config::{Config, Server, ServerConfig};
use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use tokio::{
    net::{TcpStream, lookup_host},
    time::{sleep, timeout},
};

/// How long an address may take before the next one is tried as well: RFC 8305's Connection Attempt Delay.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// If none has answered by then, fred tries on its own, and says what is wrong.
const GIVE_UP_AFTER: Duration = Duration::from_millis(1500);

/// The same settings, but names with several addresses are replaced by the address that answers first. The certificate
/// must still name the host of the URL. fred 10.1 would verify an IPv6 address with the URL's brackets, which
/// certificates do not have; so the name to verify is set without them.
pub async fn with_reachable_addresses(config: &Config) -> Config {
    let mut config = config.clone();
    let servers = match &mut config.server {
        ServerConfig::Centralized { server } => std::slice::from_mut(server),
        ServerConfig::Clustered { hosts, .. } | ServerConfig::Sentinel { hosts, .. } => hosts.as_mut_slice(),
    };
    join_all(servers.iter_mut().map(async |server| {
        // A name that cannot be looked up must not hold up the others.
        let found = timeout(GIVE_UP_AFTER, lookup_host((&*server.host, server.port))).await;
        let addresses: Vec<_> = found.ok().and_then(Result::ok).map(Iterator::collect).unwrap_or_default();
        *server = with_reachable_address(server, &addresses).await;
        let bare = server.host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        server.tls_server_name = server.tls_server_name.take().or(bare.map(Into::into));
    }))
    .await;
    config
}

/// The server at the address that answers first, or as it was if none answers. (fred looks the name up again, and the order
/// of its addresses may change from time to time.)
async fn with_reachable_address(server: &Server, addresses: &[SocketAddr]) -> Server {
    if addresses.len() < 2 {
        return server.clone();
    }
    let address = timeout(GIVE_UP_AFTER, first_to_answer(addresses)).await.ok().flatten();
    match address {
        Some(address) => {
            let host = if address.is_ipv6() { format!("[{}]", address.ip()) } else { address.ip().to_string() };
            Server::new_with_tls(host, server.port, Some(server.host.to_string()))
        }
        None => server.clone(),
    }
}

async fn first_to_answer(addresses: &[SocketAddr]) -> Option<SocketAddr> {
    let mut addresses = addresses.iter().copied();
    let mut attempts = FuturesUnordered::new();
    loop {
        if let Some(address) = addresses.next() {
            attempts.push(async move { TcpStream::connect(address).await.is_ok().then_some(address) });
        }
        let is_last = addresses.len() == 0;
        tokio::select! {
            answer = attempts.next() => match answer {
                Some(Some(address)) => return Some(address),
                // It was refused: the next one at once.
                Some(None) => {}
                None => return None,
            },
            () = sleep(ATTEMPT_DELAY), if !is_last => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// A listener that takes no connection and refuses none, like a host behind a router that drops packets.
    async fn black_hole() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(connection) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            queued.push(connection.unwrap());
            assert!(queued.len() < 1000, "the queue of connections has no end");
        }
        (address, listener, queued)
    }

    #[tokio::test]
    async fn the_address_that_answers_is_taken() {
        let (silent, _listener, _queued) = black_hole().await;
        let listening = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let open = listening.local_addr().unwrap();
        let refusing = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
        let server = Server::new("redis.example", 6379);
        let moved = Server::new_with_tls("127.0.0.1", 6379, Some("redis.example".to_owned()));
        for (addresses, expected) in [
            (vec![silent, open], &moved),
            (vec![refusing, open], &moved),
            (vec![silent, refusing, silent, open], &moved),
            (vec![open, silent], &moved),
            (vec![silent, refusing], &server),
            (vec![refusing, refusing], &server),
            (vec![open], &server),
            (vec![], &server),
        ] {
            let found = with_reachable_address(&server, &addresses).await;
            assert_eq!((&found, &found.tls_server_name), (expected, &expected.tls_server_name), "{addresses:?}");
        }
    }
}
