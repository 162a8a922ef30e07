//! What must hold, whatever happens, told from outside: from what Redis holds, its replies, and the answers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use cloud_run_sessions::store::{
    Error,
    change::{Applied, Outcome},
    contents::WRITERS,
    ttl::ENDED_TTL,
};
use fred::{bytes::Bytes, types::Value};
use tokio::time::Instant;
use tower_sessions::session::{Id, Record};

use super::{
    model::{Entry, Stored},
    world::{TTL, World},
};

/// The key of the pages' items in the data.
pub const ITEMS: &str = "items";

/// How much longer than its time to live a session lives at most, in ms.
const LONGER: u64 = 5_000;

/// A write's name: of an instance, and a number.
type Name = (u64, u64);

/// A value, decoded as tower-sessions-redis-store does it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    is_ended: bool,
    version: u64,
    writes: Vec<Name>,
    counts: BTreeMap<String, u64>,
    items: Vec<u64>,
}

impl Seen {
    fn read(id: Id, value: &[u8]) -> Option<Self> {
        let record: Record = rmp_serde::from_slice(value).ok()?;
        let entry = record.data.get("#")?.as_array()?;
        let numbers: Vec<_> = entry[1].as_array()?.iter().filter_map(|number| number.as_u64()).collect();
        let counts = entry.get(2).and_then(|counts| counts.as_object()).into_iter().flatten();
        let items = record.data.get(ITEMS).and_then(|items| items.as_array()).into_iter().flatten();
        (record.id == id).then_some(Self {
            is_ended: entry.len() == 2,
            version: entry[0].as_u64()?,
            writes: numbers.chunks(2).map(|write| (write[0], write[1])).collect(),
            counts: counts.map(|(path, count)| (path.clone(), count.as_u64().unwrap())).collect(),
            items: items.map(|item| item.as_u64().unwrap()).collect(),
        })
    }

    /// Whether this value leaves it open if a write that was to replace this version is part of it.
    fn cannot_tell(&self, write: Name, replaced: u64) -> bool {
        match self.writes.iter().find(|last| last.0 == write.0) {
            Some(last) => last.1 > write.1,
            // A value that names fewer instances than `WRITERS` names all that have written.
            None => self.writes.len() == WRITERS && self.version > replaced + WRITERS as u64,
        }
    }
}

/// A session in Redis.
#[derive(Clone)]
pub struct Session {
    pub value: Vec<u8>,
    /// With the counts and items that it had when it ended.
    pub seen: Seen,
}

/// What is known of a session under its ids, one after the other.
#[derive(Default)]
struct Visit {
    /// By path, the counts that Redis holds and that are not answered, and how many views ended without an answer.
    open: BTreeMap<String, (Vec<u64>, usize)>,
    /// By path, the counts given by the write that ended the session.
    at_end: BTreeMap<String, u64>,
    /// The items that Redis held, those that were acknowledged, and those of which nobody knows.
    stored: BTreeSet<u64>,
    acknowledged: BTreeSet<u64>,
    unanswered: BTreeSet<u64>,
}

/// A sending of a swap, and its reply.
struct Sending {
    instance: usize,
    sent: Instant,
    id: Id,
    expected: Vec<u8>,
    new: Vec<u8>,
    reply: Result<Value, Error>,
}

#[derive(Default)]
pub struct Truth {
    pub sessions: HashMap<Id, Session>,
    replica: Option<HashMap<Id, Session>>,
    visits: Vec<Visit>,
    visit_of: HashMap<Id, usize>,
    /// The writes that were stored, and the sessions that were begun.
    writes: HashSet<Name>,
    begun: HashSet<Id>,
    /// The sessions that somebody else has broken.
    pub broken: HashSet<Id>,
    /// The sessions that were to end, and when last.
    pub ends_begun: HashMap<Id, Instant>,
    /// Those that have ended.
    ended: HashSet<Id>,
    /// Those of which nobody knows whether they have ended.
    perhaps_ended: HashSet<Id>,
    /// Redis has lost writes. Then numbers may be given again, and sessions may be over, or live again.
    has_lost_writes: bool,
    sendings: Vec<Sending>,
    /// The instances that sent another command and got no reply, and when.
    unanswered: Vec<(usize, Instant)>,
}

/// What was true of a session before a request.
pub struct Before {
    since: Instant,
    counts: BTreeMap<String, u64>,
    /// Whether its key was there.
    is_there: bool,
    had_ended: bool,
}

