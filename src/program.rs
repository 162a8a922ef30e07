//! The program, from its settings to its end.

use std::{
    future::pending,
    io,
    num::NonZero,
    process::ExitCode,
    thread::{self, available_parallelism},
    time::Duration,
};

use axum::Router;
use tokio::{
    runtime::{self, Handle},
    time::timeout,
};
use tracing::info;

use crate::{
    config::Config,
    logging,
    output::{print_error, print_panics},
    store::Store,
    web::{app, server},
};

/// How long a start waits for Redis. After that it listens, and answers 503 until Redis is there.
const CONNECT_FIRST: Duration = Duration::from_secs(1);

/// The most threads. Fewer already keep Redis's one core busy.
const MAX_THREADS: usize = 16;

type Routes<'a> = &'a dyn Fn(&Store, &Config) -> Router;

/// Runs the program with these routes, for example [`app::router`]: reads the settings, opens the store, and serves until
/// SIGTERM or Ctrl-C, on a thread for each core that the process may use, at most 16. `routes` is called for each thread.
pub fn run(routes: impl Fn(&Store, &Config) -> Router) -> ExitCode {
    let config = match Config::read() {
        Ok(config) => config,
        Err(problem) => {
            print_error(problem);
            return ExitCode::from(2);
        }
    };
    let log = match logging::init(&config) {
        Ok(log) => log,
        Err(error) => {
            print_error(format_args!("the log cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    print_panics(log.clone());
    let outcome = start(&config, &routes);
    log.wait_until_written();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            print_error(problem);
            ExitCode::FAILURE
        }
    }
}

fn start(config: &Config, routes: Routes) -> Result<(), String> {
    let cannot_start = |error| format!("the runtime cannot start: {error}");
    // A runtime for each core, where connections stay, because views on one thread share calls. tokio's multi-threaded
    // runtime moves them between threads, which was measured to cost a fifth of the views/s on two cores.
    let cores = available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
    let build = |_| runtime::Builder::new_current_thread().enable_all().build();
    let mut runtimes = (0..cores).map(build).collect::<io::Result<Vec<_>>>().map_err(cannot_start)?;
    let threads: Vec<_> = runtimes.iter().map(|runtime| runtime.handle().clone()).collect();
    let main = runtimes.swap_remove(0);
    for runtime in runtimes {
        let run = move || runtime.block_on(pending::<()>());
        thread::Builder::new().name("serve".to_owned()).spawn(run).map_err(cannot_start)?;
    }
    let result = main.block_on(serve(config, routes, &threads));
    // Dropping the runtime would wait for a thread that may still be resolving a host name. The other threads end with
    // the process.
    main.shutdown_background();
    result
}

async fn serve(config: &Config, routes: Routes<'_>, threads: &[Handle]) -> Result<(), String> {
    let shutdown =
        server::shutdown_signal().map_err(|error| format!("SIGTERM and Ctrl-C cannot be caught: {error}"))?;
    let cannot_listen = |error| format!("cannot listen on PORT {}: {error}", config.port);
    let socket = server::bind(config.port).map_err(cannot_listen)?;
    let stores = Store::open(config, threads);
    let store = &stores[0];
    // A platform sends requests once this process listens. If Redis has rejected the settings by then, it exits.
    if let Ok(outcome) = timeout(CONNECT_FIRST, store.connected()).await {
        outcome.map_err(|problem| format!("REDIS_URL: {problem}"))?;
    }
    let listener = socket.listen(server::BACKLOG).map_err(cannot_listen)?;
    // Each thread builds its own routes, so that it shares none of their locks and counters.
    let services = stores.iter().map(|store| app::service(routes(store, config)));
    let services = threads.iter().cloned().zip(services).collect();
    if let Ok(address) = listener.local_addr() {
        info!("listening on http://{address}");
    }
    tokio::select! {
        () = server::serve(listener, services, shutdown) => {
            info!("stopped");
            Ok(())
        }
        problem = store.rejected() => Err(format!("REDIS_URL: {problem}")),
    }
}
