//! The headers that name a request's trace: whatever they hold, a line of the log is one of JSON, and names a trace only
//! by 32 hexadecimal digits.

#![no_main]

use std::{
    io::{self, BufRead, BufReader, PipeReader},
    sync::{LazyLock, Mutex},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use clap::Parser;
use cloud_run_sessions::{
    config::Config,
    logging,
    output::Lines,
    trace::Trace,
};
use futures_util::FutureExt;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// The log, and the lines that it wrote.
static LOG: LazyLock<(Lines, Mutex<BufReader<PipeReader>>)> = LazyLock::new(|| {
    let (lines, output) = io::pipe().unwrap();
    rustix::stdio::dup2_stdout(output).unwrap();
    let settings = ["fuzz", "--k-service", "service", "--google-cloud-project", "project"];
    let log = logging::init(&Config::try_parse_from(settings).unwrap()).unwrap();
    (log, Mutex::new(BufReader::new(lines)))
});

fuzz_target!(|input: (Option<&[u8]>, Option<&[u8]>)| {
    let (_, lines) = &*LOG;
    let mut headers = HeaderMap::new();
    for (name, value) in [("traceparent", input.0), ("x-cloud-trace-context", input.1)] {
        if let Some(Ok(value)) = value.map(HeaderValue::from_bytes) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    Trace::of(&headers).scope(async { tracing::info!("a line") }).now_or_never().unwrap();
    let mut line = String::new();
    lines.lock().unwrap().read_line(&mut line).unwrap();
    let entry: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    assert_eq!(entry["message"], "a line", "{line:?}");
    if let Some(trace) = entry.get("logging.googleapis.com/trace") {
        let id = trace.as_str().unwrap().strip_prefix("projects/project/traces/").unwrap();
        assert!(id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit()), "{line:?}");
    }
});