/// Notes a violation of what must hold.
macro_rules! must {
    ($world:ident, $holds:expr, $($what:tt)+) => {
        if !$holds { $world.violation.get_or_insert_with(|| format!($($what)+)); }
    };
}
pub(super) use must;

impl Truth {
    /// A visitor has a session with a first view.
    pub fn begin(&mut self, id: Id) {
        self.visit_of.insert(id, self.visits.len());
        self.visits.push(Visit::default());
    }

    pub fn forget_sessions(&mut self) {
        (self.sessions, self.has_lost_writes) = (HashMap::new(), true);
    }

    pub fn replicate(&mut self) {
        self.replica = Some(self.sessions.clone());
    }

    pub fn fail_over(&mut self) {
        (self.sessions, self.has_lost_writes) = (self.replica.take().unwrap_or_default(), true);
    }

    pub fn note(
        &mut self,
        instance: usize,
        sent: Instant,
        id: Id,
        [expected, new]: [&[u8]; 2],
        reply: Result<Value, Error>,
    ) {
        let [expected, new] = [expected, new].map(<[u8]>::to_vec);
        self.sendings.push(Sending { instance, sent, id, expected, new, reply });
    }

    pub fn note_other(&mut self, instance: usize, reply: &Result<Value, Error>) {
        if let Err(Error::Unanswered) = reply {
            self.unanswered.push((instance, Instant::now()));
        }
    }

    fn visit(&mut self, id: Id) -> &mut Visit {
        &mut self.visits[self.visit_of[&id]]
    }

    /// Whether a write of this session that this instance has sent since then may or may not be stored.
    fn cannot_tell(&self, instance: usize, id: Id, since: Instant) -> bool {
        let ours = |sending: &&Sending| sending.instance == instance && sending.id == id;
        let sendings: Vec<_> = self.sendings.iter().filter(ours).collect();
        sendings.iter().any(|sending| {
            if sending.sent < since || !matches!(sending.reply, Err(Error::Unanswered)) {
                return false;
            }
            match &sendings.iter().rfind(|other| other.new == sending.new).unwrap().reply {
                Ok(held @ (Value::Bytes(_) | Value::String(_))) => {
                    let held = held.as_bytes().unwrap();
                    let new = Seen::read(id, &sending.new).unwrap();
                    held != sending.expected
                        && held != sending.new
                        && Seen::read(id, held).is_none_or(|held| held.cannot_tell(new.writes[0], new.version - 1))
                }
                Ok(Value::Integer(_)) => false,
                _ => true,
            }
        })
    }

    /// Whether, since then, this instance got no reply to a command, or nobody can tell if its write of this session is
    /// stored.
    fn had_no_reply(&self, instance: usize, id: Id, since: Instant) -> bool {
        self.unanswered.iter().any(|(other, when)| *other == instance && *when >= since)
            || self.cannot_tell(instance, id, since)
    }
}

impl World {
    pub fn before(&self, id: Id) -> Before {
        let counts = self.seen(id).map(|seen| seen.counts.clone()).unwrap_or_default();
        let is_there = self.model.left(id.to_string().as_bytes()).is_some();
        Before { since: Instant::now(), counts, is_there, had_ended: self.truth.ended.contains(&id) }
    }

    /// A command was executed. Before it, this key held that.
    pub fn judge_command(&mut self, command: &[u8], key: &[u8], before: Option<Entry>) {
        let after = self.model.entries.get(key).cloned();
        let Ok(id) = str::from_utf8(key).unwrap().parse::<Id>() else {
            return must!(self, after.is_none(), "the service keeps {key:?}");
        };
        let left = self.model.left(key).unwrap_or_default();
        let [ttl, ended_ttl] = [TTL, ENDED_TTL].map(|ttl| ttl.as_millis() as u64);
        let (old, new) = match (before, after) {
            (None, None) => return,
            (Some(_), None) => return must!(self, command == b"DEL", "a session is deleted"),
            (Some(before), Some(after)) if before.stored == after.stored => {
                let is_ended = left == ended_ttl && self.truth.sessions[&id].seen.is_ended;
                // A broken one does not look ended.
                let lives = !self.truth.sessions[&id].seen.is_ended || self.truth.broken.contains(&id);
                let is_full = is_ended || lives && (ttl..=ttl + LONGER).contains(&left);
                let is_renewed = before.ends == after.ends || is_full;
                return must!(self, is_renewed, "a session that stays has {left} ms left");
            }
            (before, Some(Entry { stored: Stored::Text(new), .. })) => (before.map(|entry| entry.stored), new),
            (_, Some(entry)) => unreachable!("a session becomes {entry:?}"),
        };
        let Some(mut seen) = Seen::read(id, &new) else {
            return must!(self, false, "tower-sessions-redis-store cannot read {:?}", new.escape_ascii().to_string());
        };
        let allowed = if seen.is_ended { ended_ttl..=ended_ttl } else { ttl..=ttl + LONGER };
        must!(self, allowed.contains(&left), "a session is written with {left} ms to live: {seen:?}");
        match old {
            None => {
                must!(self, self.truth.begun.insert(id), "a session is revived: {seen:?}");
                must!(self, !seen.is_ended, "a session begins with its end");
            }
            Some(old) => {
                let session = &self.truth.sessions[&id];
                must!(self, old == Stored::Text(session.value.clone()), "a broken session is overwritten");
                must!(self, self.truth.visit_of.contains_key(&id), "a session is changed that nobody knows");
                if !self.truth.visit_of.contains_key(&id) {
                    return;
                }
                self.judge_write(id, &mut seen);
            }
        }
        self.truth.sessions.insert(id, Session { value: new, seen });
    }

