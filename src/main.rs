//! The start: settings, logs, store, serve, drain on SIGTERM.

use std::process::ExitCode;

use cloud_run_sessions::{app, config::Config, server, store::Store, telemetry};
use tracing::info;

// One thread: an instance has one core or a share of one, and this runtime was measured 15 to 20 %
// faster there than the one with several threads.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config = match Config::read() {
        Ok(config) => config,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    telemetry::init(&config);
    match run(&config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: &Config) -> Result<(), String> {
    let shutdown = server::shutdown_signal()
        .map_err(|error| format!("SIGTERM and Ctrl-C cannot be caught: {error}"))?;
    let listener = server::listen(config.port)
        .await
        .map_err(|error| format!("PORT {} cannot be listened on: {error}", config.port))?;
    let store = Store::open(config);
    if let Ok(address) = listener.local_addr() {
        info!("listening on http://{address}");
    }
    server::serve(listener, app::router(&store, config), shutdown).await;
    store.close().await;
    info!("stopped");
    Ok(())
}
