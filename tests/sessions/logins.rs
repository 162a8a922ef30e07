//! Promise: a session goes on after a login, under a new id, and ends with a logout; requests that are in flight
//! meanwhile lose nothing, revive nothing, and overwrite no cookie. Tested with the example of a cart.

use std::{
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use reqwest::{Client, Method, redirect::Policy};
use thirtyfour::By;
use tokio::time::sleep;

use crate::common::{self, Redis, Service, UNTRUSTED, eventually, number, session_id};

/// Starts the example.
fn cart(settings: &[(&str, &str)]) -> Service {
    let program = Path::new(env!("CARGO_BIN_EXE_cloud-run-sessions")).with_file_name("examples/cart");
    let mut command = Command::new(program);
    Service::launch(command.env_clear().env("PORT", "0").envs(settings.iter().copied()))
}

/// A browser, as far as cookies are concerned: all its requests share a jar.
#[derive(Clone)]
struct Browser {
    client: Client,
    jar: Arc<Mutex<Option<String>>>,
}

#[derive(Clone, Debug)]
struct Answer {
    status: u16,
    body: String,
    cookie: Option<String>,
    retry_after: bool,
}

impl Browser {
    fn new() -> Self {
        Self { client: Client::builder().redirect(Policy::none()).build().unwrap(), jar: Arc::default() }
    }

    async fn request(&self, method: Method, service: &Service, path: &str, text: &str) -> Answer {
        self.request_with(self.cookie(), method, service, path, text).await
    }

    /// The request with the cookie that the browser had when it was made.
    async fn request_with(
        &self,
        cookie: Option<String>,
        method: Method,
        service: &Service,
        path: &str,
        text: &str,
    ) -> Answer {
        let url = format!("http://127.0.0.1:{}{path}", service.port);
        let mut request = self.client.request(method.clone(), url);
        if method == Method::POST {
            request = request.header("content-type", "application/x-www-form-urlencoded").body(format!("text={text}"));
        }
        if let Some(cookie) = cookie {
            request = request.header("cookie", cookie);
        }
        let response = request.send().await.unwrap();
        let cookie = response.headers().get("set-cookie").map(|cookie| cookie.to_str().unwrap().to_owned());
        if let Some(cookie) = &cookie {
            let (pair, _) = cookie.split_once(';').unwrap();
            *self.jar.lock().unwrap() = (!pair.ends_with('=')).then(|| pair.to_owned());
        }
        let retry_after = response.headers().contains_key("retry-after");
        Answer { status: response.status().as_u16(), cookie, retry_after, body: response.text().await.unwrap() }
    }

    async fn get(&self, service: &Service, path: &str) -> Answer {
        self.request(Method::GET, service, path, "").await
    }

    async fn post(&self, service: &Service, path: &str, text: &str) -> Answer {
        self.request(Method::POST, service, path, text).await
    }

    fn cookie(&self) -> Option<String> {
        self.jar.lock().unwrap().clone()
    }

    fn id(&self) -> String {
        session_id(&self.cookie().expect("a cookie"))
    }
}

fn count(answer: &Answer) -> u64 {
    number(&answer.body).unwrap_or_else(|| panic!("{answer:?}"))
}

/// What a request with the id of a session that was ended must get.
fn assert_refused(answer: &Answer) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.cookie, None, "{answer:?}");
    assert!(answer.retry_after && answer.body.contains("has just changed"), "{answer:?}");
}

