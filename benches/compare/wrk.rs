//! Load by wrk, which cycles through the visitors' cookies.

use std::{fs, path::PathBuf, process::Command, time::Duration};

/// What wrk did.
pub struct Done {
    pub views: f64,
    pub views_per_second: f64,
    /// The median latency.
    pub p50: Duration,
}

/// Views `/` on `port` for `time`. Each connection has this many views in flight, which it sends in one piece.
pub fn run(port: u16, cookies: &[String], connections: usize, pipelined: usize, time: Duration) -> Done {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cookies");
    fs::write(&file, cookies.join("\n")).unwrap();
    let output = Command::new("wrk")
        .env("COOKIES", file)
        .env("PIPELINED", pipelined.to_string())
        .args(["-t1", &format!("-c{connections}"), &format!("-d{}s", time.as_secs())])
        // With 900 connections, some peers take longer than the usual two seconds.
        .args(["--timeout", "10s", "-s", concat!(env!("CARGO_MANIFEST_DIR"), "/benches/load.lua")])
        .arg(format!("http://127.0.0.1:{port}/"))
        .output()
        .expect("wrk");
    let said = String::from_utf8_lossy(&output.stdout);
    let result = said.lines().find_map(|line| line.strip_prefix("result "));
    let result = result.unwrap_or_else(|| panic!("wrk said {said}"));
    let fields: Vec<f64> = result.split(' ').map(|field| field.parse().unwrap()).collect();
    let [views, micros, p50, wrong] = fields[..] else { panic!("wrk said {said}") };
    assert!(wrong == 0.0, "{wrong} of {views} views failed: {said}");
    Done { views, views_per_second: views / micros * 1e6, p50: Duration::from_micros(p50 as u64) }
}
