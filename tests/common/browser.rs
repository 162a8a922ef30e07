//! Debian's Chromium, as a visitor sits before it.

use std::{
    env,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::{
    By, ChromeCapabilities, ChromiumLikeCapabilities, Key, LoggingPrefsLogLevel, WebDriver,
};

use super::{PATIENCE, Process, eventually, visitor::Port};

/// For one that nobody sees, and that asks nobody but this machine for anything.
const FLAGS: [&str; 11] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
];

/// A browser with a new profile of its own, which ends with this value.
pub struct Browser {
    pub driver: WebDriver,
    _chromedriver: Group,
    _home: TempDir,
}

/// A process and all that it started.
struct Group(Process);

impl Drop for Group {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.0.id());
        let _ = Command::new("sh")
            .args(["-c", "kill -s KILL -- $0", &group])
            .status();
    }
}

/// What `prefers-color-scheme` says.
#[derive(Clone, Copy, Debug)]
pub enum Scheme {
    Light,
    Dark,
}

/// Starts it, and gives its port. None if it ends before it has one.
fn chromedriver(home: &TempDir) -> Option<(Group, u16)> {
    let mut chromedriver = Command::new("chromedriver");
    chromedriver
        .arg("--port=0")
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap())
        .envs([("HOME", home.path()), ("TMPDIR", home.path())])
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut chromedriver = Group(Process::spawn(&mut chromedriver));
    let stdout = chromedriver.0.0.stdout.take().unwrap();
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    let port = lines.find_map(|line| {
        let (_, port) = line.split_once("started successfully on port ")?;
        port.trim_end_matches('.').parse().ok()
    });
    // Read on, or a full pipe would stop it.
    thread::spawn(move || lines.for_each(drop));
    Some((chromedriver, port?))
}

impl Browser {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts it with these flags beside its own.
    pub async fn start_with(flags: &[&str]) -> Self {
        let home = TempDir::new().unwrap();
        // It takes a free port of IPv4 for one of IPv6, which it may not be: then another.
        let (chromedriver, port) = (0..10)
            .find_map(|_| chromedriver(&home))
            .expect("chromedriver does not start");

        let mut chrome = ChromeCapabilities::new();
        for flag in FLAGS.iter().chain(flags) {
            chrome.add_arg(flag).unwrap();
        }
        let profile = home.path().join("profile");
        let profile = format!("--user-data-dir={}", profile.display());
        chrome.add_arg(&profile).unwrap();
        for log in ["browser", "performance"] {
            chrome
                .set_logging_prefs(log, LoggingPrefsLogLevel::All)
                .unwrap();
        }
        let driver = WebDriver::builder(format!("http://127.0.0.1:{port}"), chrome)
            .request_timeout(PATIENCE)
            .await
            .expect("Chromium does not start, see tests/run");
        // Its own way to end the browser would wait for the runtime that it blocks.
        driver.clone().leak().unwrap();
        // Debian's begins with a page of another host. What became of that is not the service's.
        driver.goto("about:blank").await.unwrap();
        driver.get_log("performance").await.unwrap();
        Self {
            driver,
            _chromedriver: chromedriver,
            _home: home,
        }
    }

    /// Opens a page of the service by its address.
    pub async fn open(&self, service: &impl Port, path: &str) {
        let url = format!("http://127.0.0.1:{}{path}", service.port());
        self.driver.goto(url).await.unwrap();
    }

    pub async fn reload(&self) {
        self.driver.refresh().await.unwrap();
    }

    /// Clicks on a link, named by CSS, and waits for the page that it leads to.
    pub async fn follow(&self, link: &str) {
        let link = self.driver.find(By::Css(link)).await.unwrap();
        self.leave(async || link.click().await.unwrap()).await;
    }

    pub async fn press(&self, key: Key) {
        let keys = self.driver.action_chain().send_keys(key);
        keys.perform().await.unwrap();
    }

    /// Does what leads to another page, perhaps at the same address, and waits until it is there.
    pub async fn leave(&self, action: impl AsyncFn()) {
        const PAGE: &str = "return document.readyState == 'complete' && performance.timeOrigin";
        let before = self.run(PAGE).await;
        action().await;
        eventually("another page", async || {
            // It fails between two pages.
            let page = self.driver.execute(PAGE, []).await.ok()?;
            (page.json().is_number() && *page.json() != before).then_some(())
        })
        .await;
    }

    /// What a script answers, run inside the page.
    pub async fn run(&self, script: &str) -> Value {
        let answer = self.driver.execute(script, []).await;
        answer
            .unwrap_or_else(|error| panic!("{script}: {error}"))
            .json()
            .clone()
    }

    /// The text of an element, named by CSS, as it is seen.
    pub async fn text(&self, element: &str) -> String {
        let element = self.driver.find(By::Css(element)).await;
        element.unwrap().text().await.unwrap()
    }

    /// The number that the page shows.
    pub async fn views(&self) -> u64 {
        let sentence = self.text("h1").await;
        let number = sentence.strip_prefix("you viewed this page ");
        let number = number.and_then(|rest| rest.strip_suffix(" times")?.parse().ok());
        number.unwrap_or_else(|| panic!("the page says: {sentence}"))
    }

    /// The path of the page at hand.
    pub async fn path(&self) -> String {
        self.driver.current_url().await.unwrap().path().to_owned()
    }

    /// Speaks the DevTools' protocol.
    pub async fn devtools(&self, method: &str, parameters: Value) -> Value {
        let answer = self.driver.cdp().send_raw(method, parameters).await;
        answer.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Has the screen be so many device pixels wide, and so many of them make one of CSS, as zooming
    /// does.
    pub async fn look(&self, scheme: Scheme, width: u32, zoom: u32) {
        const HEIGHT: u32 = 800;
        let scheme = match scheme {
            Scheme::Light => "light",
            Scheme::Dark => "dark",
        };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools(
            "Emulation.setEmulatedMedia",
            json!({ "features": features }),
        )
        .await;
        let screen = json!({
            "width": width / zoom,
            "height": HEIGHT / zoom,
            "deviceScaleFactor": zoom,
            "mobile": false,
        });
        self.devtools("Emulation.setDeviceMetricsOverride", screen)
            .await;
    }

    /// What the browser has had to say since the last call: each message in the console, each request
    /// that failed or was blocked or answered with an error, and each that left for another host.
    pub async fn complaints(&self, service: &impl Port) -> Vec<String> {
        let console = self.driver.get_log("browser").await.unwrap();
        let mut complaints: Vec<_> = console.into_iter().map(|entry| entry.message).collect();
        let ours = format!("http://127.0.0.1:{}/", service.port());
        for entry in self.driver.get_log("performance").await.unwrap() {
            let entry: Value = serde_json::from_str(&entry.message).unwrap();
            let (event, what) = (&entry["message"]["method"], &entry["message"]["params"]);
            let url = |of: &str| what[of]["url"].as_str().unwrap().to_owned();
            let complaint = match event.as_str().unwrap() {
                "Network.loadingFailed" => Some(format!("failed: {what}")),
                "Network.requestWillBeSent" => Some(url("request"))
                    .filter(|url| url.starts_with("http") && !url.starts_with(&ours))
                    .map(|url| format!("asked for: {url}")),
                "Network.responseReceived" => what["response"]["status"]
                    .as_u64()
                    .filter(|status| *status >= 400)
                    .map(|status| format!("answered {status}: {}", url("response"))),
                _ => None,
            };
            complaints.extend(complaint);
        }
        complaints
    }
}
