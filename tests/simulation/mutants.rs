//! The simulation finds each of these faults in a script within 100,000 histories. `tests/mutants` does
//! the same with faults in Rust.

use super::{lua, search};

/// What is wrong, and the piece of a script that is replaced.
const FAULTS: [(&str, &str, &str); 24] = [
    ("a repetition is not noticed", ">= tonumber(number)", "> 2 ^ 53"),
    ("an older call is not noticed", ">= tonumber(number)", "== tonumber(number)"),
    ("the same call is not noticed", ">= tonumber(number)", "> tonumber(number)"),
    ("a repetition is not undone", "    if counted[view] then\n      undo", "    if false then\n      undo"),
    ("the last view is not undone", "for view = size, 1, -1 do", "for view = size - 1, 1, -1 do"),
    ("undone from the front", "for view = size, 1, -1 do", "for view = 1, size do"),
    ("an older reply stays in place of a newer", "  call('SET', KEYS[1], kept, 'EX', kept_for)\n", ""),
    ("its own reply is returned to an older call", "'EX', kept_for)\n  return kept", "'EX', kept_for)\n  return reply"),
    ("a reply without news is kept for a moment", "'EX', kept_for, 'GET'", "'PX', 1, 'GET'"),
    ("a view that fails is not undone", "      undo(view, counts, path)\n      count", "      count"),
    ("a failed reply is not undone", "if not is_kept or kept and", "if kept and is_kept and"),
    ("a session that is over keeps views", "call('DEL', KEYS[2 * view], counts)", "call('DEL', KEYS[2 * view])"),
    ("a record in its last moment begins anew", "if begun[view] <= 0 then", "if false then"),
    ("a record in its last moment is left", "call('DEL', KEYS[2 * view], counts)", "call('DEL', counts)"),
    ("views outlive their record", "call('PTTL', record) - margin", "call('PTTL', record) + margin"),
    ("views are not given an end", "begun[view] then\n    call('PEXPIRE', ", "begun[view] then\n    tostring("),
    ("records are not renewed", "call('PEXPIRE', KEYS[2 * view], record_life)", ""),
    ("views are not renewed", "call('PEXPIRE', KEYS[2 * view + 1], record_life - margin)", ""),
    ("views are renewed for longer", "record_life - margin)\n  elseif", "record_life + margin)\n  elseif"),
    ("the first view is not counted", "  if first == path then", "  if false then"),
    ("the first view of another page is not counted", "call('HSETNX', counts, first, 1) == 1", "true"),
    ("a record is not looked at", "  if not data then\n    return 0\n  end", "  if not data then\n    return 1\n  end"),
    ("a save revives a session", "if redis.call('PTTL', KEYS[1]) <= tonumber(ARGV[3]) then", "if false then"),
    ("a save does not renew views", "redis.call('PEXPIRE', KEYS[2], ARGV[2] - ARGV[3])", ""),
];

#[test]
fn every_fault_is_found() {
    for (what, right, wrong) in FAULTS {
        let script = lua::SCRIPTS.into_iter().find(|(_, source)| source.contains(right));
        let (name, source) = script.unwrap_or_else(|| panic!("{what}: the script has changed"));
        lua::load(name, &source.replacen(right, wrong, 1));
        let (seed, played) = search(0..100_000);
        lua::load(name, source);
        println!("{what}: {played} histories");
        assert!(seed.is_some(), "{what}: not found");
    }
}
