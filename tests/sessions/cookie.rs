//! Promise: the cookie is a session cookie with safe attributes. A client without the id of a live session gets a
//! new session with a new id. A session ends when it expires.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use axum::routing::get;
use cloud_run_sessions::web::{app::with_session, error::Error};
use reqwest::Method;
use tower_sessions::Session;

use crate::common::{Redis, Service, Visitor, eventually, serve, session_id};

const SECRET: &str = "a secret of more than 32 characters";
const UNKNOWN: &str = "AAAAAAAAAAAAAAAAAAAAAA";

async fn cookie_attributes(service: &Service) -> BTreeSet<String> {
    let answer = Visitor::new().view(service, "/").await;
    let cookie = answer.header("set-cookie").unwrap();
    let id = answer.cookie().unwrap();
    cookie.replace(&id, id.split('=').next().unwrap()).split("; ").map(str::to_owned).collect()
}

#[tokio::test]
async fn the_cookie_is_a_session_cookie() {
    let service = Service::start([]);
    let expected = ["id", "HttpOnly", "SameSite=Lax", "Path=/"].map(str::to_owned);
    assert_eq!(cookie_attributes(&service).await, expected.into());
}

#[tokio::test]
async fn on_cloud_run_the_cookie_is_bound_to_host_and_https() {
    let redis = Redis::start();
    let service = Service::start([("K_SERVICE", "sessions"), ("REDIS_URL", &redis.url())]);
    let expected = ["__Host-id", "HttpOnly", "SameSite=Lax", "Secure", "Path=/"].map(str::to_owned);
    assert_eq!(cookie_attributes(&service).await, expected.into());
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    assert_eq!(visitor.count(&service, "/").await, 2);
}

#[tokio::test]
async fn secure_cookie_overrides_the_platform() {
    let redis = Redis::start();
    let elsewhere = Service::start([("SECURE_COOKIE", "true")]);
    let expected = ["__Host-id", "HttpOnly", "SameSite=Lax", "Secure", "Path=/"].map(str::to_owned);
    assert_eq!(cookie_attributes(&elsewhere).await, expected.into());
    let settings = [("K_SERVICE", "sessions"), ("REDIS_URL", &redis.url()), ("SECURE_COOKIE", "false")];
    let expected = ["id", "HttpOnly", "SameSite=Lax", "Path=/"].map(str::to_owned);
    assert_eq!(cookie_attributes(&Service::start(settings)).await, expected.into());
}

#[tokio::test]
async fn a_setting_names_the_cookie() {
    for (name, secure) in [
        ("__session", "true"),
        ("__session", "false"),
        ("__Host-a", "true"),
        ("__sEcURE-a", "true"),
        ("__Http-a", "true"),
        // The characters of a token, with some that the cookie crate would escape.
        ("a!#$%&'*+-.^_`|~Z9%20", "false"),
        ("__Host", "false"),
        ("id", "true"),
    ] {
        for secret in [&[][..], &[("SESSION_SECRET", SECRET)]] {
            let settings = [("SESSION_COOKIE", name), ("SECURE_COOKIE", secure)];
            let service = Service::start(settings.into_iter().chain(secret.iter().copied()));
            let mut visitor = Visitor::new();
            assert_eq!(visitor.count(&service, "/").await, 1);
            let cookie = visitor.cookie.clone().unwrap();
            let value = cookie.strip_prefix(name).and_then(|rest| rest.strip_prefix('='));
            assert!(value.is_some(), "{name}: {cookie}");
            for count in 2..=3 {
                assert_eq!(visitor.count(&service, "/").await, count, "{cookie}");
            }
            // Under another name, the value names no session.
            let other = Visitor::with_cookie(format!("other={}", value.unwrap())).count(&service, "/").await;
            assert_eq!(other, 1, "{name}: the value under another name");
        }
    }
}

