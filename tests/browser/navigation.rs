//! Promise: a real browser shows the correct count after every kind of navigation. The page needs no
//! script, causes no console message and no failed request, and loads nothing but itself.

use crate::common::{Browser, Exchange, Front, Redis, Service, eventually, free_port};
use serde_json::json;
use thirtyfour::{Key, SameSite};

/// Runs a test on both stores.
async fn on_both(test: impl AsyncFn(&Front)) {
    let redis = Redis::start();
    for service in [Service::on(&redis), Service::start([])] {
        test(&Front::start(&service).await).await;
    }
}

#[tokio::test]
async fn reload_back_and_forward() {
    on_both(async |front| {
        // The expected count is the number of requests so far, including the one for this page.
        let assert_right = async |browser: &Browser, path: &str| {
            assert_eq!(browser.path().await, path);
            assert_eq!(browser.views().await, front.requests_for(path), "{path}");
        };
        // By default, the browser may restore a page from its back/forward cache without a request.
        let browser = Browser::start().await;
        browser.open(front, "/foo").await;
        browser.reload().await;
        browser.follow("main a").await;
        assert_eq!(browser.views().await, 3, "opened and reloaded twice");
        assert_right(&browser, "/foo").await;
        browser.follow("a[href='/bar']").await;
        for _ in 0..2 {
            assert_right(&browser, "/bar").await;
            browser.navigate(async || browser.driver.back().await.unwrap()).await;
            assert_right(&browser, "/foo").await;
            browser.navigate(async || browser.driver.forward().await.unwrap()).await;
        }
        browser.reload().await;
        assert_right(&browser, "/bar").await;
    })
    .await;
}

#[tokio::test]
async fn back_and_forward_without_a_back_forward_cache() {
    on_both(async |front| {
        let browser = Browser::start_with(&["--disable-back-forward-cache"]).await;
        let (back, forward) =
            (async || browser.driver.back().await.unwrap(), async || browser.driver.forward().await.unwrap());
        let mut seen = Vec::new();
        browser.open(front, "/foo").await;
        seen.push(browser.views().await);
        browser.open(front, "/bar").await;
        seen.push(browser.views().await);
        for _ in 0..2 {
            browser.navigate(back).await;
            seen.push(browser.views().await);
            browser.navigate(forward).await;
            seen.push(browser.views().await);
        }
        assert_eq!(seen, [1, 1, 2, 2, 3, 3], "each navigation is a request");
    })
    .await;
}

#[tokio::test]
async fn two_tabs_are_one_visitor_and_two_profiles_are_two() {
    on_both(async |front| {
        let (ada, bob) = (Browser::start().await, Browser::start().await);
        ada.open(front, "/foo").await;
        let first = ada.driver.window().await.unwrap();
        let second = ada.driver.new_tab().await.unwrap();
        ada.driver.switch_to_window(second.clone()).await.unwrap();
        ada.open(front, "/foo").await;
        let mut seen = vec![ada.views().await];
        for tab in [first, second] {
            ada.driver.switch_to_window(tab).await.unwrap();
            ada.reload().await;
            seen.push(ada.views().await);
        }
        assert_eq!(seen, [2, 3, 4], "in Ada's two tabs");
        bob.open(front, "/foo").await;
        assert_eq!(bob.views().await, 1, "in Bob's profile");
        ada.reload().await;
        assert_eq!(ada.views().await, 5);
    })
    .await;
}

#[tokio::test]
async fn links_lead_to_the_pages_and_mark_the_current_one() {
    on_both(async |front| {
        let browser = Browser::start().await;
        browser.open(front, "/").await;
        for path in ["/foo", "/bar", "/", "/foo"] {
            browser.follow(&format!("nav a[href='{path}']")).await;
            assert_eq!(browser.path().await, path);
            assert_eq!(browser.views().await, front.requests_for(path), "{path}");
            assert_eq!(browser.text("[aria-current=page]").await, path);
            let marked = "return document.querySelectorAll('[aria-current]').length";
            assert_eq!(browser.run(marked).await, 1, "marked links on {path}");
            let title = browser.driver.title().await.unwrap();
            assert!(title.starts_with(&format!("{path} ")), "{title}");
        }
    })
    .await;
}

