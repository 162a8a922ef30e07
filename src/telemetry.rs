//! Logs: readable on a terminal, Cloud Logging's JSON on Cloud Run.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use serde::Serialize;
use tracing::{Event, Level, Subscriber, debug, warn};
use tracing_serde::fields::{AsMap, SerializeFieldMap};
use tracing_subscriber::{
    Layer,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::{config::Config, output::Lines};

const MINUTE: Duration = Duration::from_secs(60);

/// Logs to standard output from now on. A process that ends has to flush the returned lines.
///
/// # Errors
/// If the thread that writes them cannot start.
pub fn init(config: &Config) -> io::Result<Lines> {
    let output = Lines::to(io::stdout())?;
    let filter = config.rust_log.clone();
    let lines = tracing_subscriber::fmt::layer().with_writer(output.clone());
    if config.on_cloud_run() {
        let project = config.google_cloud_project.clone();
        let lines = lines.event_format(CloudLogging { project });
        tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    } else {
        let lines = lines.with_ansi(io::stdout().is_terminal());
        tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    }
    Ok(output)
}

/// When each kind of problem was last logged.
static LOGGED: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());

/// The next problem of this kind is a warning, however recent the last one was.
pub fn warn_anew(kind: &str) {
    LOGGED.lock().remove(kind);
}

/// Warns at most once a minute per kind of problem; repeats go to debug.
pub fn warn_once_a_minute(kind: &str, problem: fmt::Arguments<'_>) {
    let now = Instant::now();
    let mut logged = LOGGED.lock();
    if logged.get(kind).is_some_and(|at| now - *at < MINUTE) {
        debug!("{problem}");
    } else {
        logged.insert(kind.to_owned(), now);
        warn!("{problem}");
    }
}

tokio::task_local! {
    /// The trace of the current request.
    static TRACE: Trace;
}

/// The headers that name a request's trace. They are only parsed for a log entry on Cloud Run: a span for each
/// request would cost more than all other logging.
pub struct Trace([Option<HeaderValue>; 2]);

/// W3C's, and Google's own.
const TRACE_HEADERS: [HeaderName; 2] =
    [HeaderName::from_static("traceparent"), HeaderName::from_static("x-cloud-trace-context")];

impl Trace {
    /// The trace that these headers name.
    pub fn of(headers: &HeaderMap) -> Self {
        Self(TRACE_HEADERS.map(|name| headers.get(name).cloned()))
    }

    /// Log entries of this future name this trace.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        TRACE.scope(self, future)
    }

    /// The trace's id, 32 hexadecimal digits: TRACE of `00-TRACE-SPAN-FLAGS` in W3C's `traceparent`, or of
    /// `TRACE/SPAN;OPTIONS` in Google's `X-Cloud-Trace-Context`.
    fn id(&self) -> Option<&str> {
        let [parent, cloud] = self.0.each_ref().map(|header| header.as_ref()?.to_str().ok());
        let parent = parent.and_then(|value| value.split('-').nth(1));
        let cloud = cloud.and_then(|value| value.split('/').next());
        [parent, cloud]
            .into_iter()
            .flatten()
            .find(|id| id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit()))
    }
}

/// Formats log entries as Cloud Logging reads them: one JSON object per line.
struct CloudLogging {
    /// Without a project, a trace cannot be named.
    project: Option<String>,
}

/// A log entry. The names of its fields are Cloud Logging's:
/// <https://cloud.google.com/logging/docs/structured-logging#structured_logging_special_fields>.
#[derive(Serialize)]
struct LogEntry<'a> {
    severity: &'static str,
    /// RFC 3339, in UTC.
    time: String,
    #[serde(rename = "logging.googleapis.com/trace", skip_serializing_if = "Option::is_none")]
    trace: Option<String>,
    /// The event's own fields, `message` among them.
    #[serde(flatten)]
    fields: SerializeFieldMap<'a, Event<'a>>,
}

impl<S, N> FormatEvent<S, N> for CloudLogging
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let severity = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARNING",
            Level::INFO => "INFO",
            Level::DEBUG | Level::TRACE => "DEBUG",
        };
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let trace = TRACE.try_with(|trace| {
            let (project, id) = (self.project.as_ref()?, trace.id()?);
            Some(format!("projects/{project}/traces/{id}"))
        });
        let entry = LogEntry { severity, time, trace: trace.ok().flatten(), fields: event.field_map() };
        let line = serde_json::to_string(&entry).map_err(|_| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}
