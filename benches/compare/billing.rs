//! The commands that Redis executes for views in sequence, which is what serverless Redis bills.

use std::fmt;

use crate::{
    client::{Connection, Visitor},
    programs::{Program, Server},
    redis::Redis,
};

/// Views of one page per visit.
pub const VISIT: usize = 5;

/// Views by which a pattern is measured: more than an instance may need to adapt to it.
const VIEWS: usize = 20;

/// What each view of one kind executed.
pub struct Executed(Vec<f64>);

impl Executed {
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }
}

/// One number, or the least and the most.
impl fmt::Display for Executed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(0.0, f64::max);
        if least < most { write!(f, "{least} to {most}") } else { write!(f, "{least}") }
    }
}

/// What views execute on instances that have served others before.
pub struct Billing {
    /// A visitor without a session.
    pub new_visitor: Executed,
    /// Later views, of this page and another one, on the instance that served the last view.
    pub later_view: Executed,
    /// A view on an instance that does not know the session.
    pub unknown: Executed,
    /// A returning visitor, whose views go in turn to two instances.
    pub in_turns: Executed,
    /// All views of a visit.
    pub visit: Executed,
    /// A page that also reads a value of its own from the session.
    pub own_data: Option<Executed>,
    /// A visitor whose session is over, on an instance that knew it and on one that did not.
    pub over: Executed,
}

/// Counts what views execute on two new instances of this program.
pub fn measure(program: Program, redis: &Redis) -> Billing {
    let instances = [program.start(redis), program.start(redis)];
    let [first, second] = &mut instances.each_ref().map(warm);
    let executed = |connection: &mut Connection, visitor: &mut Visitor, path: &str| {
        redis.statistics();
        visitor.view(connection, path);
        redis.statistics().executed
    };

    let new_visitor = (0..VIEWS).map(|_| executed(first, &mut Visitor::default(), "/")).collect();

    let mut visitor = returning(first, 1);
    let paths = ["/", "/", "/foo", "/foo", "/", "/bar", "/bar", "/foo"];
    let later_view = paths.map(|path| executed(first, &mut visitor, path)).into();

    let unknown = (1..=VIEWS).map(|views| executed(second, &mut returning(first, views), "/")).collect();

    // Before the views in turn, after which an instance does not trust its memory for a while.
    let mut visitor = Visitor::default();
    let visit = vec![(0..VISIT).map(|_| executed(first, &mut visitor, "/")).sum()];

    let mut over = Vec::new();
    for is_known in [true, false] {
        let mut visitor = returning(first, 2);
        redis.cli(program.database(), &["FLUSHDB"]);
        over.push(executed(if is_known { first } else { second }, &mut visitor, "/"));
    }

    let mut visitor = returning(first, 2);
    for _ in 0..2 {
        visitor.view(second, "/");
    }
    let in_turns = (0..VIEWS).map(|view| {
        let connection = if view % 2 == 0 { &mut *first } else { &mut *second };
        executed(connection, &mut visitor, "/")
    });
    let in_turns = in_turns.collect();

    let own_data = program.start_with_own_pages(redis).map(|instance| {
        let (mut connection, mut visitor) = (warm(&instance), Visitor::default());
        for path in ["/change", "/read", "/read"] {
            visitor.view(&mut connection, path);
        }
        Executed((0..VIEWS).map(|_| executed(&mut connection, &mut visitor, "/read")).collect())
    });

    Billing {
        new_visitor: Executed(new_visitor),
        later_view: Executed(later_view),
        unknown: Executed(unknown),
        in_turns: Executed(in_turns),
        visit: Executed(visit),
        own_data,
        over: Executed(over),
    }
}

/// A visitor who has viewed a page this often on this instance.
fn returning(connection: &mut Connection, views: usize) -> Visitor {
    let mut visitor = Visitor::default();
    for _ in 0..views {
        visitor.view(connection, "/");
    }
    visitor
}

/// Connects to an instance, and makes it do what it does once: connecting to Redis, and storing its scripts there.
fn warm(instance: &Server) -> Connection {
    let (mut connection, mut visitor) = (instance.connect(), Visitor::default());
    for _ in 0..3 {
        visitor.view(&mut connection, "/");
    }
    connection
}