#[tokio::test]
async fn a_line_break_at_the_end_of_a_secret_is_no_part_of_it() {
    const OTHER: &str = "another one, of more than 32 characters";
    let redis = Redis::start();
    let url = redis.url();
    let start = |secret: &str, previous: Option<&str>| {
        let previous = previous.map(|previous| ("SESSION_SECRET_PREVIOUS", previous));
        let settings = [("REDIS_URL", url.as_str()), ("SESSION_SECRET", secret)];
        Service::start(settings.into_iter().chain(previous))
    };
    let exact = start(SECRET, None);
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(&exact, "/").await, 1);
    for (views, end) in ["\n", "\r\n", "\n\n", "\r"].into_iter().enumerate() {
        let secret = format!("{SECRET}{end}");
        let count = 2 + 3 * views as u64;
        assert_eq!(visitor.count(&start(&secret, None), "/").await, count, "{end:?}");
        // The other one signs the cookie anew, and back again.
        assert_eq!(visitor.count(&start(OTHER, Some(&secret)), "/").await, count + 1, "{end:?}");
        assert_eq!(visitor.count(&start(SECRET, Some(OTHER)), "/").await, count + 2, "{end:?}");
    }
    // Any other white space is part of it.
    for other in [format!(" {SECRET}"), format!("{SECRET} "), format!("\n{SECRET}")] {
        assert_eq!(visitor.clone().count(&start(&other, None), "/").await, 1, "{other:?}");
    }
}

#[tokio::test]
async fn the_cookie_is_set_once() {
    let redis = Redis::start();
    for service in [Service::on(&redis), Service::start([])] {
        let mut visitor = Visitor::new();
        assert!(visitor.view(&service, "/").await.cookie().is_some());
        for path in ["/", "/foo", "/"] {
            assert_eq!(visitor.view(&service, path).await.cookie(), None);
        }
    }
}

/// Asserts that a request with each of these cookies starts a new session with a new id.
async fn assert_new_session(service: &Service, redis: Option<&Redis>, cookies: &[String]) {
    for cookie in cookies {
        let mut visitor = Visitor::with_cookie(cookie);
        let answer = visitor.view(service, "/").await;
        assert_eq!(answer.count(), 1, "{cookie}");
        let id = session_id(&answer.cookie().expect("a new cookie"));
        assert!(!cookie.contains(&id), "the id in {cookie} was adopted");
        if let Some(redis) = redis {
            let keys = redis.keys();
            assert!(keys.contains(&id), "{cookie}");
            assert!(keys.iter().all(|key| !cookie.contains(key.as_str())), "{cookie}: {keys:?}");
        }
        assert_eq!(visitor.count(service, "/").await, 2, "{cookie}");
    }
}

#[tokio::test]
async fn an_unknown_or_malformed_id_gets_a_new_session() {
    let cookies = [
        UNKNOWN,
        "",
        "x",
        "AAAAAAAAAAAAAAAAAAAAA",
        "AAAAAAAAAAAAAAAAAAAAAAA",
        "AAAAAAAAAAAAAAAAAAAAA!",
        "%41AAAAAAAAAAAAAAAAAAAAA",
        "\"AAAAAAAAAAAAAAAAAAAAAA\"",
        "../../etc/passwd",
        "{}",
        "*",
        &"A".repeat(4000),
    ]
    .map(|id| format!("id={id}"));
    let redis = Redis::start();
    assert_new_session(&Service::on(&redis), Some(&redis), &cookies).await;
    assert_new_session(&Service::start([]), None, &cookies).await;
}

#[tokio::test]
async fn a_deleted_session_is_not_revived() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    visitor.view(&service, "/").await;
    let cookie = visitor.cookie.clone().unwrap();
    let id = session_id(&cookie);
    assert_eq!(redis.cli(&["DEL", &id]), "1");
    assert_eq!(visitor.count(&service, "/").await, 1);
    assert_ne!(visitor.cookie.unwrap(), cookie);
    assert_eq!(redis.cli(&["EXISTS", &session_id(&cookie)]), "0");
}

