//! The service. All of it is in the library.

use std::process::ExitCode;

use cloud_run_sessions::{program, web::app};
use mimalloc::MiMalloc;

/// With a thousand requests in flight, glibc's allocator takes a quarter of the CPU time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    program::run(app::router)
}
