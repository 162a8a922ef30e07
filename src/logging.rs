//! Logs: readable on a terminal, Cloud Logging's JSON on Cloud Run.

use std::{
    fmt,
    io::{self, IsTerminal},
};

use serde::Serialize;
use tracing::{Event, Level, Subscriber};
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

use crate::{config::Config, output::Lines, trace};

/// Logs to standard output from now on. Before it ends, the process must call [`Lines::wait_until_written`] on what this
/// returns.
///
/// # Errors
/// If the thread that writes them cannot start.
pub fn init(config: &Config) -> io::Result<Lines> {
    let output = Lines::to(io::stdout())?;
    let filter = config.rust_log.clone();
    let writer = output.clone();
    let lines = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
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
        let trace = self.project.as_ref().zip(trace::current_id());
        let trace = trace.map(|(project, id)| format!("projects/{project}/traces/{id}"));
        let entry = LogEntry { severity, time, trace, fields: event.field_map() };
        let line = serde_json::to_string(&entry).map_err(|_| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}
