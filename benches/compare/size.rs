//! The size of sessions and of programs.

use crate::{
    client::Visitor,
    programs::{Program, Server},
    redis::Redis,
};

/// Measures the bytes in Redis of a session after one view, and after one view of each page.
pub fn in_redis(program: Program, server: &Server, redis: &Redis) -> [f64; 2] {
    let database = program.database();
    let used = || {
        let keys = redis.cli(database, &["KEYS", "*"]);
        let usage = |key| redis.cli(database, &["MEMORY", "USAGE", key, "SAMPLES", "0"]);
        keys.lines().map(|key| usage(key).parse::<f64>().unwrap()).sum()
    };
    redis.cli(database, &["FLUSHDB"]);
    let (mut connection, mut visitor) = (server.connect(), Visitor::default());
    visitor.view(&mut connection, "/");
    let one = used();
    for path in ["/foo", "/bar"] {
        visitor.view(&mut connection, path);
    }
    [one, used()]
}

/// Measures the resident bytes with 1,000 connections, each of which was answered.
pub fn with_connections(server: &Server) -> f64 {
    let mut connections: Vec<_> = (0..1000).map(|_| server.connect()).collect();
    for connection in &mut connections {
        connection.get("/", None).expect("a page");
    }
    server.memory()
}
