//! What can happen, drawn from a seed.

use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};

pub const VISITORS: usize = 3;
pub const PATHS: [&str; 3] = ["/", "/foo", "/bar"];

/// What happens to an attempt. Times are in ms.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    Answered(u64),
    /// It never arrives.
    Lost,
    ReplyLost,
    /// It arrives this long after its link is lost.
    Late(u64),
    /// It arrives again, this much later.
    Twice(u64),
    /// The instance freezes before it sends, or before it reads the reply.
    FrozenBefore(u64),
    FrozenAfter(u64),
    /// A command of the script fails.
    Fails(usize, &'static str),
    /// Redis refuses to run the script.
    Refused(&'static str),
    /// Each command of the script takes a while.
    Slow(u64),
}

#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A visitor requests a page and waits at most this many ms.
    View {
        visitor: usize,
        path: usize,
        instance: usize,
        patience: u64,
    },
    Wait(u64),
    Next(Fate),
    Save {
        visitor: usize,
        instance: usize,
    },
    Delete(usize),
    /// The session goes on under another id.
    NewId(usize),
    /// The session's record becomes something else for a while.
    Break(usize, u64),
    LoseScripts,
    RestartEmpty,
    /// The replica copies the primary's current data.
    Replicate,
    FailOver,
    Crash(usize),
    /// Redis's clock runs faster, in parts per million.
    Drift(i64),
}

/// A history: what is fixed from its beginning, and its events.
#[derive(Clone, Debug)]
pub struct History {
    pub is_clustered: bool,
    pub instances: usize,
    pub events: Vec<Event>,
}

impl History {
    pub fn of(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let instances = random.gen_range(1..=2);
        // A few kinds of trouble in each history, so that there are quiet ones too.
        let trouble = random.gen_range(0..=3) as f64 / 3.0;
        Self {
            is_clustered: random.gen_ratio(1, 4),
            instances,
            events: (0..random.gen_range(20..=70)).map(|_| event(&mut random, instances, trouble)).collect(),
        }
    }
}

fn event(random: &mut SmallRng, instances: usize, trouble: f64) -> Event {
    let visitor = random.gen_range(0..VISITORS);
    let instance = random.gen_range(0..instances);
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
            _ => Event::Save { visitor, instance },
        };
    }
    match random.gen_range(0..100) {
        0..=74 => Event::View {
            visitor,
            path: *[0, 0, 0, 1, 1, 2].choose(random).unwrap(),
            instance,
            patience: if random.gen_ratio(1, 12) { random.gen_range(0..20) } else { 10_000 },
        },
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
    let error = *ERRORS.choose(random).unwrap();
    match random.gen_range(0..20) {
        0..=1 => Fate::Lost,
        2..=5 => Fate::ReplyLost,
        6..=9 => Fate::Late(late),
        10..=12 => Fate::Twice(late),
        13 => Fate::FrozenBefore(late),
        14 => Fate::FrozenAfter(late),
        15..=16 => Fate::Fails(random.gen_range(0..12), error),
        17 => Fate::Refused(["TRYAGAIN slot", "OOM no", "READONLY no"].choose(random).unwrap()),
        18 => Fate::Slow(random.gen_range(1..=10)),
        _ => Fate::Answered(late.min(700)),
    }
}
