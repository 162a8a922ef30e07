//! What can happen, drawn from a seed. Times are in ms.

use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};

use super::model::Ifeq;

pub const PATHS: [&str; 3] = ["/", "/foo", "/bar"];

/// What happens to a sending of a command.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// The instance reads the reply this much later, for example because it freezes.
    Answered(u32),
    /// The command does not arrive. The connection is cut; or silent, if this is true.
    Lost(bool),
    /// The command arrives, and its reply does not. Else as above.
    ReplyLost(bool),
    /// The command arrives this long after its connection is lost.
    Late(u32),
    /// It arrives again, this much later.
    Twice(u32),
    /// The instance freezes before it sends.
    FrozenBefore(u32),
    /// A command of the script fails: the one after this many others.
    Fails(usize, &'static str),
    /// Redis refuses the command.
    Refused(&'static str),
}

/// An event. Visitors and instances are numbered.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A visitor requests a page from an instance, and waits at most this long.
    View {
        visitor: usize,
        path: &'static str,
        instance: usize,
        patience: u32,
    },
    /// A visitor requests a page from every instance at once.
    ViewEverywhere {
        visitor: usize,
        path: &'static str,
    },
    /// A visitor requests a page with the id that their session had before.
    ViewWithOldId {
        visitor: usize,
        instance: usize,
    },
    /// A page adds an item to the visitor's data, unless its change fails.
    Add {
        visitor: usize,
        instance: usize,
        patience: u32,
        fails: bool,
    },
    /// A page reads the visitor's session.
    Read {
        visitor: usize,
        instance: usize,
    },
    /// The visitor's session goes on under another id.
    ChangeId {
        visitor: usize,
        instance: usize,
        patience: u32,
    },
    /// The visitor's session is ended.
    End {
        visitor: usize,
        instance: usize,
    },
    Wait(u32),
    /// The fate of the next sending that has none yet.
    Next(Fate),
    /// Somebody else deletes the visitor's session.
    Delete {
        visitor: usize,
    },
    /// The visitor's session becomes something else for a while.
    Break {
        visitor: usize,
        time: u32,
        is_list: bool,
    },
    LoseScripts,
    RestartEmpty,
    /// The replica copies the primary's current data.
    Replicate,
    FailOver,
    /// An instance ends, and another one starts.
    Crash {
        instance: usize,
    },
    /// An instance connects again, and checks the server.
    Reconnect {
        instance: usize,
    },
}

/// What a server can do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Server {
    pub ifeq: Ifeq,
    pub has_scripts: bool,
    /// It refuses commands with several keys.
    pub is_node: bool,
    /// The instances know that from the beginning.
    pub is_clustered: bool,
}

/// A history: what is fixed from its beginning, and its events.
#[derive(Clone, Debug)]
pub struct History {
    pub server: Server,
    /// How far each instance is from Redis, in ms.
    pub distances: Vec<u32>,
    pub visitors: usize,
    pub events: Vec<Event>,
}

impl History {
    pub fn of(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let ifeq = *[Ifeq::Held, Ifeq::Null, Ifeq::Unknown, Ifeq::Unknown].choose(&mut random).unwrap();
        let is_node = random.gen_ratio(1, 4);
        let server = Server {
            ifeq,
            has_scripts: ifeq == Ifeq::Unknown || random.gen_ratio(3, 4),
            is_node,
            is_clustered: is_node && random.r#gen(),
        };
        let instances = *[1, 2, 2, 3, 5].choose(&mut random).unwrap();
        let is_near = random.r#gen();
        let distance = |_| if is_near { 0 } else { random.gen_range(0..=4) };
        let distances: Vec<_> = (0..instances).map(distance).collect();
        let visitors = random.gen_range(1..=3);
        // More trouble in some histories than in others, so that there are quiet ones too.
        let trouble = random.gen_range(0..=3) as f64 / 3.0;
        let events = (0..random.gen_range(20..=70)).map(|_| event(&mut random, visitors, instances, trouble)).collect();
        Self { server, distances, visitors, events }
    }
}

fn event(random: &mut SmallRng, visitors: usize, instances: usize, trouble: f64) -> Event {
    let visitor = random.gen_range(0..visitors);
    let instance = random.gen_range(0..instances);
    let path = PATHS[*[0, 0, 0, 1, 1, 2].choose(random).unwrap()];
    let patience = if random.gen_ratio(1, 12) { random.gen_range(0..20) } else { 10_000 };
    if random.gen_bool(0.25 * trouble) {
        return Event::Next(fate(random));
    }
    if random.gen_bool(0.1 * trouble) {
        return match random.gen_range(0..20) {
            0..=1 => Event::LoseScripts,
            2 => Event::RestartEmpty,
            3..=4 => Event::Replicate,
            5 => Event::FailOver,
            6..=8 => Event::Crash { instance },
            9..=10 => Event::Reconnect { instance },
            11..=12 => Event::Delete { visitor },
            _ => Event::Break { visitor, time: random.gen_range(1..2000), is_list: random.r#gen() },
        };
    }
    match random.gen_range(0..100) {
        0..=48 => Event::View { visitor, path, instance, patience },
        49..=53 => Event::ViewEverywhere { visitor, path },
        54..=55 => Event::ViewWithOldId { visitor, instance },
        56..=67 => Event::Add { visitor, instance, patience, fails: random.gen_ratio(1, 8) },
        68..=69 => Event::Read { visitor, instance },
        70..=73 => Event::ChangeId { visitor, instance, patience },
        74 => Event::End { visitor, instance },
        75..=93 => Event::Wait(random.gen_range(0..20)),
        94..=96 => Event::Wait(random.gen_range(0..4_000)),
        97..=98 => Event::Wait(random.gen_range(0..60_000)),
        // Around a session's end.
        _ => Event::Wait(random.gen_range(98_000..112_000)),
    }
}

fn fate(random: &mut SmallRng) -> Fate {
    const ERRORS: [&str; 4] = [
        "OOM command not allowed",
        "@user_script: 13: -OOM command not allowed",
        "READONLY read only",
        "WRONGTYPE kind",
    ];
    let late = if random.r#gen() { random.gen_range(1..50) } else { random.gen_range(50..40_000) };
    match random.gen_range(0..20) {
        0..=1 => Fate::Lost(random.r#gen()),
        2..=6 => Fate::ReplyLost(random.gen_ratio(1, 3)),
        7..=9 => Fate::Late(late),
        10..=12 => Fate::Twice(late),
        13 => Fate::FrozenBefore(late),
        14 => Fate::Answered(late),
        15 => Fate::Fails(random.gen_range(0..4), ERRORS.choose(random).unwrap()),
        16..=17 => Fate::Refused(["TRYAGAIN slot", "OOM no", "READONLY no"].choose(random).unwrap()),
        _ => Fate::Answered(late.min(700)),
    }
}
