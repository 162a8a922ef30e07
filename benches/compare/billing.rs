//! The commands that Redis executes for views in sequence, which is what serverless Redis bills.

use crate::{client::Visitor, programs::Server, redis::Redis};

/// Views of one page per visit.
pub const VISIT: usize = 5;

/// Counts the commands that Redis executes for a new visitor's visit. The program is already warm.
pub fn visit(server: &Server, redis: &Redis) -> f64 {
    let (mut connection, mut visitor) = (server.connect(), Visitor::default());
    redis.statistics();
    for _ in 0..VISIT {
        visitor.view(&mut connection, "/");
    }
    redis.statistics().executed
}
