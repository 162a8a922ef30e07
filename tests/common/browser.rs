//! Debian's Chromium, driven through chromedriver.

use std::{
    env,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::{By, ChromeCapabilities, ChromiumLikeCapabilities, Key, LoggingPrefsLogLevel, WebDriver};

use super::{Process, TIMEOUT, eventually, visitor::Port};

/// Another name of 127.0.0.1 for the browser, which does not trust it without TLS, as it does 127.0.0.1: it sends no
/// `Sec-Fetch-Site` to it.
pub const UNTRUSTED: &str = "untrusted.test";

/// Without a window, and without requests to other machines.
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
    "--host-resolver-rules=MAP untrusted.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
];

/// A browser with a new profile. It is killed when this value is dropped.
pub struct Browser {
    pub driver: WebDriver,
    _chromedriver: Group,
    _home: TempDir,
}

/// A process and all its descendants.
struct Group(Process);

impl Drop for Group {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.0.id());
        let _ = Command::new("sh").args(["-c", "kill -s KILL -- $0", &group]).status();
    }
}

/// The value of `prefers-color-scheme`.
#[derive(Clone, Copy, Debug)]
pub enum Scheme {
    Light,
    Dark,
}

/// Starts chromedriver and returns its port, or `None` if it exits before it listens.
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
    // Keep reading: a full pipe would block chromedriver.
    thread::spawn(move || lines.for_each(drop));
    Some((chromedriver, port?))
}

impl Browser {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts the browser with these flags in addition to [`FLAGS`].
    pub async fn start_with(flags: &[&str]) -> Self {
        let home = TempDir::new().unwrap();
        // chromedriver picks a port that is free on IPv4 and exits if IPv6 has it in use. Try again.
        let (chromedriver, port) =
            (0..10).find_map(|_| chromedriver(&home)).expect("chromedriver does not start, see tests/run");

        let mut chrome = ChromeCapabilities::new();
        for flag in FLAGS.iter().chain(flags) {
            chrome.add_arg(flag).unwrap();
        }
        let profile = home.path().join("profile");
        let profile = format!("--user-data-dir={}", profile.display());
        chrome.add_arg(&profile).unwrap();
        for log in ["browser", "performance"] {
            chrome.set_logging_prefs(log, LoggingPrefsLogLevel::All).unwrap();
        }
        let driver = WebDriver::builder(format!("http://127.0.0.1:{port}"), chrome)
            .request_timeout(TIMEOUT)
            .await
            .expect("Chromium does not start, see tests/run");
        // WebDriver's destructor blocks on the runtime that it runs in. `Group` ends the browser instead.
        driver.clone().leak().unwrap();
        // Debian's Chromium opens a page of another host first. Discard what was logged for it.
        driver.goto("about:blank").await.unwrap();
        driver.get_log("performance").await.unwrap();
        Self { driver, _chromedriver: chromedriver, _home: home }
    }

    /// Opens a page of the service by its address.
    pub async fn open(&self, service: &impl Port, path: &str) {
        self.open_at("127.0.0.1", service, path).await;
    }

    /// Opens a page of the service by this host name.
    pub async fn open_at(&self, host: &str, service: &impl Port, path: &str) {
        let url = format!("http://{host}:{}{path}", service.port());
        self.driver.goto(url).await.unwrap();
    }

    /// Sends a `POST` to a page of the service, from a form elsewhere.
    pub async fn send_form(&self, service: &impl Port, path: &str) {
        let url = format!("http://127.0.0.1:{}{path}", service.port());
        let form = format!("data:text/html,<form method=post action={url}><button>send");
        self.driver.goto(form).await.unwrap();
        self.follow("button").await;
    }

    pub async fn reload(&self) {
        self.driver.refresh().await.unwrap();
    }

    /// Clicks the element that matches this CSS selector and waits for the next page.
    pub async fn follow(&self, link: &str) {
        let link = self.driver.find(By::Css(link)).await.unwrap();
        self.navigate(async || link.click().await.unwrap()).await;
    }

    /// Presses a key once. The browser drops keys that it gets before the page has the focus.
    pub async fn press(&self, key: Key) {
        const READY: &str = "return document.readyState == 'complete' && document.hasFocus()
            && performance.getEntriesByType('paint').length > 0";
        eventually("a page that has the focus", async || (self.run(READY).await == true).then_some(())).await;
        let keys = self.driver.action_chain().send_keys(key);
        keys.perform().await.unwrap();
    }

    /// Runs an action that loads another page, or the same one again, and waits until it is complete.
    pub async fn navigate(&self, action: impl AsyncFn()) {
        const PAGE: &str = "return document.readyState == 'complete' && performance.timeOrigin";
        let before = eventually("a complete page", async || {
            let page = self.run(PAGE).await;
            page.is_number().then_some(page)
        })
        .await;
        action().await;
        eventually("the next page", async || {
            // The call fails between two pages.
            let page = self.driver.execute(PAGE, []).await.ok()?;
            (page.json().is_number() && *page.json() != before).then_some(())
        })
        .await;
    }

    /// Runs a script inside the page and returns its result.
    pub async fn run(&self, script: &str) -> Value {
        let answer = self.driver.execute(script, []).await;
        answer.unwrap_or_else(|error| panic!("{script}: {error}")).json().clone()
    }

    /// The visible text of the element that matches this CSS selector.
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

    /// The path of the current page.
    pub async fn path(&self) -> String {
        self.driver.current_url().await.unwrap().path().to_owned()
    }

    /// Calls a method of the DevTools protocol.
    pub async fn devtools(&self, method: &str, parameters: Value) -> Value {
        let answer = self.driver.cdp().send_raw(method, parameters).await;
        answer.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Emulates a color scheme, a screen width in device pixels, and a zoom factor: the number of
    /// device pixels per CSS pixel.
    pub async fn emulate(&self, scheme: Scheme, width: u32, zoom: u32) {
        const HEIGHT: u32 = 800;
        let scheme = match scheme {
            Scheme::Light => "light",
            Scheme::Dark => "dark",
        };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features })).await;
        let screen = json!({
            "width": width / zoom,
            "height": HEIGHT / zoom,
            "deviceScaleFactor": zoom,
            "mobile": false,
        });
        self.devtools("Emulation.setDeviceMetricsOverride", screen).await;
    }

    /// Problems since the last call: every console message, every request that failed, was blocked or
    /// got an error status, and every request to another host.
    pub async fn problems(&self, service: &impl Port) -> Vec<String> {
        let console = self.driver.get_log("browser").await.unwrap();
        let mut problems: Vec<_> = console.into_iter().map(|entry| entry.message).collect();
        let ours = ["127.0.0.1", UNTRUSTED].map(|host| format!("http://{host}:{}/", service.port()));
        for entry in self.driver.get_log("performance").await.unwrap() {
            let entry: Value = serde_json::from_str(&entry.message).unwrap();
            let (event, what) = (&entry["message"]["method"], &entry["message"]["params"]);
            let url = |of: &str| what[of]["url"].as_str().unwrap().to_owned();
            let problem = match event.as_str().unwrap() {
                "Network.loadingFailed" => Some(format!("failed: {what}")),
                "Network.requestWillBeSent" => Some(url("request"))
                    .filter(|url| url.starts_with("http") && !ours.iter().any(|ours| url.starts_with(ours)))
                    .map(|url| format!("requested: {url}")),
                "Network.responseReceived" => what["response"]["status"]
                    .as_u64()
                    .filter(|status| *status >= 400)
                    .map(|status| format!("answered {status}: {}", url("response"))),
                _ => None,
            };
            problems.extend(problem);
        }
        problems
    }
}