    /// A value has replaced another. If it ends the session, `seen` gets the other's counts and items.
    fn judge_write(&mut self, id: Id, seen: &mut Seen) {
        let old = &self.truth.sessions[&id].seen;
        let is_lost = self.truth.has_lost_writes;
        must!(self, !old.is_ended, "an ended session is changed: {seen:?}");
        must!(self, seen.version == old.version + 1, "version {} follows {}", seen.version, old.version);
        let instances: HashSet<_> = seen.writes.iter().map(|write| write.0).collect();
        let are_named = instances.len() == seen.writes.len() && instances.len() <= WRITERS;
        let stay = old.writes.iter().filter(|write| write.0 != seen.writes[0].0).take(WRITERS - 1);
        must!(self, are_named && seen.writes[1..].iter().eq(stay), "{seen:?} forgets a write of {old:?}");
        must!(self, self.truth.writes.insert(seen.writes[0]) || is_lost, "a write's name comes again: {seen:?}");
        if seen.is_ended {
            must!(self, seen.counts.is_empty() && seen.items.is_empty(), "an ended session holds {seen:?}");
            (seen.counts, seen.items) = (old.counts.clone(), old.items.clone());
            return;
        }
        let visit = &mut self.truth.visits[self.truth.visit_of[&id]];
        let never_fall = old.counts.iter().all(|(path, count)| seen.counts.get(path) >= Some(count));
        for (path, count) in &seen.counts {
            let first = old.counts.get(path).map_or(1, |count| count + 1);
            visit.open.entry(path.clone()).or_default().0.extend(first..=*count);
        }
        must!(self, never_fall, "counts fall from {:?} to {:?}", old.counts, seen.counts);
        let added = seen.items.strip_prefix(&*old.items);
        must!(self, added.is_some(), "items become {:?} after {:?}", seen.items, old.items);
        for item in added.into_iter().flatten() {
            let is_new = visit.stored.insert(*item) || is_lost && !old.items.contains(item);
            must!(self, is_new, "item {item} is there twice: {:?}", seen.items);
        }
    }

    /// Judges what became of a change. Returns it if it was applied, `Some(None)` if it was not, and `None` if nobody can
    /// tell: without an answer, or if the session is over, since the change may have been applied before.
    fn judge_outcome(
        &mut self,
        id: Id,
        before: &Before,
        instance: usize,
        outcome: Option<Outcome>,
        kind: &'static str,
    ) -> Option<Option<Applied>> {
        let is_lost = self.truth.has_lost_writes;
        let judged = match outcome {
            None => None,
            Some(Ok(Some(applied))) => {
                must!(self, is_lost || !before.had_ended, "{kind} changes a session that has ended");
                let is_over = is_lost || self.truth.ends_begun.contains_key(&id);
                let left = self.model.left(id.to_string().as_bytes());
                let is_long = left.is_none() || left >= Some(TTL.as_millis() as u64);
                must!(self, is_over || is_long, "after {kind} a session has {left:?} ms left");
                Some(Some(applied))
            }
            Some(Ok(None)) => {
                self.judge_absence(id, kind);
                None
            }
            Some(Err(Error::Unanswered)) => {
                let cannot_tell = self.truth.cannot_tell(instance, id, before.since);
                must!(self, cannot_tell, "{kind} is answered that nobody can tell, but the value does");
                None
            }
            Some(Err(error)) => {
                self.judge_error(id, before, &error, kind);
                Some(None)
            }
        };
        let in_short = judged.as_ref().map_or(2, |applied| applied.is_some().into());
        self.log.push((kind, in_short));
        judged
    }

