//! The listener, HTTP's limits and the graceful shutdown, for any service without upgrades (WebSockets).

use std::{
    convert::Infallible,
    future::poll_fn,
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    task::Context,
    time::Duration,
};

use axum::{
    body::{Body, HttpBody},
    extract::Request,
    http::{Method, StatusCode, Version, header},
    response::{IntoResponse, Response},
};
use futures_util::{
    TryFutureExt,
    future::{Either, ready},
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpSocket},
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use tower::{Service, ServiceExt};
use tracing::warn;

use super::{
    activity::Activity, client_stream::ClientStream, connections::Connections, error::RETRY_AFTER, host,
    request_body::RequestBody, response_body::ResponseBody,
};
use crate::{store::DEADLINE, warnings::warn_once_a_minute};

/// The most bytes of a request's head, as in Node.js. A longer one is answered 431. Each connection
/// has a buffer of this size for what its client sends ahead, and one for what it does not read.
const HEAD_MAX: usize = 16 * 1024;

/// The most requests that one HTTP/2 connection has at a time. RFC 9113, 6.5.2 recommends at least 100; but
/// with 100 each, 1,000 clients that take no response would hold 150 MB in h2 alone. A proxy can open more connections.
const MAX_STREAMS: u32 = 16;

/// What an HTTP/2 client may send of a body before a page reads it: RFC 9113's default. hyper's is a megabyte.
const WINDOW: u32 = 65_535;

/// How long a shutdown waits for requests in flight. The platform kills the process after 10 s.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

const _: () = assert!(DEADLINE.as_millis() < SHUTDOWN_TIMEOUT.as_millis());

/// Length of the accept queue: the number of requests that Cloud Run sends at once. A connection beyond it waits
/// a second for its next try; tokio's default is 128.
pub const BACKLOG: u32 = 1000;

/// What is answered to requests that do not reach the service.
const NAMES_NO_HOST: &str = "the request needs exactly one valid Host";
const TAKES_TOO_LITTLE: &str = "too many responses are still unread, please try again";

