//! The start: settings, logs, store, serve, drain on SIGTERM.

use std::process::ExitCode;

use cloud_run_sessions::{app, config::Config, server, store::Store, telemetry};
use tokio::runtime;
use tracing::info;

fn main() -> ExitCode {
    let config = match Config::read() {
        Ok(config) => config,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    telemetry::init(&config);
    match serve(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: &Config) -> Result<(), String> {
    // One thread: an instance has one core or a share of one, and this runtime was measured 15 to
    // 20 % faster there than the one with several threads.
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("the runtime cannot start: {error}"))?;
    let result = runtime.block_on(run(config));
    // A host name may still be looked up, on a thread that would be waited for.
    runtime.shutdown_background();
    result
}

async fn run(config: &Config) -> Result<(), String> {
    let shutdown = server::shutdown_signal()
        .map_err(|error| format!("SIGTERM and Ctrl-C cannot be caught: {error}"))?;
    let listener = server::listen(config.port)
        .map_err(|error| format!("PORT {} cannot be listened on: {error}", config.port))?;
    // Its connection ends with the process: what was to be saved was saved before it was answered.
    let store = Store::open(config);
    if let Ok(address) = listener.local_addr() {
        info!("listening on http://{address}");
    }
    tokio::select! {
        () = server::serve(listener, app::router(&store, config), shutdown) => {
            info!("stopped");
            Ok(())
        }
        problem = store.rejected() => Err(format!("REDIS_URL: {problem}")),
    }
}
