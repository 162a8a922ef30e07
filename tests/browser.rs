//! Promise: in a real browser each number is right, whatever buttons and keys lead to it; the page
//! works without script, and leaves the browser nothing to complain of and nothing else to ask for.

use crate::common::{Browser, Exchange, Front, Redis, Service, eventually};
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
        // Each number is how often the browser has asked, this time included.
        let assert_right = async |browser: &Browser, path: &str| {
            assert_eq!(browser.path().await, path);
            assert_eq!(browser.views().await, front.asked(path), "{path}");
        };
        // As it comes, the browser may show a page that it left as it was, without asking.
        let browser = Browser::start().await;
        browser.open(front, "/foo").await;
        browser.reload().await;
        browser.follow("main a").await;
        assert_eq!(browser.views().await, 3, "opened, and twice reloaded");
        assert_right(&browser, "/foo").await;
        browser.follow("a[href='/bar']").await;
        for _ in 0..2 {
            assert_right(&browser, "/bar").await;
            browser
                .leave(async || browser.driver.back().await.unwrap())
                .await;
            assert_right(&browser, "/foo").await;
            browser
                .leave(async || browser.driver.forward().await.unwrap())
                .await;
        }
        browser.reload().await;
        assert_right(&browser, "/bar").await;
    })
    .await;
}

#[tokio::test]
async fn back_and_forward_in_a_browser_that_keeps_no_page() {
    on_both(async |front| {
        let browser = Browser::start_with(&["--disable-back-forward-cache"]).await;
        let (back, forward) = (
            async || browser.driver.back().await.unwrap(),
            async || browser.driver.forward().await.unwrap(),
        );
        let mut seen = Vec::new();
        browser.open(front, "/foo").await;
        seen.push(browser.views().await);
        browser.open(front, "/bar").await;
        seen.push(browser.views().await);
        for _ in 0..2 {
            browser.leave(back).await;
            seen.push(browser.views().await);
            browser.leave(forward).await;
            seen.push(browser.views().await);
        }
        assert_eq!(seen, [1, 1, 2, 2, 3, 3], "each is asked for again");
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
async fn the_links_lead_to_the_pages_and_mark_the_current_one() {
    on_both(async |front| {
        let browser = Browser::start().await;
        browser.open(front, "/").await;
        for path in ["/foo", "/bar", "/", "/foo"] {
            browser.follow(&format!("nav a[href='{path}']")).await;
            assert_eq!(browser.path().await, path);
            assert_eq!(browser.views().await, front.asked(path), "{path}");
            assert_eq!(browser.text("[aria-current=page]").await, path);
            let marked = "return document.querySelectorAll('[aria-current]').length";
            assert_eq!(browser.run(marked).await, 1, "marks on {path}");
            let title = browser.driver.title().await.unwrap();
            assert!(title.starts_with(&format!("{path} ")), "{title}");
        }
    })
    .await;
}

#[tokio::test]
async fn the_keyboard_alone_is_enough() {
    const FOCUS: &str = "const a = document.activeElement, style = getComputedStyle(a);
        return [a.textContent, style.outlineStyle, parseFloat(style.outlineWidth)]";
    let service = Service::start([]);
    let front = Front::start(&service).await;
    let browser = Browser::start().await;
    let links = [
        ("/", "/"),
        ("/foo", "/foo"),
        ("/bar", "/bar"),
        ("View it again", "/foo"),
    ];
    for (index, (link, path)) in links.into_iter().enumerate() {
        browser.open(&front, "/foo").await;
        for _ in 0..=index {
            browser.press(Key::Tab).await;
        }
        let focus = browser.run(FOCUS).await;
        assert_eq!(focus[0], link, "after {} tabs", index + 1);
        let is_seen = focus[1] == "solid" && focus[2].as_f64() >= Some(2.0);
        assert!(is_seen, "the focus is not seen: {focus}");
        browser
            .leave(async || browser.press(Key::Enter).await)
            .await;
        assert_eq!(browser.path().await, path);
        assert_eq!(browser.views().await, front.asked(path), "{path}");
    }
}

#[tokio::test]
async fn the_cookie_as_the_browser_has_it() {
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
            panic!("not one cookie: {cookies:#?}");
        };
        assert_eq!(cookie.name, name);
        assert_eq!(cookie.domain.as_deref(), Some("127.0.0.1"), "{cookie:?}");
        assert_eq!(cookie.path.as_deref(), Some("/"), "{cookie:?}");
        assert_eq!(cookie.http_only, Some(true), "{cookie:?}");
        assert_eq!(cookie.secure, Some(is_secure), "{cookie:?}");
        assert_eq!(cookie.same_site, Some(SameSite::Lax), "{cookie:?}");
        assert_eq!(cookie.expiry, None, "ends with the browser: {cookie:?}");
        assert_eq!(browser.run("return document.cookie").await, "");
        browser.reload().await;
        assert_eq!(browser.views().await, 2, "with {cookie:?}");
    }
}

#[tokio::test]
async fn there_is_nothing_to_complain_of_and_nothing_else_to_ask_for() {
    on_both(async |front| {
        let browser = Browser::start().await;
        for path in ["/", "/foo", "/bar"] {
            browser.open(front, path).await;
            browser.follow("main a").await;
        }
        let complaints = browser.complaints(front).await;
        assert!(complaints.is_empty(), "{complaints:#?}");
        // The style counts: the policy did not block it. And the icon is one.
        let style = "return getComputedStyle(document.querySelector('nav')).display";
        assert_eq!(browser.run(style).await, "flex");
        let icon = "const icon = new Image();
            icon.src = document.querySelector('link[rel=icon]').href;
            return icon.decode().then(() => icon.width > 0)";
        assert_eq!(browser.run(icon).await, true);
        let scripts = "return document.scripts.length";
        assert_eq!(browser.run(scripts).await, 0);
        let exchanges = front.exchanges();
        let paths: Vec<_> = exchanges.iter().map(Exchange::path).collect();
        assert_eq!(paths, ["/", "/", "/foo", "/foo", "/bar", "/bar"]);
    })
    .await;
}

#[tokio::test]
async fn the_session_survives_a_restart_of_the_service() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let port = service.port;
    let browser = Browser::start().await;
    browser.open(&service, "/foo").await;
    browser.reload().await;
    service.stop();
    let settings = [("REDIS_URL", redis.url()), ("PORT", port.to_string())];
    let settings = settings
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let _service = Service::start(settings);
    browser.reload().await;
    assert_eq!(browser.views().await, 3);
}

