//! A page with data of its own, a login and a logout, on the library as it is.
//!
//! `cargo run --example cart`, then open <http://localhost:8080/cart>. With several tabs, or several instances on one
//! Redis, no item gets lost.

use std::process::ExitCode;

use askama::Template;
use axum::{
    Form, Router,
    response::{Redirect, Response},
    routing::{get, post},
};
use cloud_run_sessions::{
    config::Config,
    program,
    store::Store,
    web::{
        app::{self, counted, with_session},
        atomic_session::AtomicSession,
        counting::ViewCount,
        error::Error,
        format::Format,
        session::Sessions,
    },
};
use serde::Deserialize;
use tower_sessions::Session;

/// The most items in a cart.
const MAX_ITEMS: usize = 100;

/// The most bytes of an item, or of a visitor's name.
const MAX_BYTES: usize = 100;

/// What the visitor sees. askama escapes what visitors have written.
#[derive(Template)]
#[template(
    ext = "html",
    source = r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Cart</title>
<h1>{{ name.as_deref().unwrap_or("Your") }} cart, viewed {{ count }} times</h1>
<ul>{% for item in cart %}<li>{{ item }}</li>{% endfor %}</ul>
<form method="post" action="/cart"><label>Item <input name="text" required></label> <button>Add</button></form>
{% if name.is_some() -%}
<form method="post" action="/logout"><button>Log out</button></form>
{%- else -%}
<form method="post" action="/login"><label>Name <input name="text" required></label> <button>Log in</button></form>
{%- endif %}
</html>
"#
)]
struct Cart {
    name: Option<String>,
    cart: Vec<String>,
    count: u64,
}

/// What a form sends.
#[derive(Deserialize)]
struct Input {
    text: String,
}

fn main() -> ExitCode {
    program::run(routes)
}

/// The service's own pages, and these.
fn routes(store: &Store, config: &Config) -> Router {
    let sessions = Sessions::new(store, config);
    app::router(store, config)
        // To look at the cart is a view, to add to it is none.
        .route("/cart", counted(get(show), &sessions).merge(with_session(post(add), &sessions)))
        .route("/login", with_session(post(log_in), &sessions))
        .route("/logout", with_session(post(log_out), &sessions))
}

/// `GET /cart`. Counting the view has brought the session, so reading it takes no further command.
async fn show(session: Session, ViewCount(count): ViewCount) -> Result<Response, Error> {
    let cart = session.get("cart").await?.unwrap_or_default();
    let name = session.get("name").await?;
    let page = Cart { name, cart, count }.render().map_err(|_| Error::Session)?;
    Ok(Format::Html.respond(page))
}

/// `POST /cart`. Items that several requests add at once are all there: `update` applies the function to what the others
/// have left.
async fn add(session: AtomicSession, Form(item): Form<Input>) -> Result<Redirect, Error> {
    session
        .update("cart", move |cart: &mut Vec<String>| {
            if cart.len() < MAX_ITEMS && item.text.len() <= MAX_BYTES {
                cart.push(item.text.clone());
            }
        })
        .await?;
    Ok(Redirect::to("/cart"))
}

/// `POST /login`. The session goes on under a new id, so that nobody who knew the old one is logged in too. Here, anybody
/// can be anybody: a real service asks for a password first.
async fn log_in(session: Session, atomic: AtomicSession, Form(name): Form<Input>) -> Result<Redirect, Error> {
    if name.text.len() <= MAX_BYTES {
        atomic.log_in().await?;
        session.insert("name", name.text).await?;
    }
    Ok(Redirect::to("/cart"))
}

/// `POST /logout`. The session ends, with its cart and its counts.
async fn log_out(session: Session) -> Result<Redirect, Error> {
    session.flush().await?;
    Ok(Redirect::to("/cart"))
}
