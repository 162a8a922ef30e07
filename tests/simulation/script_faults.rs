//! The simulation finds each of these faults in the script within 100,000 histories. `tests/scripts/mutants` does the
//! same with faults in Rust.

use super::{
    lua::{self, SCRIPT},
    search,
};

/// What is wrong, and the piece of the script that is replaced.
const FAULTS: [(&str, &str, &str); 12] = [
    ("sessions are revived", "new, 'XX', 'GET'", "new, 'GET'"),
    ("the time to live is forgotten", "'GET', 'PX', new_life", "'GET'"),
    ("an end lives as long as a session", "'PX', new_life", "'PX', life"),
    ("what is expected is not looked at", "held == expected or held == new", "held"),
    ("another value is not restored", "redis.call('SET', key, held, ", "tostring("),
    ("a restored value lives for ever", "held, 'PX', is_ended and ended_life or life", "held"),
    ("a restored end lives as long as a session", "is_ended and ended_life or life", "life"),
    ("a restored session lives as long as an end", "is_ended and ended_life or life", "ended_life"),
    ("a failed command fails all", "redis.pcall", "redis.call"),
    ("a session gets the reply for the next", "replies[i] = held", "replies[#KEYS + 1 - i] = held"),
    ("a session gets the next one's value", "sub(values, middle, last - 1)", "sub(values, middle + 1, last)"),
    (
        "long values are taken for each other",
        "ARGV[argument], ARGV[argument + 1]",
        "ARGV[argument + 1], ARGV[argument]",
    ),
];

#[test]
fn every_fault_is_found() {
    for (what, right, wrong) in FAULTS {
        assert!(SCRIPT.contains(right), "{what}: the script has changed");
        lua::load(&SCRIPT.replacen(right, wrong, 1));
        let (seed, played) = search(0..100_000);
        lua::load(SCRIPT);
        println!("{what}: {played} histories");
        assert!(seed.is_some(), "{what}: not found");
    }
}