#[tokio::test]
async fn a_signed_cookie_cannot_be_forged() {
    let redis = Redis::start();
    let url = redis.url();
    let start = |secret| Service::start([("REDIS_URL", url.as_str()), ("SESSION_SECRET", secret)]);
    let service = start(SECRET);
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    assert_eq!(visitor.count(&service, "/").await, 2);
    // Another instance with the same secret accepts the cookie.
    assert_eq!(visitor.count(&start(SECRET), "/").await, 3);

    let signed = visitor.cookie.clone().unwrap();
    let id = session_id(&signed);
    let mut other = Visitor::new();
    other.view(&start("another secret of at least 32 characters"), "/").await;
    let cookies = [
        // A valid id without a signature.
        format!("id={id}"),
        // A valid signature of another id.
        signed.replace(&id, UNKNOWN),
        // A valid id with a wrong signature.
        format!("id={}{id}", "A".repeat(44)),
        // Signed with another secret.
        other.cookie.unwrap(),
    ];
    for cookie in &cookies {
        let answer = Visitor::with_cookie(cookie).view(&service, "/").await;
        assert_eq!(answer.count(), 1, "{cookie}");
        assert!(!cookie.contains(&session_id(&answer.cookie().unwrap())), "{cookie}");
    }
    assert_eq!(visitor.count(&service, "/").await, 4, "a forged cookie was counted");
}

#[tokio::test]
async fn a_secret_is_rotated_and_nobody_begins_anew() {
    const NEXT: &str = "the next secret of at least 32 characters";
    let redis = Redis::start();
    let url = redis.url();
    let start = |secret, previous| {
        let settings = [("REDIS_URL", url.as_str()), ("SESSION_SECRET", secret), ("SESSION_SECRET_PREVIOUS", previous)];
        Service::start(settings)
    };
    let before = Service::start([("REDIS_URL", url.as_str()), ("SESSION_SECRET", SECRET)]);
    let (announced, rotated) = (start(SECRET, NEXT), start(NEXT, SECRET));
    let after = Service::start([("REDIS_URL", url.as_str()), ("SESSION_SECRET", NEXT)]);

    let mut visitor = Visitor::new();
    visitor.view(&before, "/").await;
    let old = visitor.cookie.clone().unwrap();
    let answer = visitor.view(&rotated, "/").await;
    assert_eq!(answer.count(), 2);
    let new = answer.cookie().expect("a cookie with the new signature");
    assert_ne!(new, old);
    assert_eq!(session_id(&new), session_id(&old));
    assert_eq!(visitor.view(&rotated, "/").await.cookie(), None, "signed anew twice");
    // While both run, requests go back and forth.
    for (count, service) in (4..).zip([&announced, &rotated, &announced, &rotated, &after]) {
        assert_eq!(visitor.count(service, "/").await, count);
    }
    assert_eq!(Visitor::with_cookie(&old).count(&after, "/").await, 1, "the old secret is still valid");
    // A page that is not counted, or fails, does not lose the session either.
    let mut visitor = Visitor::with_cookie(&old);
    assert_eq!(visitor.request(Method::HEAD, &rotated, "/", "*/*").await.status, 200);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(visitor.view(&rotated, "/").await.status, 503);
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(visitor.count(&rotated, "/").await, 9);
}

/// Any other may be over by now, or go on under another id.
#[tokio::test]
async fn a_cookie_is_signed_anew_only_if_its_session_was_seen() {
    async fn look(session: Session) -> Result<(), Error> {
        Ok(session.get::<u64>("key").await.map(drop)?)
    }
    let redis = Redis::start();
    let url = redis.url();
    let mut visitor = Visitor::new();
    visitor.view(&Service::start([("REDIS_URL", url.as_str()), ("SESSION_SECRET", SECRET)]), "/").await;
    let settings =
        ["--redis-url", &url, "--session-secret", &SECRET.replace("a", "b"), "--session-secret-previous", SECRET];
    let rotated = serve(&settings, |routes, sessions| {
        let pages = routes.route("/blind", with_session(get(async || ()), sessions));
        pages.route("/look", with_session(get(look), sessions))
    })
    .await;
    assert_eq!(visitor.view(&rotated, "/blind").await.header("set-cookie"), None);
    let signed = visitor.view(&rotated, "/look").await.cookie().expect("a cookie with the new signature");
    assert_eq!(visitor.view(&rotated, "/look").await.header("set-cookie"), None, "{signed}");
}

