//! The session's cookie, through the whole service: no cookie breaks a view, and no visitor chooses the id of a session.

#![no_main]

use std::convert::Infallible;

use axum::{
    body::Body,
    http::{HeaderValue, Request, StatusCode, header},
    response::Response,
};
use clap::Parser;
use cloud_run_sessions::{config::Config, store::Store, web::app};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use tower::{ServiceExt, util::BoxCloneService};

type Service = BoxCloneService<Request<Body>, Response, Infallible>;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().unwrap();
    /// Cookies that are not signed, and cookies that are.
    static SETTINGS: [Config; 2] = {
        let secrets = ["--session-secret", SECRET, "--session-secret-previous", "another secret of 32 characters!"];
        [&[][..], &secrets].map(|settings| Config::try_parse_from([&["fuzz"], settings].concat()).unwrap())
    };
}

const SECRET: &str = "a secret of more than 32 characters";

/// A new service for each input: if one kept its sessions, the fuzzer could learn their ids.
fn service(config: &Config) -> Service {
    let store = RUNTIME.with(|runtime| Store::open(config, &[runtime.handle().clone()]).remove(0));
    BoxCloneService::new(app::service(app::router(&store, config)))
}

fn view(service: &Service, cookies: &[HeaderValue]) -> Response {
    let mut request = Request::new(Body::empty());
    for cookie in cookies {
        request.headers_mut().append(header::COOKIE, cookie.clone());
    }
    RUNTIME.with(|runtime| runtime.block_on(service.clone().oneshot(request))).unwrap()
}

/// The name and value that a response sets.
fn cookie(response: &Response) -> Option<HeaderValue> {
    let cookie = response.headers().get(header::SET_COOKIE)?.as_bytes();
    HeaderValue::from_bytes(cookie.split(|byte| *byte == b';').next()?).ok()
}

fuzz_target!(|input: &[u8]| {
    let lines = input.split(|byte| *byte == b'\n').map(HeaderValue::from_bytes);
    let Ok(cookies) = lines.collect::<Result<Vec<_>, _>>() else { return };
    SETTINGS.with(|settings| {
        for config in settings {
            let service = service(config);
            let response = view(&service, &cookies);
            assert_eq!(response.status(), StatusCode::OK);
            // No session has an id that was made up.
            let new = cookie(&response).expect("a new session");
            assert!(!input.windows(new.len()).any(|part| part == new.as_bytes()));
            // Beside it, the session is found.
            let known = [&[new][..], &cookies].concat();
            assert_eq!(cookie(&view(&service, &known)), None);
        }
    });
});