#[tokio::test]
async fn a_login_keeps_counts_and_data_and_a_logout_ends_them() {
    let redis = Redis::start();
    let url = redis.url();
    for settings in [&[("REDIS_URL", url.as_str())][..], &[]] {
        let service = cart(settings);
        let browser = Browser::new();
        for expected in 1..=3 {
            assert_eq!(count(&browser.get(&service, "/").await), expected);
        }
        assert_eq!(browser.post(&service, "/cart", "apple").await.status, 303);
        let old = browser.clone();
        let old_cookie = browser.cookie();
        let login = browser.post(&service, "/login", "Ann").await;
        assert_eq!(login.status, 303, "{login:?}");
        assert_ne!(browser.cookie(), old_cookie);
        let page = browser.get(&service, "/cart").await.body;
        assert!(page.contains("Ann cart, viewed 1 times") && page.contains("<li>apple</li>"), "{page}");
        assert_eq!(count(&browser.get(&service, "/").await), 4);

        // Whoever has the old id has nothing: on counted pages and others, to read and to change.
        let stale = Browser { jar: Arc::new(Mutex::new(old_cookie)), ..old };
        for path in ["/", "/cart"] {
            assert_refused(&stale.get(&service, path).await);
        }
        for path in ["/cart", "/login", "/logout"] {
            assert_refused(&stale.post(&service, path, "pear").await);
        }
        let page = browser.get(&service, "/cart").await.body;
        assert!(page.contains("<li>apple</li>") && !page.contains("pear"), "{page}");

        let logged_in = browser.cookie();
        let logout = browser.post(&service, "/logout", "").await;
        assert_eq!((logout.status, browser.cookie()), (303, None), "{logout:?}");
        *stale.jar.lock().unwrap() = logged_in;
        assert_refused(&stale.get(&service, "/").await);
        assert_refused(&stale.post(&service, "/cart", "pear").await);
        // Without a cookie, a new session begins.
        assert_eq!(count(&browser.get(&service, "/").await), 1);
    }
    let left: Vec<_> = redis.keys().iter().map(|key| redis.pttl(key)).collect();
    let ended = left.iter().filter(|left| (0..=30_000).contains(*left)).count();
    assert_eq!((ended, left.len()), (2, 3), "{left:?}");
}

/// 64 requests of one visitor, over two instances, overlap with a login and then with a logout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_overlap_a_login_and_a_logout() {
    const ROUNDS: usize = 100;
    let redis = Redis::start();
    let services = [(); 2].map(|()| cart(&[("REDIS_URL", redis.url().as_str())]));
    // Of the requests beside a login, and of those beside a logout.
    let (mut answered, mut refused) = ([0, 0], [0, 0]);
    for round in 0..ROUNDS {
        redis.cli(&["FLUSHALL"]);
        let browser = Browser::new();
        assert_eq!(count(&browser.get(&services[0], "/").await), 1);
        let old = browser.id();

        let cookie = browser.cookie();
        let requests = (0..64).map(async |n| {
            let (method, path, text) = match n {
                20 => (Method::POST, "/login", "Ann".to_owned()),
                _ if n % 4 == 3 => (Method::POST, "/cart", format!("item{n}")),
                _ => (Method::GET, "/", String::new()),
            };
            browser.request_with(cookie.clone(), method, &services[n % 2], path, &text).await
        });
        let answers = join_all(requests).await;
        assert_eq!(answers[20].status, 303, "the login of round {round}: {:?}", answers[20]);
        let cookies: Vec<_> = answers.iter().filter(|answer| answer.cookie.is_some()).collect();
        assert_eq!(cookies.len(), 1, "round {round}: {cookies:?}");
        let new = browser.id();
        assert_ne!(new, old);
        let page = browser.get(&services[round % 2], "/cart").await.body;
        assert!(page.contains("Ann cart"), "{page}");
        let mut counts = Vec::new();
        for (n, answer) in answers.iter().enumerate().filter(|(n, _)| *n != 20) {
            match answer.status {
                200 => counts.push(count(answer)),
                303 => {}
                _ => assert_refused(answer),
            }
            *if answer.status == 503 { &mut refused[0] } else { &mut answered[0] } += 1;
            let is_kept = page.contains(&format!("<li>item{n}</li>"));
            assert_eq!(is_kept, n % 4 == 3 && answer.status == 303, "round {round}, {n}: {answer:?} {page}");
        }
        counts.push(count(&browser.get(&services[0], "/").await));
        counts.sort_unstable();
        assert_eq!(counts, (2..counts.len() as u64 + 2).collect::<Vec<_>>(), "round {round}");
        let mut keys = redis.keys();
        keys.sort();
        let mut expected = [old, new.clone()];
        expected.sort();
        assert_eq!(keys, expected, "round {round}");
        assert!(redis.pttl(&new) > 60_000);

        let cookie = browser.cookie();
        let requests = (0..64).map(async |n| {
            let (method, path) = if n == 20 { (Method::POST, "/logout") } else { (Method::GET, "/") };
            browser.request_with(cookie.clone(), method, &services[n % 2], path, "").await
        });
        let answers = join_all(requests).await;
        assert_eq!(answers[20].status, 303, "the logout of round {round}: {:?}", answers[20]);
        assert_eq!(browser.cookie(), None, "round {round}");
        for (_, answer) in answers.iter().enumerate().filter(|(n, _)| *n != 20) {
            if answer.status == 200 {
                answered[1] += 1;
            } else {
                assert_refused(answer);
                refused[1] += 1;
            }
        }
        let left: Vec<_> = redis.keys().iter().map(|key| redis.pttl(key)).collect();
        assert!(left.iter().all(|left| *left <= 30_000) && left.len() == 2, "round {round}: {left:?}");
    }
    let figures = format!("beside a login and beside a logout, {answered:?} requests succeeded, {refused:?} did not");
    println!("{figures}");
    // In some rounds, requests came before the change, and others after it.
    assert!(answered.iter().chain(&refused).all(|requests| *requests > 0), "{figures}");
}

