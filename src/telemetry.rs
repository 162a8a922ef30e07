//! Logs: readable on a terminal, Cloud Logging's JSON on Cloud Run.

use std::{
    collections::BTreeMap,
    fmt,
    io::IsTerminal,
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tracing::{
    Event, Level, Subscriber, debug,
    field::{Field, Visit},
    warn,
};
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

use crate::config::Config;

const MINUTE: Duration = Duration::from_secs(60);

/// Sends what this process says to standard output, from now on.
pub fn init(config: &Config) {
    let filter = config.rust_log.clone();
    let lines = tracing_subscriber::fmt::layer();
    if config.on_cloud_run() {
        let project = config.google_cloud_project.clone();
        let lines = lines.event_format(CloudLogging { project });
        tracing_subscriber::registry()
            .with(lines.with_filter(filter))
            .init();
    } else {
        let lines = lines.with_ansi(std::io::stdout().is_terminal());
        tracing_subscriber::registry()
            .with(lines.with_filter(filter))
            .init();
    }
}

/// Warns of what meets each visitor while it lasts: of its kind once a minute; the others are for
/// debugging.
pub fn warn_of(kind: &str, problem: fmt::Arguments<'_>) {
    static SAID: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());
    let now = Instant::now();
    let mut said = SAID.lock();
    if said.get(kind).is_some_and(|at| now - *at < MINUTE) {
        debug!("{problem}");
    } else {
        said.insert(kind.to_owned(), now);
        warn!("{problem}");
    }
}

tokio::task_local! {
    /// The trace of the request at hand.
    static TRACE: Trace;
}

/// The headers that name a request's trace, unread: only a line for Cloud Logging needs them, and a
/// span for each request would cost more than all else that is logged.
pub struct Trace([Option<HeaderValue>; 2]);

/// W3C's, and Google's own.
const TRACE_HEADERS: [HeaderName; 2] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("x-cloud-trace-context"),
];

impl Trace {
    /// The one that these headers name.
    pub fn of(headers: &HeaderMap) -> Self {
        Self(TRACE_HEADERS.map(|name| headers.get(name).cloned()))
    }

    /// Has what `answer` logs name this trace.
    pub fn scope<F: Future>(self, answer: F) -> impl Future<Output = F::Output> {
        TRACE.scope(self, answer)
    }

    /// The trace that one of the headers names: `00-TRACE-SPAN-FLAGS` in W3C's `traceparent`,
    /// `TRACE/SPAN;OPTIONS` in Google's `X-Cloud-Trace-Context`, TRACE being 32 hexadecimal digits.
    fn id(&self) -> Option<&str> {
        let [parent, cloud] = self
            .0
            .each_ref()
            .map(|header| header.as_ref()?.to_str().ok());
        let parent = parent.and_then(|value| value.split('-').nth(1));
        let cloud = cloud.and_then(|value| value.split('/').next());
        [parent, cloud]
            .into_iter()
            .flatten()
            .find(|id| id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit()))
    }
}

/// One JSON object a line, in the fields that Cloud Logging knows:
/// <https://cloud.google.com/logging/docs/structured-logging#structured_logging_special_fields>.
struct CloudLogging {
    /// Without it, a trace cannot be named.
    project: Option<String>,
}

impl<S, N> FormatEvent<S, N> for CloudLogging
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut entry = Entry::default();
        event.record(&mut entry);
        let severity = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARNING",
            Level::INFO => "INFO",
            Level::DEBUG | Level::TRACE => "DEBUG",
        };
        entry.set("severity", severity);
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        entry.set("time", time);
        if let Some(project) = &self.project {
            let trace = TRACE.try_with(|trace| {
                trace
                    .id()
                    .map(|id| format!("projects/{project}/traces/{id}"))
            });
            if let Ok(Some(trace)) = trace {
                entry.set("logging.googleapis.com/trace", trace);
            }
        }
        writeln!(writer, "{}", Value::Object(entry.0))
    }
}

/// An event's fields, `message` among them.
#[derive(Default)]
struct Entry(Map<String, Value>);

impl Entry {
    fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }
}

impl Visit for Entry {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), value);
    }
}
