//! The program, from its settings to its end.

use std::{process::ExitCode, time::Duration};

use axum::Router;
use tokio::{runtime, time::timeout};
use tracing::info;

use crate::{
    config::Config,
    output::{complain, complain_of_panics},
    store::Store,
    telemetry,
    web::{app, server},
};

/// How long a start waits for Redis. After that it listens, and answers 503 until Redis is there.
const CONNECT_FIRST: Duration = Duration::from_secs(1);

/// Runs the program with these routes, for example [`app::router`]: reads the settings, opens the store, and serves until
/// SIGTERM or Ctrl-C.
pub fn run(routes: fn(&Store, &Config) -> Router) -> ExitCode {
    let config = match Config::read() {
        Ok(config) => config,
        Err(problem) => {
            complain(problem);
            return ExitCode::from(2);
        }
    };
    let log = match telemetry::init(&config) {
        Ok(log) => log,
        Err(error) => {
            complain(format_args!("the log cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    complain_of_panics(log.clone());
    let outcome = start(&config, routes);
    log.flush();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            complain(problem);
            ExitCode::FAILURE
        }
    }
}

fn start(config: &Config, routes: fn(&Store, &Config) -> Router) -> Result<(), String> {
    // An instance has one core or a share of one. There, this runtime was measured to be 15 to 20 % faster than the
    // one with several threads.
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("the runtime cannot start: {error}"))?;
    let result = runtime.block_on(serve(config, routes));
    // Dropping the runtime would wait for a thread that may still be resolving a host name.
    runtime.shutdown_background();
    result
}

async fn serve(config: &Config, routes: fn(&Store, &Config) -> Router) -> Result<(), String> {
    let shutdown =
        server::shutdown_signal().map_err(|error| format!("SIGTERM and Ctrl-C cannot be caught: {error}"))?;
    let cannot_listen = |error| format!("cannot listen on PORT {}: {error}", config.port);
    let bound = server::bind(config.port).map_err(cannot_listen)?;
    let store = Store::open(config);
    // A platform sends requests once this process listens. If Redis rejects the settings by then, it exits first.
    if let Ok(outcome) = timeout(CONNECT_FIRST, store.connected()).await {
        outcome.map_err(|problem| format!("REDIS_URL: {problem}"))?;
    }
    let listener = bound.listen().map_err(cannot_listen)?;
    let service = app::service(routes(&store, config));
    if let Ok(address) = listener.local_addr() {
        info!("listening on http://{address}");
    }
    tokio::select! {
        () = server::serve(listener, service, shutdown) => {
            info!("stopped");
            Ok(())
        }
        problem = store.rejected() => Err(format!("REDIS_URL: {problem}")),
    }
}