/// The tombstone's time is 30 s, however short a session lives.
#[tokio::test]
async fn an_ended_session_is_remembered_for_longer_than_a_short_session_lives() {
    let redis = Redis::start();
    let url = redis.url();
    for settings in [&[("REDIS_URL", url.as_str()), ("SESSION_TTL", "1")][..], &[("SESSION_TTL", "1")]] {
        let service = cart(settings);
        let browser = Browser::new();
        browser.get(&service, "/").await;
        let old = browser.cookie();
        browser.post(&service, "/logout", "").await;
        // No session lives for longer than 1 + 5 s.
        sleep(Duration::from_secs(7)).await;
        *browser.jar.lock().unwrap() = old;
        assert_refused(&browser.get(&service, "/").await);
    }
}

/// After the tombstone's time, the id is unknown like any other.
#[tokio::test]
async fn an_ended_session_is_forgotten() {
    let redis = Redis::start();
    let service = cart(&[("REDIS_URL", redis.url().as_str())]);
    let browser = Browser::new();
    browser.get(&service, "/").await;
    let (old, id) = (browser.cookie(), browser.id());
    browser.post(&service, "/logout", "").await;
    assert!((1..=30_000).contains(&redis.pttl(&id)));
    *browser.jar.lock().unwrap() = old;
    // Requests do not keep it.
    redis.cli(&["PEXPIRE", &id, "1000"]);
    eventually("the id is unknown", async || {
        let answer = browser.get(&service, "/").await;
        if answer.status == 503 {
            assert_refused(&answer);
            return None;
        }
        assert_eq!(count(&answer), 1);
        Some(())
    })
    .await;
    assert_ne!(browser.id(), id);
}

