//! What must hold, whatever happens, told from outside: from the keys, the replies and the answers.

use super::*;

/// A session and a path.
pub type Page = (Id, &'static str);

/// What is true of the sessions in Redis.
#[derive(Clone, Default)]
pub struct Truth {
    /// Until when a session lives at least, in ms of Redis's clock. A session that was ended is not in here.
    pub lives: HashMap<Id, u64>,
    /// How often each page was counted.
    pub counts: HashMap<Page, u64>,
    /// The calls that were counted: the lane's key and the number.
    calls: HashSet<(Vec<u8>, Vec<u8>)>,
}

/// Notes a violation of what must hold.
macro_rules! must {
    ($world:ident, $holds:expr, $($what:tt)+) => {
        if !$holds { $world.violation.get_or_insert_with(|| format!($($what)+)); }
    };
}
pub(super) use must;

impl World {
    /// A call counts all its views when its reply is kept for the first time, and changes nothing at any other time.
    pub fn judge_call(&mut self, call: &Call, before: &Entries, reply: &Result<String, String>, is_late: bool) {
        let number = str::from_utf8(&call.arguments[0]).unwrap();
        let own = reply.as_ref().ok().and_then(|reply| reply.strip_prefix(number)?.strip_prefix('\n'));
        must!(self, is_late || own.is_some() || reply.is_err(), "call {number} is awaited, but the reply is {reply:?}");
        let name = (call.keys[0].clone(), call.arguments[0].clone());
        if let Some(own) = own.filter(|_| !self.truth.calls.contains(&name)) {
            let lines: Vec<_> = own.split('\n').collect();
            must!(self, 1 + 2 * lines.len() == call.keys.len(), "not a line for each view: {reply:?}");
            if lines.iter().any(|line| *line != "0") {
                self.truth.calls.insert(name);
            }
            let views = call.keys[1..].chunks(2).zip(&call.arguments[6..]);
            for (line, (keys, called)) in lines.into_iter().zip(views) {
                let id = str::from_utf8(&keys[0]).unwrap().parse().unwrap();
                let path = PATHS.into_iter().find(|path| path.as_bytes() == called).unwrap();
                self.judge_view(id, path, line, before.contains_key(&keys[0]));
            }
        } else {
            for key in &call.keys[1..] {
                let (was, is) = (before.get(key), self.model.entries.get(key));
                // A session in its last moment may go.
                let last = Some(self.model.now + MARGIN.as_millis() as u64);
                let may_go = is.is_none() && was.is_some_and(|entry| entry.ends <= last);
                must!(self, was == is || may_go, "call {number} is not counted, but {was:?} becomes {is:?}");
            }
        }
        let has_one_slot = || call.keys.iter().all(|key| redis_keyslot(key) == redis_keyslot(&call.keys[0]));
        must!(self, !self.is_clustered || has_one_slot(), "a call has keys in several slots");
        let longest = Some(REPLY_KEPT_FOR.as_millis() as u64);
        must!(self, self.model.left(&call.keys[0]) <= longest, "a reply is kept for longer");
        self.judge_keys(&call.keys[1..]);
    }

    /// A view in a call that is counted. Its line is its count, 0 if its session is over, or an error.
    fn judge_view(&mut self, id: Id, path: &'static str, line: &str, was_alive: bool) {
        let lives = self.truth.lives.get(&id).copied();
        match line.parse() {
            Ok(0) => {
                let may_be_over = self.has_lost_writes || lives.is_none_or(|until| until <= self.model.now);
                must!(self, may_be_over, "at {} a session is over that lives until {lives:?}", self.model.now);
                must!(self, self.model.left(&keys(id)[0]).is_none(), "a session is over, and its record is left");
            }
            Ok(count) => {
                let expected = self.truth.counts.entry((id, path)).or_default();
                *expected += 1;
                must!(self, count == *expected, "{path} is counted to {count}, not {expected}");
                must!(self, was_alive && lives.is_some(), "{path} is counted to {count}, but its session is over");
                self.open.entry((id, path)).or_default().0.push(count);
            }
            Err(_) => must!(self, line.starts_with('-'), "{line:?} is no count"),
        }
    }

    /// All keys of sessions end, a session's views not after its record.
    pub fn judge_keys(&mut self, keys: &[Vec<u8>]) {
        let longest = Lifetime::new(TTL).of_record().as_millis() as u64;
        for session in keys.chunks(2) {
            let (record, views) = (self.model.left(&session[0]), self.model.left(&session[1]));
            must!(self, views <= record && record <= Some(longest), "a record has {record:?} ms, its views {views:?}");
        }
    }

    /// A view is answered with a count that no other has, and its session lives for as long as is promised.
    pub fn judge_answer(&mut self, id: Id, path: &'static str, count: u64) {
        let (given, _) = self.open.entry((id, path)).or_default();
        let at = given.iter().position(|given| *given == count);
        must!(self, at.is_some(), "{path}: {count} is answered more often than it was counted");
        at.map(|at| given.swap_remove(at));
        let [record, views] = keys(id).map(|key| self.model.left(&key));
        let least = Some(TTL.as_millis() as u64 - 5);
        let may_be_over = self.has_lost_writes || !self.truth.lives.contains_key(&id);
        must!(self, may_be_over || record.min(views) >= least, "after a view {record:?} and {views:?} ms are left");
        self.is_used(id);
    }

    /// A session that was viewed or saved lives for its whole time again, unless it was ended.
    pub fn is_used(&mut self, id: Id) {
        self.truth.lives.entry(id).and_modify(|lives| *lives = self.model.now + TTL.as_millis() as u64);
    }

    /// No count is skipped but for views that ended without one.
    pub fn judge_end(&mut self) {
        let are_idle = self.instances.iter().all(|instance| instance.committer.is_idle());
        must!(self, are_idle, "an instance is not idle after all views");
        // A call whose kept reply was lost may be counted twice.
        let holds = self.has_lost_writes || self.open.values().all(|(given, failed)| given.len() <= *failed);
        must!(self, holds, "of some page more counts are skipped than views ended without one");
    }
}