    fn judge_absence(&mut self, id: Id, kind: &str) {
        let is_gone = self.model.left(id.to_string().as_bytes()).is_none();
        must!(self, is_gone || self.truth.has_lost_writes, "{kind} finds no session, but there is one");
    }

    fn judge_error(&mut self, id: Id, before: &Before, error: &Error, kind: &str) {
        let may_be = match error {
            Error::Ended => self.truth.ends_begun.get(&id).is_some_and(|begun| {
                // A view that joins an end is answered before it is known whether the session is there. One that waits
                // for an end is answered after it, however late.
                before.is_there || self.truth.has_lost_writes || begun.elapsed() < TTL
            }),
            Error::Unreadable => self.truth.broken.contains(&id),
            Error::Refused(reason) => {
                ["OOM ", "READONLY ", "TRYAGAIN ", "WRONGTYPE "].iter().any(|code| reason.starts_with(code))
            }
            Error::Mismatched => kind == "a failing item",
            Error::Unreached | Error::Overloaded | Error::Contended => true,
            Error::Unanswered | Error::Garbled | Error::TooLarge(_) | Error::TooDeep(_) | Error::Reserved(_) => false,
        };
        must!(self, may_be, "{kind} is answered {error:?}");
    }

    /// What the value of an answer holds.
    fn decode(&mut self, id: Id, value: &Bytes) -> Seen {
        match self.truth.sessions.get(&id) {
            Some(session) if session.value == *value => session.seen.clone(),
            _ => {
                let seen = Seen::read(id, value);
                must!(self, seen.is_some(), "a value is given that nobody can read");
                seen.unwrap_or_default()
            }
        }
    }

    pub fn judge_view(&mut self, id: Id, path: &str, before: &Before, instance: usize, outcome: Option<Outcome>) {
        let judged = self.judge_outcome(id, before, instance, outcome, "a view");
        let Some(applied) = judged else {
            return self.truth.visit(id).open.entry(path.to_owned()).or_default().1 += 1;
        };
        let Some(Applied { count, value }) = applied else { return };
        let seen = self.decode(id, &value);
        if seen.is_ended {
            self.count_at_end(id, path, count);
        }
        let is_in = seen.is_ended || seen.counts.get(path) >= Some(&count);
        must!(self, is_in, "{path} is counted to {count}, but not in {seen:?}");
        let (open, _) = self.truth.visit(id).open.entry(path.to_owned()).or_default();
        let at = open.iter().position(|open| *open == count);
        at.map(|at| open.swap_remove(at));
        must!(self, at.is_some(), "{path} is answered {count} more often than it was counted");
        self.log.push(("count", count));
    }

    /// A view may be counted by the write that ends its session. Then Redis never holds its count, nor those of others
    /// before it.
    fn count_at_end(&mut self, id: Id, path: &str, count: u64) {
        let last = self.seen(id).and_then(|seen| seen.counts.get(path)).copied().unwrap_or_default();
        let visit = self.truth.visit(id);
        let at_end = visit.at_end.entry(path.to_owned()).or_default();
        *at_end = last.max(*at_end);
        if count > *at_end {
            visit.open.entry(path.to_owned()).or_default().0.extend(*at_end + 1..=count);
            *at_end = count;
        }
    }

    pub fn judge_item(&mut self, id: Id, item: u64, before: &Before, instance: usize, outcome: Option<Outcome>) {
        let fails = matches!(outcome, Some(Err(Error::Mismatched)));
        let kind = if fails { "a failing item" } else { "an item" };
        match self.judge_outcome(id, before, instance, outcome, kind) {
            None => _ = self.truth.visit(id).unanswered.insert(item),
            Some(None) => {}
            Some(Some(applied)) => {
                let seen = self.decode(id, &applied.value);
                must!(self, seen.is_ended || seen.items.contains(&item), "item {item} is not in {seen:?}");
                if seen.is_ended {
                    // Perhaps it was added by the write that ended the session.
                    self.truth.visit(id).stored.insert(item);
                }
                self.truth.visit(id).acknowledged.insert(item);
            }
        }
    }

    pub fn judge_end_of_session(&mut self, id: Id, before: &Before, instance: usize, outcome: Option<Outcome>) {
        match self.judge_outcome(id, before, instance, outcome, "an end") {
            None => _ = self.truth.perhaps_ended.insert(id),
            Some(None) => {}
            Some(Some(applied)) => {
                let seen = Seen::read(id, &applied.value);
                must!(self, seen.is_some_and(|seen| seen.is_ended), "a session is not ended");
                self.judge_ended(id);
            }
        }
    }

