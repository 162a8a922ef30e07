//! The start: settings, logs, store, serve, drain on SIGTERM.

use std::{io, process::ExitCode};

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
            eprintln!("PORT {}: {problem}", config.port);
            ExitCode::FAILURE
        }
    }
}

async fn run(config: &Config) -> io::Result<()> {
    let shutdown = server::shutdown_signal()?;
    let listener = server::listen(config.port).await?;
    let store = Store::open(config);
    info!("listening on http://{}", listener.local_addr()?);
    server::serve(listener, app::router(&store, config), shutdown).await;
    store.close().await;
    info!("stopped");
    Ok(())
}
