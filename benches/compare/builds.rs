//! The service's program, built like the peers, and built once more as its image has it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The service's program, built like the peers: without a profile, as `cargo build --release` does.
pub fn service() -> PathBuf {
    env!("CARGO_BIN_EXE_cloud-run-sessions").into()
}

/// The service's program as its image has it.
pub fn image() -> PathBuf {
    Path::new(ROOT).join("target/image/release/cloud-run-sessions")
}

/// Builds [`image`] by the command that the Dockerfile runs, with the profile.
pub fn build_image() {
    let mut build = Command::new(Path::new(ROOT).join("profile/build"));
    build.args(["--target-dir", "target/image"]);
    println!("{build:?}");
    assert!(build.status().unwrap().success(), "{build:?} failed");
}