/// A session that is over has not been ended by the request that finds that out. By the time of its answer, another one
/// may have begun the next session.
#[tokio::test]
async fn a_cookie_is_removed_only_by_the_request_that_ends_its_session() {
    async fn look(session: Session) -> Result<(), Error> {
        Ok(session.get::<u64>("key").await.map(drop)?)
    }
    async fn leave(session: Session) -> Result<(), Error> {
        Ok(session.flush().await?)
    }
    async fn come_and_go(session: Session) -> Result<(), Error> {
        session.insert("key", 1).await?;
        session.save().await?;
        Ok(session.flush().await?)
    }
    let redis = Redis::start();
    for settings in [&["--redis-url", &redis.url()][..], &[]] {
        let service = serve(settings, |routes, sessions| {
            routes
                .route("/look", with_session(get(look), sessions))
                .route("/leave", with_session(get(leave), sessions))
                .route("/come-and-go", with_session(get(come_and_go), sessions))
        })
        .await;
        let mut visitor = Visitor::new();
        visitor.view(&service, "/").await;
        let over = format!("id={UNKNOWN}");
        for (cookie, path, removes) in [
            (Some(over.clone()), "/look", false),
            (Some(over.clone()), "/leave", false),
            (None, "/come-and-go", false),
            (visitor.cookie, "/leave", true),
        ] {
            let mut visitor = cookie.map_or_else(Visitor::new, Visitor::with_cookie);
            let answer = visitor.view(&service, path).await;
            assert_eq!(answer.status, 200, "{path}");
            assert_eq!(answer.header("set-cookie").is_some(), removes, "{path}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn an_expired_session_has_ended_in_redis() {
    const TTL: Duration = Duration::from_secs(2);
    let redis = Redis::start();
    let service = Service::start([("REDIS_URL", redis.url().as_str()), ("SESSION_TTL", "2")]);
    for views in 1..=2 {
        let mut visitor = Visitor::new();
        let begin = Instant::now();
        for view in 1..=views {
            assert_eq!(visitor.count(&service, "/").await, view, "{:?}", begin.elapsed());
        }
        let old = visitor.cookie.clone().unwrap();
        eventually("the record expires", async || (redis.cli(&["EXISTS", &session_id(&old)]) == "0").then_some(()))
            .await;
        assert!(begin.elapsed() >= TTL, "ended after {:?}", begin.elapsed());
        assert_eq!(visitor.count(&service, "/").await, 1);
        assert_ne!(visitor.cookie.unwrap(), old);
    }
}

#[tokio::test]
async fn an_expired_session_has_ended_in_the_in_memory_store() {
    const TTL: Duration = Duration::from_secs(3);
    let service = Service::start([("SESSION_TTL", "3")]);
    let mut visitor = Visitor::new();
    visitor.view(&service, "/").await;
    let begin = Instant::now();
    let mut views = 1;
    while begin.elapsed() < TTL + TTL / 2 {
        tokio::time::sleep(TTL / 6).await;
        views += 1;
        assert_eq!(visitor.count(&service, "/").await, views, "{:?}", begin.elapsed());
    }
    // The in-memory store cannot be polled without a view, which would renew the session. It ends up to 5 s later.
    tokio::time::sleep(TTL + Duration::from_secs(5)).await;
    let old = visitor.cookie.clone();
    assert_eq!(visitor.count(&service, "/").await, 1);
    assert_ne!(visitor.cookie, old);
}
