//! The listener, HTTP's timeouts and the graceful shutdown.

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

use axum::{Router, body::Body};
use futures_util::FutureExt;
use hyper::{Request, body::Incoming, service::service_fn};
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
use tracing::warn;

use crate::app;

/// A connection brings its first request by then, and each further head as soon; kept alive, it may
/// idle as long. hyper would wait for ever, without the timer that `axum::serve` does not install.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);

/// A request's head may have so many bytes; a longer one is answered 431.
const HEAD_MAX: usize = 64 * 1024;

/// What is in flight at shutdown is answered by then, see [`crate::error`]. The platform kills after
/// 10 s.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// At shutdown, a head that is on its way may arrive within this time, and the last answer leave.
const LAST_MOMENTS: Duration = Duration::from_millis(200);

/// So many connections may wait to be accepted: as many as Cloud Run sends requests at once. Of more,
/// each waits a second for its next try, and tokio's own choice is 128.
const BACKLOG: u32 = 1000;

/// After an error of accept, such as too many open files, to let connections end.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Listens on all interfaces, as the platform asks.
///
/// # Errors
/// If the port is taken or not for this user.
pub fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // The port may have been another process's just now, whose connections are not quite gone.
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::UNSPECIFIED, port).into())?;
    socket.listen(BACKLOG)
}

/// Resolves at SIGTERM, the platform's word, or at Ctrl-C. Both are caught from the call on.
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

/// Serves HTTP/1.1, and HTTP/2 without TLS to those who begin with it. At `shutdown` it stops
/// accepting, closes idle connections, answers what is in flight, and returns. Who has not asked yet, or
/// does not answer, is not waited for.
pub async fn serve(listener: TcpListener, app: Router, shutdown: impl Future<Output = ()>) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        // Head and body are small: one piece costs less to write than two.
        .writev(false);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEAD_TIMEOUT)
        .max_header_list_size(HEAD_MAX as u32);

    // Or axum would put the handlers into their layers anew with each request.
    let app = app.with_state(());
    let connections = GracefulShutdown::new();
    // Each request holds a sender until it is answered, so that there is no receiving once all are.
    let (in_flight, mut all_answered) = mpsc::channel::<Infallible>(1);
    let accept = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Answers are small and whole: there is nothing to gather.
                    let _ = stream.set_nodelay(true);
                    let has_asked = Arc::new(AtomicBool::new(false));
                    let (asks, app) = (has_asked.clone(), app.clone());
                    let in_flight = in_flight.downgrade();
                    let service = service_fn(move |request: Request<Incoming>| {
                        asks.store(true, Relaxed);
                        let in_flight = in_flight.upgrade();
                        let answer = app::answer(app.clone(), request.map(Body::new));
                        answer.map(move |answer| {
                            drop(in_flight);
                            Ok::<_, Infallible>(answer)
                        })
                    });
                    let connection = http.serve_connection(TokioIo::new(stream), service);
                    let connection = connections.watch(connection.into_owned());
                    // A client that breaks off is no news.
                    tokio::spawn(async move {
                        tokio::select! {
                            _ = connection => {}
                            () = not_asking(&has_asked) => {}
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

/// Resolves if nothing was asked in time. hyper minds the time of a head only once it knows the
/// version of HTTP, which who sends nothing does not tell.
async fn not_asking(has_asked: &AtomicBool) {
    sleep(HEAD_TIMEOUT).await;
    if has_asked.load(Relaxed) {
        std::future::pending().await
    }
}
