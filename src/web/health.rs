//! Health checks: whether the process serves, and whether its store answers. They touch no session.

use axum::{extract::State, http::StatusCode};

use crate::store::Store;

/// `GET /health/live`: 200 while the process serves.
pub async fn live() -> &'static str {
    "live"
}

/// `GET /health/ready`: 200 if the store answers, 503 otherwise.
pub async fn ready(State(store): State<Store>) -> Result<&'static str, (StatusCode, &'static str)> {
    match store.ping().await {
        Ok(()) => Ok("ready"),
        Err(_) => Err((StatusCode::SERVICE_UNAVAILABLE, "the store does not answer")),
    }
}
