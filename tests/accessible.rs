//! Promise: the page is for everybody: axe-core finds nothing to object to in any of its forms, light
//! or dark, on a phone or a wide screen, and at 200 % zoom all of it can be read without scrolling
//! sideways.

use std::fs;

use crate::common::{Browser, Redis, Scheme, Service};
use serde_json::Value;

/// Of a phone and of a wide screen, in pixels.
const WIDTHS: [u32; 2] = [390, 1280];

/// The page, and what there is instead of it.
const FORMS: [&str; 4] = ["the page", "the 404", "the 405", "the 503"];

async fn open(form: &str, browser: &Browser, service: &Service, redis: &Redis) {
    match form {
        "the 404" => browser.open(service, "/nothing").await,
        "the 405" => {
            let url = format!("http://127.0.0.1:{}/bar", service.port);
            let form = format!("data:text/html,<form method=post action={url}><button>send");
            browser.driver.goto(form).await.unwrap();
            browser.follow("button").await;
        }
        "the 503" => {
            redis.order(&["CONFIG", "SET", "maxmemory", "1"]);
            browser.open(service, "/foo").await;
            redis.order(&["CONFIG", "SET", "maxmemory", "0"]);
        }
        _ => {
            browser.open(service, "/foo").await;
            browser.views().await;
        }
    }
}

/// Has axe-core look at the page by all its rules. Gives the least contrast of a text to its ground.
async fn assert_accessible(browser: &Browser, what: &str, axe: &str) -> f64 {
    const RUN: &str = "return axe.run().then(({ violations, incomplete, passes }) => ({
        objections: violations.concat(incomplete).map(({ id, help, nodes }) =>
            [id, help, ...nodes.map((node) => node.html + ' ' + node.failureSummary)]),
        contrasts: passes.filter(({ id }) => id == 'color-contrast')
            .flatMap(({ nodes }) => nodes.map((node) => node.any[0].data.contrastRatio)),
        rules: passes.length,
    }))";
    browser.run(axe).await;
    let found = browser.run(RUN).await;
    let none = Value::Array(Vec::new());
    assert_eq!(found["objections"], none, "{what}: {found:#}");
    assert!(found["rules"].as_u64() > Some(15), "{what}: {found:#}");
    let contrasts = found["contrasts"].as_array().unwrap().iter();
    let contrasts = contrasts.map(|contrast| contrast.as_f64().unwrap());
    assert!(contrasts.len() >= 5, "{what}, each text: {found:#}");
    contrasts.fold(f64::MAX, f64::min)
}

#[tokio::test]
async fn by_axe_core_in_all_forms() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/axe/node_modules/axe-core/axe.min.js"
    );
    let axe = fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("axe-core, see tests/run: {path}: {error}"));
    let redis = Redis::start();
    let service = Service::on(&redis);
    let browser = Browser::start().await;
    for scheme in [Scheme::Light, Scheme::Dark] {
        let mut contrast = f64::MAX;
        for width in WIDTHS {
            browser.look(scheme, width, 1).await;
            for form in FORMS {
                open(form, &browser, &service, &redis).await;
                let what = format!("{form}, {scheme:?}, {width}");
                contrast = contrast.min(assert_accessible(&browser, &what, &axe).await);
            }
        }
        println!("{scheme:?}: the least contrast is {contrast} to 1");
    }
}

/// A phone's zoom too: there it is 195 pixels of CSS that all has to fit in.
#[tokio::test]
async fn at_twice_the_size_nothing_is_cut_off() {
    const FACTS: &str = "const page = document.documentElement;
        const past = [...document.querySelectorAll('body *')].filter((element) =>
            element.getBoundingClientRect().right > page.clientWidth
            || element.scrollWidth > element.clientWidth && element.clientWidth > 0);
        const texts = [...document.querySelectorAll('a, h1, p')].flatMap((element) =>
            [...element.childNodes].filter((node) => node.nodeType == Node.TEXT_NODE));
        const isBroken = (text, word) => {
            const range = new Range();
            range.setStart(text, word.index);
            range.setEnd(text, word.index + word[0].length);
            return range.getClientRects().length > 1;
        };
        const broken = texts.flatMap((text) =>
            [...text.data.matchAll(/[a-z]+/gi)].filter((word) => isBroken(text, word)).map(([word]) => word));
        const sizes = [...document.querySelectorAll('a, h1, p')]
            .map((element) => parseFloat(getComputedStyle(element).fontSize));
        return {
            past: past.map((element) => element.outerHTML),
            broken,
            sideways: page.scrollWidth - page.clientWidth,
            smallest: Math.min(...sizes),
            sentence: parseFloat(getComputedStyle(document.querySelector('h1')).fontSize),
        }";
    let redis = Redis::start();
    let revision = "sessions-".repeat(6);
    let service = Service::start([
        ("REDIS_URL", redis.url().as_str()),
        ("K_REVISION", &revision),
    ]);
    let browser = Browser::start().await;
    for width in WIDTHS {
        for zoom in [1, 2] {
            browser.look(Scheme::Light, width, zoom).await;
            for form in FORMS {
                open(form, &browser, &service, &redis).await;
                if form == "the page" {
                    // The longest there can be.
                    let count = "const h1 = document.querySelector('h1');
                        h1.textContent = h1.textContent.replace(/\\d+/, '18446744073709551615')";
                    browser.run(count).await;
                }
                let facts = browser.run(FACTS).await;
                let what = format!("{form}, {width} pixels, {zoom} times as large: {facts:#}");
                assert_eq!(facts["sideways"], 0, "{what}");
                assert_eq!(facts["past"].as_array().unwrap().len(), 0, "{what}");
                assert_eq!(facts["broken"].as_array().unwrap().len(), 0, "{what}");
                assert!(facts["smallest"].as_f64() >= Some(16.0), "{what}");
                assert!(facts["sentence"].as_f64() >= Some(28.0), "{what}");
            }
        }
    }
}
