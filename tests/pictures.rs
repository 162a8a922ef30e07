//! The README's pictures of the page, made by `tests/run pictures -- --ignored`.

use std::fs;

use crate::common::{Browser, Redis, Scheme, Service};

const PICTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pictures");

/// A picture has so many bytes at most.
const SMALL: usize = 60_000;

#[tokio::test]
#[ignore = "writes docs/pictures"]
async fn pictures() {
    let redis = Redis::start();
    let service = Service::start([
        ("REDIS_URL", redis.url().as_str()),
        ("K_REVISION", "sessions-00007-kit"),
    ]);
    let browser = Browser::start().await;
    fs::create_dir_all(PICTURES).unwrap();
    for (scheme, name) in [(Scheme::Light, "light"), (Scheme::Dark, "dark")] {
        for width in [390, 1280] {
            browser.look(scheme, width, 1).await;
            // The same number in each.
            browser.driver.delete_all_cookies().await.unwrap();
            for _ in 0..3 {
                browser.open(&service, "/foo").await;
            }
            let picture = browser.driver.screenshot_as_png().await.unwrap();
            assert!(picture.len() < SMALL, "{} bytes", picture.len());
            fs::write(format!("{PICTURES}/{name}-{width}.png"), picture).unwrap();
        }
    }
}
