//! The listener, HTTP's timeouts and the graceful shutdown, for any service.

use std::{
    convert::Infallible,
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{body::Body, extract::Request, response::Response};
use futures_util::FutureExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::sleep,
};
use tower::{Service, ServiceExt};
use tracing::warn;

use crate::store::DEADLINE;

/// How long a connection may take to send the head of its first or next request, and so how long it may idle.
/// hyper would wait for ever without the timer, which `axum::serve` does not install.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);

/// The most bytes of a request's head. A longer one is answered 431.
const HEAD_MAX: usize = 64 * 1024;

/// How long a shutdown waits for requests in flight. The platform kills the process after 10 s.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

const _: () = assert!(DEADLINE.as_millis() < DRAIN_TIMEOUT.as_millis());

/// During a shutdown, how long a request that is on its way may take to arrive, and the last response to leave.
const LAST_MOMENTS: Duration = Duration::from_millis(200);

/// Length of the accept queue: the number of requests that Cloud Run sends at once. A connection beyond it waits
/// a second for its next try; tokio's default is 128.
const BACKLOG: u32 = 1000;

/// Pause after accepting fails, for example because too many files are open. By then connections may have ended.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Listens on all IPv4 interfaces, as Cloud Run demands.
///
/// # Errors
/// If the port is taken, or reserved for other users.
pub fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // Connections of a process that had the port just now may not have ended completely.
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::UNSPECIFIED, port).into())?;
    socket.listen(BACKLOG)
}

/// Resolves at SIGTERM, which platforms send, or at Ctrl-C. From this call on, neither ends the process.
///
/// # Errors
/// If signals cannot be caught.
pub fn shutdown_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Serves HTTP/1.1, and HTTP/2 without TLS to clients that begin with it.
///
/// At `shutdown` it stops accepting connections, closes idle ones, answers requests in flight, and returns. It does
/// not wait for clients that have not sent a request yet.
pub async fn serve<S>(listener: TcpListener, service: S, shutdown: impl Future<Output = ()>)
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        // Head and body are small: writing them in one piece is cheaper.
        .writev(false);
    http.http2().timer(TokioTimer::new()).keep_alive_interval(HEAD_TIMEOUT).max_header_list_size(HEAD_MAX as u32);

    let connections = GracefulShutdown::new();
    // Each request holds a sender until it is answered. The channel closes once the last one is dropped.
    let (in_flight, mut all_answered) = mpsc::channel::<Infallible>(1);
    let accept = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Responses are written in one piece, so nothing is gained by gathering them.
                    let _ = stream.set_nodelay(true);
                    let has_asked = Arc::new(AtomicBool::new(false));
                    let (asks, service) = (has_asked.clone(), service.clone());
                    let in_flight = in_flight.downgrade();
                    let on_request = service_fn(move |request: hyper::Request<Incoming>| {
                        asks.store(true, Relaxed);
                        let in_flight = in_flight.upgrade();
                        let response = service.clone().oneshot(request.map(Body::new));
                        response.inspect(move |_| drop(in_flight))
                    });
                    let connection = http.serve_connection(TokioIo::new(stream), on_request);
                    let connection = connections.watch(connection.into_owned());
                    tokio::spawn(async move {
                        tokio::select! {
                            // A client that disconnects is not worth a log line.
                            _ = connection => {}
                            () = silent(&has_asked) => {}
                        }
                    });
                }
                Err(error) => {
                    warn!("cannot accept connections: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = shutdown => {}
    }
    drop(listener);
    let answered = async {
        sleep(LAST_MOMENTS).await;
        drop(in_flight);
        all_answered.recv().await;
        sleep(LAST_MOMENTS).await;
    };
    tokio::select! {
        () = connections.shutdown() => {}
        () = answered => {}
        () = sleep(DRAIN_TIMEOUT) => warn!("stopping with requests unanswered"),
    }
}

/// Resolves if no request arrives in time. hyper starts its header timeout only once it knows the HTTP version, so a
/// silent client would never time out.
async fn silent(has_asked: &AtomicBool) {
    sleep(HEAD_TIMEOUT).await;
    if has_asked.load(Relaxed) {
        std::future::pending().await
    }
}
