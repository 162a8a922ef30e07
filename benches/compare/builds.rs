//! How the programs are built: all alike, as `cargo build --release` does without a profile, and the service once more
//! as its image has it.
//!
//! Only this file knows of the profile, with which `.cargo/config.toml` optimizes every release build of the service.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Where the benchmark builds without the profile. Cargo does not notice that the profile is left out, so it must not
/// find what it has built with it.
fn without_profile() -> PathBuf {
    Path::new(ROOT).join("target/plain")
}

/// Where the image's program is built.
fn with_profile() -> PathBuf {
    Path::new(ROOT).join("target/image")
}

/// Whether this executable, which contains the peers, is built without the profile, and the service's program with it.
pub fn is_plain() -> bool {
    env::current_exe().unwrap().starts_with(without_profile())
}

/// Builds the benchmark without the profile, and runs that.
pub fn run_plain() {
    let mut cargo = Command::new("cargo");
    cargo.args(["bench", "--locked", "--bench", "compare"]);
    run(cargo.env("RUSTC_WRAPPER", "").env("CARGO_TARGET_DIR", without_profile()));
}

/// Builds the service by the command in the Dockerfile, which uses the profile.
pub fn build_image() {
    let dockerfile = fs::read_to_string(Path::new(ROOT).join("Dockerfile")).unwrap();
    let build = dockerfile.split_once("&& cargo rustc").and_then(|(_, build)| build.split_once("&&"));
    let build = format!("cargo rustc{}", build.expect("the Dockerfile's build").0.replace("\\\n", ""));
    let mut shell = Command::new("sh");
    run(shell.args(["-c", &build]).env_remove("RUSTC_WRAPPER").env("CARGO_TARGET_DIR", with_profile()));
}

/// The service's program as its image has it.
pub fn image() -> PathBuf {
    with_profile().join("release/cloud-run-sessions")
}

/// The service's program, built like the peers.
pub fn service() -> PathBuf {
    env!("CARGO_BIN_EXE_cloud-run-sessions").into()
}

fn run(command: &mut Command) {
    println!("{command:?}");
    let status = command.current_dir(ROOT).status().unwrap();
    assert!(status.success(), "{command:?} failed");
}
