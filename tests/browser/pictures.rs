//! Creates the README's pictures of the page: `tests/run pictures -- --ignored`.

use std::fs;

use crate::common::{Browser, Redis, Scheme, Service};

const PICTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pictures");

/// The maximum size of a picture in bytes.
const MAX_BYTES: usize = 60_000;

#[tokio::test]
#[ignore = "writes docs/pictures"]
async fn pictures() {
    let redis = Redis::start();
    let service = Service::start([("REDIS_URL", redis.url().as_str()), ("K_REVISION", "sessions-00007-kit")]);
    let browser = Browser::start().await;
    fs::create_dir_all(PICTURES).unwrap();
    for (scheme, name) in [(Scheme::Light, "light"), (Scheme::Dark, "dark")] {
        for width in [390, 1280] {
            browser.emulate(scheme, width, 1).await;
            // Every picture shows the same count.
            browser.driver.delete_all_cookies().await.unwrap();
            for _ in 0..3 {
                browser.open(&service, "/foo").await;
            }
            assert_eq!(browser.views().await, 3);
            let picture = browser.driver.screenshot_as_png().await.unwrap();
            assert!(picture.len() < MAX_BYTES, "{} bytes", picture.len());
            fs::write(format!("{PICTURES}/{name}-{width}.png"), picture).unwrap();
        }
    }
}
