//! The headers that name a request's trace: whatever they hold, a line of the log is one of JSON. The lines themselves go
//! to standard output.

#![no_main]

use std::sync::OnceLock;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use clap::Parser;
use cloud_run_sessions::{
    config::Config,
    output::Lines,
    logging,
    trace::Trace,
};
use futures_util::FutureExt;
use libfuzzer_sys::fuzz_target;

static LOG: OnceLock<Lines> = OnceLock::new();

fuzz_target!(|input: (Option<&[u8]>, Option<&[u8]>)| {
    LOG.get_or_init(|| {
        let settings = ["fuzz", "--k-service", "service", "--google-cloud-project", "project"];
        logging::init(&Config::try_parse_from(settings).unwrap()).unwrap()
    });
    let mut headers = HeaderMap::new();
    for (name, value) in [("traceparent", input.0), ("x-cloud-trace-context", input.1)] {
        if let Some(Ok(value)) = value.map(HeaderValue::from_bytes) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    Trace::of(&headers).scope(async { tracing::info!("a line") }).now_or_never().unwrap();
});