#[tokio::test]
async fn the_page_can_be_used_by_keyboard() {
    const FOCUS: &str = "const a = document.activeElement, style = getComputedStyle(a);
        return [a.textContent, style.outlineStyle, parseFloat(style.outlineWidth)]";
    let service = Service::start([]);
    let front = Front::start(&service).await;
    let browser = Browser::start().await;
    let links = [("/", "/"), ("/foo", "/foo"), ("/bar", "/bar"), ("View again", "/foo")];
    for (index, (link, path)) in links.into_iter().enumerate() {
        browser.open(&front, "/foo").await;
        for (expected, _) in &links[..=index] {
            browser.press(Key::Tab).await;
            eventually(&format!("the focus on {expected}"), async || {
                (browser.run(FOCUS).await[0] == *expected).then_some(())
            })
            .await;
        }
        let focus = browser.run(FOCUS).await;
        assert_eq!(focus[0], link, "after {} tabs", index + 1);
        let is_visible = focus[1] == "solid" && focus[2].as_f64() >= Some(2.0);
        assert!(is_visible, "the focus is not visible: {focus}");
        browser.navigate(async || browser.press(Key::Enter).await).await;
        assert_eq!(browser.path().await, path);
        assert_eq!(browser.views().await, front.requests_for(path), "{path}");
    }
}

#[tokio::test]
async fn the_browser_keeps_the_cookie_with_its_attributes() {
    let redis = Redis::start();
    let url = redis.url();
    let on_cloud_run = [("K_SERVICE", "sessions"), ("REDIS_URL", url.as_str())];
    for (service, name, is_secure) in [
        (Service::start([]), "id", false),
        (Service::on(&redis), "id", false),
        (Service::start(on_cloud_run), "__Host-id", true),
    ] {
        let browser = Browser::start().await;
        browser.open(&service, "/foo").await;
        let cookies = browser.driver.get_all_cookies().await.unwrap();
        let [cookie] = &cookies[..] else {
            panic!("expected one cookie: {cookies:#?}");
        };
        assert_eq!(cookie.name, name);
        assert_eq!(cookie.domain.as_deref(), Some("127.0.0.1"), "{cookie:?}");
        assert_eq!(cookie.path.as_deref(), Some("/"), "{cookie:?}");
        assert_eq!(cookie.http_only, Some(true), "{cookie:?}");
        assert_eq!(cookie.secure, Some(is_secure), "{cookie:?}");
        assert_eq!(cookie.same_site, Some(SameSite::Lax), "{cookie:?}");
        assert_eq!(cookie.expiry, None, "not a session cookie: {cookie:?}");
        assert_eq!(browser.run("return document.cookie").await, "");
        browser.reload().await;
        assert_eq!(browser.views().await, 2, "with {cookie:?}");
    }
}

#[tokio::test]
async fn the_page_causes_no_problem_and_no_other_request() {
    on_both(async |front| {
        let browser = Browser::start().await;
        for path in ["/", "/foo", "/bar"] {
            browser.open(front, path).await;
            browser.follow("main a").await;
        }
        // The content security policy allows the style, and the icon can be decoded.
        let style = "return getComputedStyle(document.querySelector('nav')).display";
        assert_eq!(browser.run(style).await, "flex");
        let icon = "const icon = new Image();
            icon.src = document.querySelector('link[rel=icon]').href;
            return icon.decode().then(() => icon.width > 0)";
        assert_eq!(browser.run(icon).await, true);
        let scripts = "return document.scripts.length";
        assert_eq!(browser.run(scripts).await, 0);
        let problems = browser.problems(front).await;
        assert!(problems.is_empty(), "{problems:#?}");
        let exchanges = front.exchanges();
        let paths: Vec<_> = exchanges.iter().map(Exchange::path).collect();
        assert_eq!(paths, ["/", "/", "/foo", "/foo", "/bar", "/bar"]);
    })
    .await;
}