    /// A session was ended. Nobody else has ended it.
    fn judge_ended(&mut self, id: Id) {
        let is_lost = self.truth.has_lost_writes;
        must!(self, self.truth.ended.insert(id) || is_lost, "a session is ended twice");
        let is_ended = self.seen(id).is_some_and(|seen| seen.is_ended);
        must!(self, is_ended || is_lost, "a session goes on that was ended");
    }

    pub fn judge_change_of_id(
        &mut self,
        id: Id,
        item: u64,
        before: &Before,
        instance: usize,
        outcome: Option<Result<Option<Id>, Error>>,
    ) {
        self.log.push(("id", matches!(outcome, Some(Ok(Some(_)))).into()));
        match outcome {
            None => _ = self.truth.perhaps_ended.insert(id),
            Some(Err(Error::Unanswered)) => {
                let had_no_reply = self.truth.had_no_reply(instance, id, before.since);
                must!(self, had_no_reply, "nobody can tell whether an id changed, but each reply came");
                self.truth.perhaps_ended.insert(id);
            }
            Some(Err(error)) => self.judge_error(id, before, &error, "a change of id"),
            Some(Ok(None)) => {
                self.judge_absence(id, "a change of id");
                // Perhaps the id was changed before the session was gone.
                self.truth.perhaps_ended.insert(id);
            }
            Some(Ok(Some(new))) => {
                self.judge_ended(id);
                let visit = self.truth.visit_of[&id];
                self.truth.visit_of.insert(new, visit);
                self.truth.visit(id).stored.insert(item);
                self.truth.visit(id).acknowledged.insert(item);
                if self.truth.has_lost_writes {
                    return;
                }
                let [old, new] = [id, new].map(|id| self.truth.sessions.get(&id).map(|session| &session.seen));
                let carries = old.zip(new).is_some_and(|(old, new)| {
                    new.counts == old.counts && new.items.split_last() == Some((&item, &*old.items))
                });
                must!(self, carries, "after a change of id {old:?} goes on as {new:?}");
            }
        }
    }

    pub fn judge_read(&mut self, id: Id, before: &Before, instance: usize, value: Result<Option<Bytes>, Error>) {
        self.log.push(("read", matches!(value, Ok(Some(_))).into()));
        match value {
            Ok(Some(value)) if self.truth.broken.contains(&id) => drop(value),
            Ok(Some(value)) => {
                let seen = self.decode(id, &value);
                let is_lost = self.truth.has_lost_writes;
                let is_new = before.counts.iter().all(|(path, count)| seen.counts.get(path) >= Some(count));
                must!(self, is_lost || is_new && !seen.is_ended && !before.had_ended, "an old value is read: {seen:?}");
            }
            Ok(None) => self.judge_absence(id, "a read"),
            Err(Error::Unanswered) => {
                let had_no_reply = self.truth.had_no_reply(instance, id, before.since);
                must!(self, had_no_reply, "a read is not answered, but each reply came");
            }
            Err(error) => self.judge_error(id, before, &error, "a read"),
        }
    }

    /// Nothing is left over: no permit, no count, no item, no end.
    pub fn judge_end(&mut self) {
        let threads = self.instances.iter().flat_map(|instance| &instance.threads);
        let are_idle = threads.into_iter().all(|(_, committer)| committer.is_idle());
        must!(self, are_idle, "an instance is not idle after all requests");
        if self.truth.has_lost_writes {
            return;
        }
        for Visit { open, stored, acknowledged, unanswered, .. } in &self.truth.visits {
            for (path, (counts, unanswered)) in open {
                let holds = counts.len() <= *unanswered;
                must!(self, holds, "{path}: {counts:?} are not answered, and {unanswered} views were not");
            }
            let lost: Vec<_> = acknowledged.difference(stored).collect();
            must!(self, lost.is_empty(), "items {lost:?} are lost");
            let left: Vec<_> = stored.difference(acknowledged).filter(|item| !unanswered.contains(item)).collect();
            must!(self, left.is_empty(), "items {left:?} are there, and were refused");
        }
        let mut sessions: Vec<_> = self.truth.sessions.iter().collect();
        sessions.sort_by_key(|(id, _)| id.0);
        for (id, session) in sessions {
            let is_known = self.truth.ended.contains(id) || self.truth.perhaps_ended.contains(id);
            must!(self, !session.seen.is_ended || is_known, "a session has ended that was to go on");
        }
    }
}