#[tokio::test]
async fn a_session_ends_at_its_maximum_age_however_busy() {
    const MAX_AGE: Duration = Duration::from_secs(4);
    let redis = Redis::start();
    let url = redis.url();
    for settings in [&[("REDIS_URL", url.as_str()), ("SESSION_MAX_AGE", "4")][..], &[("SESSION_MAX_AGE", "4")]] {
        let services = [(); 2].map(|()| cart(settings));
        let services = if settings.len() > 1 { &services[..] } else { &services[..1] };
        let browser = Browser::new();
        let begin = Instant::now();
        let mut views = 0;
        loop {
            let old = browser.cookie();
            let answer = browser.get(&services[views as usize % services.len()], "/").await;
            views += 1;
            if views > 1 && browser.cookie() != old {
                assert_eq!(count(&answer), 1);
                break;
            }
            assert_eq!(count(&answer), views);
            assert!(begin.elapsed() < 3 * MAX_AGE, "the session has not ended after {views} views");
            sleep(MAX_AGE / 100).await;
        }
        // Clocks are read in whole seconds.
        assert!(begin.elapsed() > MAX_AGE - Duration::from_millis(1100), "ended after {:?}", begin.elapsed());

        // A login restarts the age. It and the view after it must come in time: clocks are read in whole seconds. If a
        // busy machine makes one of them late, try again.
        let in_time = MAX_AGE - Duration::from_secs(1);
        loop {
            let browser = Browser::new();
            let begin = Instant::now();
            browser.get(&services[0], "/").await;
            sleep(MAX_AGE / 2).await;
            let login = Instant::now();
            assert_eq!(browser.post(&services[0], "/login", "Ann").await.status, 303);
            let is_in_time = begin.elapsed() < in_time;
            sleep(MAX_AGE * 5 / 8).await;
            let answer = browser.get(&services[0], "/").await;
            if is_in_time && login.elapsed() < in_time {
                assert_eq!(count(&answer), 2, "the login has not restarted the age");
                break;
            }
        }
    }
}

#[tokio::test]
async fn another_site_cannot_change_anything() {
    let service = cart(&[]);
    let browser = Browser::new();
    browser.get(&service, "/").await;
    let host = format!("127.0.0.1:{}", service.port);
    let post = async |headers: &[(&str, &str)]| {
        let url = format!("http://{host}/cart");
        let request = browser.client.post(url).header("cookie", browser.cookie().unwrap());
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let request = request.header("content-type", "application/x-www-form-urlencoded").body("text=x");
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(post(&[("sec-fetch-site", "cross-site")]).await, 403);
    assert_eq!(post(&[("origin", "https://evil.example")]).await, 403);
    assert!(!browser.get(&service, "/cart").await.body.contains("<li>"));
    assert_eq!(post(&[("origin", &format!("http://{host}"))]).await, 303);
    assert_eq!(post(&[("sec-fetch-site", "same-origin")]).await, 303);
    // A proxy adds the port that browsers leave out.
    let proxied = ("host", "shop.example:80");
    assert_eq!(post(&[proxied, ("origin", "http://shop.example")]).await, 303);
    assert_eq!(post(&[proxied, ("origin", "http://evil.example")]).await, 403);
    let page = browser.get(&service, "/cart").await.body;
    assert_eq!(page.matches("<li>x</li>").count(), 3, "{page}");
}

/// The example as a visitor uses it, in Chromium: its forms may be sent, and the cookie changes with the login.
#[tokio::test]
async fn the_cart_in_a_browser() {
    let browser = common::Browser::start().await;
    for host in ["127.0.0.1", UNTRUSTED] {
        use_cart(&browser, host).await;
    }
}

async fn use_cart(browser: &common::Browser, host: &str) {
    let service = cart(&[]);
    let send = async |form: &str, text: &str| {
        let field = format!("form[action='{form}'] input");
        if !text.is_empty() {
            browser.driver.find(By::Css(field)).await.unwrap().send_keys(text).await.unwrap();
        }
        browser.follow(&format!("form[action='{form}'] button")).await;
    };
    let cookie = async || browser.driver.get_named_cookie("id").await.ok().map(|cookie| cookie.value);
    browser.open_at(host, &service, "/cart").await;
    send("/cart", "apple").await;
    send("/cart", "pear & <b>plum</b>").await;
    assert_eq!(browser.text("ul").await, "apple\npear & <b>plum</b>");
    let before = cookie().await;
    send("/login", "Ann").await;
    assert_eq!(browser.text("h1").await, "Ann cart, viewed 4 times");
    assert_eq!(browser.text("ul").await, "apple\npear & <b>plum</b>");
    assert_ne!(cookie().await, before);
    send("/logout", "").await;
    assert_eq!(browser.text("h1").await, "Your cart, viewed 1 times");
    assert_eq!(browser.text("ul").await, "");
    assert_eq!(browser.problems(&service).await, [""; 0]);
}