/// What a page ahead of which a browser may go says, in three ways.
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
async fn going_ahead_of_the_visitor_is_no_view() {
    on_both(async |front| {
        for ahead in SPECULATIONS {
            let browser = Browser::start().await;
            // No page of the service says any of this, nor may one.
            browser
                .devtools("Page.setBypassCSP", json!({ "enabled": true }))
                .await;
            browser.open(front, "/").await;
            let before = front.exchanges().len();
            browser.run(ahead).await;
            let exchange = eventually("a request ahead", async || {
                let mut since = front.exchanges().into_iter().skip(before);
                since.find(|exchange| exchange.path() == "/foo")
            })
            .await;
            let purpose = exchange.asks("sec-purpose");
            assert!(
                purpose.is_some_and(|purpose| purpose.starts_with("prefetch")),
                "{exchange:#?}"
            );
            assert_eq!(exchange.status(), "503", "{exchange:#?}");
            assert_eq!(exchange.answers("set-cookie"), None, "{exchange:#?}");
            browser.follow("a[href='/foo']").await;
            assert_eq!(browser.views().await, 1, "after {ahead}");
            let exchange = front.exchanges().pop().unwrap();
            assert_eq!(exchange.asks("sec-purpose"), None, "{exchange:#?}");
            browser.reload().await;
            assert_eq!(browser.views().await, 2, "after {ahead}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_error_has_a_way_back() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let browser = Browser::start().await;

    browser.open(&service, "//nothing/here").await;
    assert_eq!(browser.text("h1").await, "there is no page here");
    browser.follow("main a").await;
    assert_eq!(browser.path().await, "/");
    assert_eq!(browser.views().await, 1);

    redis.order(&["CONFIG", "SET", "maxmemory", "1"]);
    browser.open(&service, "/foo").await;
    let sentence = browser.text("h1").await;
    assert!(sentence.contains("out of reach"), "{sentence}");
    assert_eq!(browser.text("[aria-current]").await, "/foo");
    redis.order(&["CONFIG", "SET", "maxmemory", "0"]);
    browser.follow("main a").await;
    assert_eq!(browser.path().await, "/foo");
    assert_eq!(browser.views().await, 1);

    let url = format!("http://127.0.0.1:{}/bar", service.port);
    let form = format!("data:text/html,<form method=post action={url}><button>send");
    browser.driver.goto(form).await.unwrap();
    browser.follow("button").await;
    let sentence = browser.text("h1").await;
    assert!(sentence.contains("can be read"), "{sentence}");
    browser.follow("main a").await;
    assert_eq!(browser.path().await, "/bar");
    assert_eq!(browser.views().await, 1);
}

#[tokio::test]
async fn the_page_says_what_is_counted_where_and_who_answered() {
    let redis = Redis::start();
    let url = redis.url();
    let cloud_run = [
        ("K_SERVICE", "sessions"),
        ("K_REVISION", "sessions-00007-<kit>"),
        ("REDIS_URL", url.as_str()),
    ];
    for (service, says, says_not) in [
        (
            Service::on(&redis),
            &["your session", "kept in Redis", "any instance"][..],
            "Revision",
        ),
        (
            Service::start(cloud_run),
            &[
                "your session",
                "kept in Redis",
                "any instance",
                "Revision sessions-00007-<kit>",
            ],
            "memory",
        ),
        (
            Service::start([]),
            &["your session", "memory of this one process"],
            "Redis",
        ),
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
