//! Processes that are killed when their value is dropped.

use std::{
    iter,
    net::TcpListener,
    process::{Child, Command},
    time::Duration,
};

/// Longer than any program takes to start.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Process(Child);

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        let child = command.spawn();
        Self(child.unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program())))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A free port, below the range that Linux takes the ports of outgoing connections from: none of these takes it before
/// it is used.
pub fn free_port() -> u16 {
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    iter::repeat_with(|| rand::random::<u16>() % 20_000 + 10_000).find(is_free).unwrap()
}
