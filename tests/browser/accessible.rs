//! Promise: the page is accessible. axe-core finds no violation in any form of the page, in light and
//! dark mode, on a phone and on a wide screen; at 200 % zoom all text can be read without horizontal
//! scrolling.

use std::fs;

use crate::common::{Browser, Redis, Scheme, Service};
use serde_json::Value;

/// The widths of a phone and of a wide screen, in pixels.
const WIDTHS: [u32; 2] = [390, 1280];

/// The page, and the error pages.
const FORMS: [&str; 4] = ["the page", "the 404", "the 405", "the 503"];

async fn open(form: &str, browser: &Browser, service: &Service, redis: &Redis) {
    match form {
        "the 404" => browser.open(service, "/nothing").await,
        "the 405" => browser.send_form(service, "/bar").await,
        "the 503" => {
            redis.expect_ok(&["CONFIG", "SET", "maxmemory", "1"]);
            browser.open(service, "/foo").await;
            redis.expect_ok(&["CONFIG", "SET", "maxmemory", "0"]);
        }
        _ => {
            browser.open(service, "/foo").await;
            browser.views().await;
        }
    }
}

/// Runs all rules of axe-core on the page. Returns the lowest contrast ratio of its texts.
async fn assert_accessible(browser: &Browser, what: &str, axe: &str) -> f64 {
    const RUN: &str = "return axe.run().then(({ violations, incomplete, passes }) => ({
        violations: violations.concat(incomplete).map(({ id, help, nodes }) =>
            [id, help, ...nodes.map((node) => node.html + ' ' + node.failureSummary)]),
        contrasts: passes.filter(({ id }) => id == 'color-contrast')
            .flatMap(({ nodes }) => nodes.map((node) => node.any[0].data.contrastRatio)),
        rules: passes.length,
    }))";
    browser.run(axe).await;
    let found = browser.run(RUN).await;
    let none = Value::Array(Vec::new());
    assert_eq!(found["violations"], none, "{what}: {found:#}");
    assert!(found["rules"].as_u64() > Some(15), "{what}: {found:#}");
    let contrasts = found["contrasts"].as_array().unwrap().iter();
    let contrasts = contrasts.map(|contrast| contrast.as_f64().unwrap());
    assert!(contrasts.len() >= 5, "{what}, contrasts: {found:#}");
    contrasts.fold(f64::MAX, f64::min)
}

#[tokio::test]
async fn axe_core_finds_no_violation() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/axe/node_modules/axe-core/axe.min.js");
    let axe =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("axe-core is missing, see tests/run: {path}: {error}"));
    let redis = Redis::start();
    let service = Service::on(&redis);
    let browser = Browser::start().await;
    for scheme in [Scheme::Light, Scheme::Dark] {
        let mut contrast = f64::MAX;
        for width in WIDTHS {
            browser.emulate(scheme, width, 1).await;
            for form in FORMS {
                open(form, &browser, &service, &redis).await;
                let what = format!("{form}, {scheme:?}, {width}");
                contrast = contrast.min(assert_accessible(&browser, &what, &axe).await);
            }
        }
        println!("{scheme:?}: the lowest contrast is {contrast} to 1");
    }
}

/// At 200 % zoom, a phone has a width of 195 CSS pixels.
#[tokio::test]
async fn nothing_is_cut_off_at_200_percent_zoom() {
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
    let service = Service::start([("REDIS_URL", redis.url().as_str()), ("K_REVISION", &revision)]);
    let browser = Browser::start().await;
    for width in WIDTHS {
        for zoom in [1, 2] {
            browser.emulate(Scheme::Light, width, zoom).await;
            for form in FORMS {
                open(form, &browser, &service, &redis).await;
                if form == "the page" {
                    // The longest possible count.
                    let count = "const h1 = document.querySelector('h1');
                        h1.textContent = h1.textContent.replace(/\\d+/, '18446744073709551615')";
                    browser.run(count).await;
                }
                let facts = browser.run(FACTS).await;
                let what = format!("{form}, {width} pixels, zoom {zoom}: {facts:#}");
                assert_eq!(facts["sideways"], 0, "{what}");
                assert_eq!(facts["past"].as_array().unwrap().len(), 0, "{what}");
                assert_eq!(facts["broken"].as_array().unwrap().len(), 0, "{what}");
                assert!(facts["smallest"].as_f64() >= Some(16.0), "{what}");
                assert!(facts["sentence"].as_f64() >= Some(28.0), "{what}");
            }
        }
    }
}
