//! What is measured of each program.

use crate::{billing::Billing, distance::Latency, load::Drives};

/// The figures of one program: `None` where a figure does not apply.
#[derive(Default)]
pub struct Figures {
    /// Seconds from exec to the first response, with Redis available.
    pub first_answers: Vec<f64>,
    /// How many of the overlapping views of one visitor were counted.
    pub counted: Option<u64>,
    /// How many of the overlapping changes of a number in the session were kept.
    pub changes_kept: Option<u64>,
    /// Bytes in Redis per session after one view, and after one view of each page.
    pub bytes: Option<[f64; 2]>,
    /// Commands that Redis executes for views in sequence.
    pub billing: Option<Billing>,
    /// The rounds of load.
    pub drives: Drives,
    /// Resident bytes with 1,000 connections, each of which was answered, after all rounds.
    pub memory_connected: f64,
    /// On Valkey: the commands executed for views in sequence, and the rounds of load.
    pub on_valkey: Option<OnValkey>,
    /// The latency of a view with a distant Redis.
    pub latency: Option<Latency>,
}

/// The figures of one program on a Valkey.
pub struct OnValkey {
    pub billing: Billing,
    pub drives: Drives,
}

pub fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
