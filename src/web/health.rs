//! Health checks: whether the process serves, and whether its store accepts views. They touch no session.

use axum::{extract::State, http::StatusCode};

use crate::store::Store;

/// `GET /health/live`: 200 while the process serves.
pub async fn live() -> &'static str {
    "live"
}

/// `GET /health/ready`: 200 if Redis can be reached and takes writes, 503 otherwise.
pub async fn ready(State(store): State<Store>) -> Result<&'static str, (StatusCode, &'static str)> {
    match store.ready().await {
        Ok(()) => Ok("ready"),
        Err(_) => Err((StatusCode::SERVICE_UNAVAILABLE, "no view could be counted now")),
    }
}