/// Pause after accepting fails although a connection waits, for example because too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Takes a port, on IPv4 and, where the system has it, IPv6. Connections are refused until the socket listens.
///
/// # Errors
/// If the port is taken, or reserved for other users.
pub fn bind(port: u16) -> io::Result<TcpSocket> {
    let dual = TcpSocket::new_v6().and_then(|socket| SockRef::from(&socket).set_only_v6(false).map(|()| socket));
    let (socket, address) = match dual {
        Ok(socket) => (socket, (Ipv6Addr::UNSPECIFIED, port).into()),
        Err(_) => (TcpSocket::new_v4()?, (Ipv4Addr::UNSPECIFIED, port).into()),
    };
    // Connections of a process that had the port just now may not have ended completely.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
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

/// Serves HTTP/1.1, and HTTP/2 without TLS to clients that begin with it. Each connection is served on one of these
/// threads' runtimes, by its service: the first nine on the first thread, the next nine on the second, and so on; then
/// each on the thread with the fewest.
///
/// A connection is closed if its first request is not complete within 20 s, if no later one begins within 650 s, or, over
/// HTTP/1, if one that has begun is not complete within 20 s. It is closed if its client takes nothing for 20 s while a
/// response waits, so a body must produce each part within that time. At most 1,250 are open: idle ones give way to new
/// ones. An HTTP/2 client is told before (`GOAWAY`).
///
/// A request without a valid host is answered 400. What `service` does not read of a request's body is dropped.
///
/// At `shutdown` it stops accepting connections, closes idle ones, answers requests in flight, and returns. It does
/// not wait for clients that have not sent a request yet, nor for one that takes nothing of its response for 200 ms.
pub async fn serve<S>(listener: TcpListener, threads: Vec<(Handle, S)>, shutdown: impl Future<Output = ()>)
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let mut http = auto::Builder::new(TokioExecutor::new());
    // Head and body are small: writing them in one piece is cheaper.
    http.http1().max_buf_size(HEAD_MAX).writev(false);
    // `half_close` stays off: with it, the views of clients that have gone would keep waiting, hold a place and be
    // counted.
    http.http2()
        .max_header_list_size(HEAD_MAX as u32)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);

    let connections = Connections::new(threads.len());
    let accept_on_a_thread = |context: &mut Context<'_>| {
        let thread = connections.next_thread();
        // The stream's events go to the runtime that is entered.
        let _entered = threads[thread].0.enter();
        listener.poll_accept(context).map_ok(|(stream, _)| (stream, thread))
    };
    let accept = async {
        loop {
            let (stream, thread) = match poll_fn(accept_on_a_thread).await {
                Ok(accepted) => accepted,
                Err(error) if is_of_peer(&error) => continue,
                Err(error) => {
                    warn_once_a_minute("accept", format_args!("cannot accept connections: {error}"));
                    connections.make_room();
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Responses are written in one piece, so nothing is gained by gathering them.
            let _ = stream.set_nodelay(true);
            let place = connections.place(thread).await;
            let stream = ClientStream::new(stream, place.activity.clone());
            let (runtime, service) = &threads[thread];
            let (activity, service) = (place.activity.clone(), service.clone());
            let on_request = service_fn(move |request: hyper::Request<Incoming>| {
                let Some(pending) = activity.begin(request.version()) else {
                    let headers = [(header::RETRY_AFTER, RETRY_AFTER)];
                    let refused = (StatusCode::SERVICE_UNAVAILABLE, headers, TAKES_TOO_LITTLE);
                    return Either::Left(ready(Ok(
                        refusal(&request, refused).map(|body| ResponseBody::new(body, None))
                    )));
                };
                let request = with_rest_read(request, &activity);
                if !host::has_valid_host(&request) {
                    // hyper leaves the header out over HTTP/2.
                    let refused = (StatusCode::BAD_REQUEST, [(header::CONNECTION, "close")], NAMES_NO_HOST);
                    let response = refusal(&request, refused);
                    return Either::Left(ready(Ok(response.map(|body| ResponseBody::new(body, pending.end())))));
                }
                let response = service.clone().oneshot(request);
                Either::Right(response.map_ok(|response| response.map(|body| ResponseBody::new(body, pending.end()))))
            });
            let connection = Box::pin(http.serve_connection(TokioIo::new(stream), on_request).into_owned());
            runtime.spawn(place.serve(connection, |connection| connection.as_mut().graceful_shutdown()));
        }
    };
    tokio::select! {
        () = accept => {}
        () = shutdown => {}
    }
    drop(listener);
    tokio::select! {
        () = connections.stop() => {}
        () = sleep(SHUTDOWN_TIMEOUT) => warn!("stopping with requests unanswered"),
    }
}

/// The request with a body that the service need not read: over HTTP/1, its rest is read and dropped; over HTTP/2, the
/// client is told to send no more. An empty body takes no allocation.
fn with_rest_read(request: hyper::Request<Incoming>, activity: &Arc<Activity>) -> Request {
    if request.body().is_end_stream() {
        return request.map(|_| Body::empty());
    }
    if request.version() == Version::HTTP_2 {
        return request.map(Body::new);
    }
    let is_held_back = request.headers().contains_key(header::EXPECT);
    request.map(|body| Body::new(RequestBody::new(body, activity.clone(), is_held_back)))
}

/// The response to a request that does not reach the service.
fn refusal<B>(request: &hyper::Request<B>, refused: impl IntoResponse) -> Response {
    let response = ([(header::CACHE_CONTROL, "no-store")], refused).into_response();
    // Over HTTP/2, hyper leaves this to the service.
    if request.method() == Method::HEAD { response.map(|_| Body::empty()) } else { response }
}

/// Whether accepting failed because a client broke off. All else concerns this process, and a pause may help.
fn is_of_peer(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepting_pauses_only_for_this_process() {
        for (code, expected) in [(103, true), (104, true), (23, false), (24, false)] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(is_of_peer(&error), expected, "{error}");
        }
    }
}
