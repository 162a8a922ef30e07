//! Standard output and standard error: a reader that stops reading them stops nothing else.
//!
//! A log driver that is stuck, or Ctrl-S on a terminal, leaves a full pipe, and a write to a full pipe blocks. So one
//! thread does nothing but write. tracing-appender 0.2 does the same, but bounds lines and not bytes. If its queue is
//! full at the end, it reports that with `println!`, which then blocks for ever (`Drop for WorkerGuard`).

use std::{
    cell::Cell,
    fmt::Display,
    io::{self, Write},
    mem, panic, process,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tracing::warn;

/// The most bytes of lines that wait to be written: some 1,000 lines. As many more may be on their way out.
const WAITING_MAX: usize = 256 * 1024;

/// How long a process that ends waits for its last lines to be read.
const LAST_LINES: Duration = Duration::from_secs(1);

thread_local! {
    /// Whether this is the thread that writes.
    static IS_WRITER: Cell<bool> = const { Cell::new(false) };
}

/// Takes log lines and never blocks. If too many wait to be written, it drops new ones; their number is logged as soon
/// as lines can be written again. A clone takes lines for the same output.
#[derive(Clone)]
pub struct Lines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Signals that lines have come, or that all are written.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines that were dropped since this number was last logged.
    dropped: usize,
    is_writing: bool,
}

impl Lines {
    /// Writes lines to this output from now on, in a thread of its own.
    ///
    /// # Errors
    /// If the thread cannot start.
    pub fn to(mut output: impl Write + Send + 'static) -> io::Result<Self> {
        let lines = Self(Arc::default());
        let shared = lines.0.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            IS_WRITER.set(true);
            let mut batch = Vec::new();
            loop {
                shared.next(&mut batch);
                if output.write_all(&batch).and_then(|()| output.flush()).is_err() {
                    shared.state.lock().dropped += batch.iter().filter(|byte| **byte == b'\n').count();
                    continue;
                }
                let dropped = mem::take(&mut shared.state.lock().dropped);
                if dropped > 0 {
                    // This line comes after those that wait by now.
                    warn!("{dropped} log lines were dropped, because standard output could not be written");
                }
            }
        })?;
        Ok(lines)
    }

    /// Waits until all lines are written, but not for long if nobody reads them.
    pub fn wait_until_written(&self) {
        let until = Instant::now() + LAST_LINES;
        let mut state = self.0.state.lock();
        while state.is_writing || !state.waiting.is_empty() {
            if self.0.changed.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }
}

impl Shared {
    /// Waits for lines and puts them into `batch`, in place of what it held.
    fn next(&self, batch: &mut Vec<u8>) {
        batch.clear();
        let mut state = self.state.lock();
        state.is_writing = false;
        self.changed.notify_all();
        while state.waiting.is_empty() {
            self.changed.wait(&mut state);
        }
        state.is_writing = true;
        mem::swap(&mut state.waiting, batch);
    }
}

/// Each write is one whole line, or several.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock();
        // The line that counts the dropped ones is not dropped itself.
        if state.waiting.len() + line.len() <= WAITING_MAX || IS_WRITER.get() {
            state.waiting.extend_from_slice(line);
            self.0.changed.notify_all();
        } else {
            state.dropped += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a line to standard error, and does not wait for long if nobody reads it.
pub fn print_error(problem: impl Display) {
    if let Ok(mut lines) = Lines::to(io::stderr()) {
        let _ = writeln!(lines, "{problem}");
        lines.wait_until_written();
    }
}

/// From now on, a panic ends the process, after a short wait until these lines and its own are written. If it ended its
/// task alone, views would wait for a call that nobody makes.
pub fn print_panics(lines: Lines) {
    panic::set_hook(Box::new(move |panic| {
        lines.wait_until_written();
        let thread = thread::current();
        print_error(format_args!("thread '{}' {panic}", thread.name().unwrap_or("?")));
        process::abort();
    }));
}
