//! What can happen, drawn from a seed. Times are in ms.

use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};

pub const VISITORS: usize = 3;
pub const PATHS: [&str; 3] = ["/", "/foo", "/bar"];

/// What happens to an attempt.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// The instance reads the reply this much later, for example because it freezes.
    Answered(u32),
    Lost,
    ReplyLost,
    /// It arrives this long after its link is lost.
    Late(u32),
    /// It arrives again, this much later.
    Twice(u32),
    /// The instance freezes before it sends.
    FrozenBefore(u32),
    /// A command of the script fails: the one after so many others.
    Fails(usize, &'static str),
    /// Redis refuses to run the script.
    Refused(&'static str),
    /// Each command of the script takes a while.
    Slow(u64),
}

/// An event. Visitors and the two instances are numbered.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A visitor requests a page from an instance, and waits at most this long.
    View(usize, &'static str, usize, u32),
    Wait(u32),
    /// The fate of an attempt: of the first one that has none yet.
    Next(Fate),
    /// The visitor's session is saved by an instance.
    Save(usize, usize),
    /// The visitor's session is deleted.
    Delete(usize),
    /// The visitor's session goes on under another id.
    NewId(usize),
    /// The record of the visitor's session becomes something else for a while.
    Break(usize, u32),
    LoseScripts,
    RestartEmpty,
    /// The replica copies the primary's current data.
    Replicate,
    FailOver,
    /// An instance ends, and another one starts.
    Crash(usize),
    /// Redis's clock runs faster, in parts per million.
    Drift(i64),
}

/// A history: what is fixed from its beginning, and its events.
#[derive(Clone, Debug)]
pub struct History {
    pub is_clustered: bool,
    pub events: Vec<Event>,
}

impl History {
    pub fn of(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        // Of the two instances, maybe only one has visitors.
        let instances = random.gen_range(1..=2);
        // More trouble in some histories than in others, so that there are quiet ones too.
        let trouble = random.gen_range(0..=3) as f64 / 3.0;
        Self {
            is_clustered: random.gen_ratio(1, 4),
            events: (0..random.gen_range(20..=70)).map(|_| event(&mut random, instances, trouble)).collect(),
        }
    }
}

fn event(random: &mut SmallRng, instances: usize, trouble: f64) -> Event {
    let visitor = random.gen_range(0..VISITORS);
    let instance = random.gen_range(0..instances);
    let path = PATHS[*[0, 0, 0, 1, 1, 2].choose(random).unwrap()];
    let patience = if random.gen_ratio(1, 12) { random.gen_range(0..20) } else { 10_000 };
    if random.gen_bool(0.25 * trouble) {
        return Event::Next(fate(random));
    }
    if random.gen_bool(0.15 * trouble) {
        return match random.gen_range(0..20) {
            0..=1 => Event::LoseScripts,
            2 => Event::RestartEmpty,
            3..=4 => Event::Replicate,
            5..=6 => Event::FailOver,
            7..=8 => Event::Crash(instance),
            9..=10 => Event::Drift(random.gen_range(-350..=350)),
            11..=13 => Event::Delete(visitor),
            14..=15 => Event::NewId(visitor),
            16..=17 => Event::Break(visitor, random.gen_range(1..2000)),
            _ => Event::Save(visitor, instance),
        };
    }
    match random.gen_range(0..100) {
        0..=74 => Event::View(visitor, path, instance, patience),
        75..=93 => Event::Wait(random.gen_range(0..20)),
        94..=96 => Event::Wait(random.gen_range(0..4_000)),
        97..=98 => Event::Wait(random.gen_range(0..60_000)),
        // Around a session's end.
        _ => Event::Wait(random.gen_range(98_000..112_000)),
    }
}

fn fate(random: &mut SmallRng) -> Fate {
    const ERRORS: [&str; 4] = ["OOM command not allowed", "READONLY read only", "ERR broken\n41", "WRONGTYPE kind"];
    let late = if random.gen_bool(0.5) { random.gen_range(1..50) } else { random.gen_range(50..40_000) };
    match random.gen_range(0..20) {
        0..=1 => Fate::Lost,
        2..=5 => Fate::ReplyLost,
        6..=9 => Fate::Late(late),
        10..=12 => Fate::Twice(late),
        13 => Fate::FrozenBefore(late),
        14 => Fate::Answered(late),
        15..=16 => Fate::Fails(random.gen_range(0..12), ERRORS.choose(random).unwrap()),
        17 => Fate::Refused(["TRYAGAIN slot", "OOM no", "READONLY no"].choose(random).unwrap()),
        18 => Fate::Slow(random.gen_range(1..=10)),
        _ => Fate::Answered(late.min(700)),
    }
}
