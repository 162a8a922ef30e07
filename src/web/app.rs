//! Every route of the service, and what surrounds each request.

use std::{convert::Infallible, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderValue, Method, header},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use futures_util::FutureExt;
use tokio::time::timeout;
use tower::{Service, service_fn};

use super::{
    counting,
    error::{self, Error},
    format::Format,
    health, pages,
    route_state::{Counted, Uncounted},
    session::{self, Sessions},
};
use crate::{
    config::Config,
    store::{DEADLINE, Store},
    trace::Trace,
    warnings::warn_once_a_minute,
};

// The README promises 3 s.
const _: () = assert!(DEADLINE.as_millis() < Duration::from_secs(3).as_millis());

/// The service's routes on this store, for [`service`]. They have a fallback, for paths without a route;
/// [`Router::fallback`] replaces it, and [`Router::reset_fallback`] removes it, before a merge with a router that has one.
pub fn router(store: &Store, config: &Config) -> Router {
    let sessions = Sessions::new(store, config);
    let page = counted(pages::page(pages::meaning(config)), &sessions);
    Router::new()
        .route("/", page.clone())
        .route("/foo", page.clone())
        .route("/bar", page)
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready).with_state(store.clone()))
        .fallback(async || Error::NotFound)
}

/// A page with a session, whose views are counted: each request with a method that `page` handles.
///
/// `page` must not handle `HEAD`: this does, so a path can have only one such page. `HEAD` and the methods that `page` does
/// not handle get neither a session nor a count.
pub fn counted(page: MethodRouter<Counted>, sessions: &Sessions) -> MethodRouter {
    let count_view = from_fn_with_state(sessions.clone(), counting::count_view);
    only_for_its_methods(page.with_state(Counted(())).layer(count_view)).head(pages::head)
}

/// A page with a session, whose views are not counted.
///
/// All sessions live as long as the settings say: tower-sessions' `Session::set_expiry` does not change that.
pub fn with_session(page: MethodRouter<Uncounted>, sessions: &Sessions) -> MethodRouter {
    let give_session = from_fn_with_state(sessions.clone(), session::give_session);
    only_for_its_methods(page.with_state(Uncounted(())).layer(give_session))
}

/// This page, whose layers do not see a request with a method for which it has neither a handler nor a fallback. (With
/// `route_layer` in place of `layer`, they would see none that its fallback handles.)
fn only_for_its_methods(page: MethodRouter) -> MethodRouter {
    // `layer` has wrapped the default fallback too. Of two default fallbacks, axum keeps the second, which is not wrapped.
    page.merge(MethodRouter::new())
}

/// These routes with what surrounds each request: it is answered in time, even if its body is slow to come; errors have a
/// readable body; and no answer is cached. A method that a route does not handle is answered 405. Layers of `routes` do
/// not see that.
pub fn service(
    routes: Router,
) -> impl Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static {
    let routes = routes
        // Here, because it holds only for the routes that there are.
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        // Without this, axum would build the routes' layers anew for each request.
        .with_state(());
    // In a box, because a connection keeps room for this future as long as it is open.
    service_fn(move |request| Box::pin(answer(routes.clone(), request)))
}

// No `async fn`: its future would hold the request twice.
fn answer(mut routes: Router, request: Request) -> impl Future<Output = Result<Response, Infallible>> {
    let trace = Trace::of(request.headers());
    let format = Format::of(request.headers());
    let is_head = request.method() == Method::HEAD;
    let is_view = is_head || request.method() == Method::GET;
    let uri = request.uri().clone();
    let response = trace.scope(with_deadline(routes.call(request)));
    response.map(move |response| {
        let mut response = error::render_error(response, format, uri.path(), is_view);
        if is_head {
            // axum empties the body of the response to `HEAD`, but the error's was added after that.
            *response.body_mut() = Body::empty();
        }
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept, Cookie"));
        Ok(response)
    })
}

/// Answers 503 if the routes take longer than [`DEADLINE`].
fn with_deadline(response: impl Future<Output = Result<Response, Infallible>>) -> impl Future<Output = Response> {
    timeout(DEADLINE, response).map(|outcome| match outcome {
        Ok(Ok(response)) => response,
        Err(_) => {
            warn_once_a_minute("deadline", format_args!("a request was not read and answered within {DEADLINE:?}"));
            Error::Unanswered.into_response()
        }
    })
}