#[tokio::test]
async fn the_session_survives_a_restart_of_the_service() {
    let redis = Redis::start();
    // No outgoing connection takes this port while the service is away.
    let settings = [("REDIS_URL", redis.url()), ("PORT", free_port().to_string())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let service = Service::start(settings);
    let browser = Browser::start().await;
    browser.open(&service, "/foo").await;
    browser.reload().await;
    service.stop();
    let _service = Service::start(settings);
    browser.reload().await;
    assert_eq!(browser.views().await, 3);
}

/// Three ways in which a page makes the browser fetch another page in advance.
const SPECULATIONS: [&str; 3] = [
    "const ahead = document.createElement('link');
     ahead.rel = 'prefetch';
     ahead.href = '/foo';
     document.head.append(ahead)",
    "const ahead = document.createElement('script');
     ahead.type = 'speculationrules';
     ahead.text = JSON.stringify({ prefetch: [{ urls: ['/foo'], eagerness: 'immediate' }] });
     document.head.append(ahead)",
    "const ahead = document.createElement('script');
     ahead.type = 'speculationrules';
     ahead.text = JSON.stringify({ prerender: [{ urls: ['/foo'], eagerness: 'immediate' }] });
     document.head.append(ahead)",
];

#[tokio::test]
async fn a_speculative_request_is_not_a_view() {
    on_both(async |front| {
        for ahead in SPECULATIONS {
            let browser = Browser::start().await;
            // The policy of the service's pages forbids these scripts, so it is bypassed.
            browser.devtools("Page.setBypassCSP", json!({ "enabled": true })).await;
            browser.open(front, "/").await;
            let before = front.exchanges().len();
            browser.run(ahead).await;
            let exchange = eventually("a speculative request", async || {
                let mut since = front.exchanges().into_iter().skip(before);
                since.find(|exchange| exchange.path() == "/foo")
            })
            .await;
            let purpose = exchange.request_header("sec-purpose");
            assert!(purpose.is_some_and(|purpose| purpose.starts_with("prefetch")), "{exchange:#?}");
            assert_eq!(exchange.status(), "503", "{exchange:#?}");
            assert_eq!(exchange.response_header("set-cookie"), None, "{exchange:#?}");
            browser.follow("a[href='/foo']").await;
            assert_eq!(browser.views().await, 1, "after {ahead}");
            let exchange = front.exchanges().pop().unwrap();
            assert_eq!(exchange.request_header("sec-purpose"), None, "{exchange:#?}");
            browser.reload().await;
            assert_eq!(browser.views().await, 2, "after {ahead}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_error_page_links_back() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let browser = Browser::start().await;

    browser.open(&service, "//nothing/here").await;
    assert_eq!(browser.text("h1").await, "there is no page here");
    browser.follow("main a").await;
    assert_eq!(browser.path().await, "/");
    assert_eq!(browser.views().await, 1);

    redis.expect_ok(&["CONFIG", "SET", "maxmemory", "1"]);
    browser.open(&service, "/foo").await;
    let sentence = browser.text("h1").await;
    assert!(sentence.contains("cannot be reached"), "{sentence}");
    assert_eq!(browser.text("[aria-current]").await, "/foo");
    redis.expect_ok(&["CONFIG", "SET", "maxmemory", "0"]);
    browser.follow("main a").await;
    assert_eq!(browser.path().await, "/foo");
    assert_eq!(browser.views().await, 1);

    browser.send_form(&service, "/bar").await;
    let sentence = browser.text("h1").await;
    assert!(sentence.contains("does not accept this method"), "{sentence}");
    browser.follow("main a").await;
    assert_eq!(browser.path().await, "/");
    assert_eq!(browser.views().await, 2);
}

#[tokio::test]
async fn the_page_names_the_store_and_the_revision() {
    let redis = Redis::start();
    let url = redis.url();
    let cloud_run = [("K_SERVICE", "sessions"), ("K_REVISION", "sessions-00007-<kit>"), ("REDIS_URL", url.as_str())];
    for (service, says, says_not) in [
        (Service::on(&redis), &["your session", "stored in Redis", "any instance"][..], "revision"),
        (
            Service::start(cloud_run),
            &["your session", "stored in Redis", "any instance", "revision sessions-00007-<kit>"],
            "memory",
        ),
        (Service::start([]), &["your session", "only in this process's memory"], "Redis"),
    ] {
        let browser = Browser::start().await;
        browser.open(&service, "/").await;
        let text = browser.text("main p").await;
        for part in says {
            assert!(text.contains(part), "no {part} in {text}");
        }
        assert!(!text.contains(says_not), "{says_not} in {text}");
    }
}
