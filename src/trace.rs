//! The trace of a request, which its log entries name.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

tokio::task_local! {
    /// The trace of the current request.
    static TRACE: Trace;
}

/// The headers that name a request's trace. They are parsed only when an entry is logged on Cloud Run: a
/// span for each request would cost more than all other logging.
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

    /// The id, 32 hexadecimal digits: TRACE of `00-TRACE-SPAN-FLAGS` in W3C's `traceparent`, or of
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

/// The id of the current request's trace, if it has one.
pub fn current_id() -> Option<String> {
    TRACE.try_with(|trace| trace.id().map(str::to_owned)).ok().flatten()
}
