//! The world: instances, visitors and one Redis; and what must hold after each call, whatever happens.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use cloud_run_sessions::store::{
    DEADLINE, Error, FirstView,
    committer::Committer,
    lifetime::{Lifetime, MARGIN, Renewed},
    script::{RunScript, Script},
};
use tokio::{
    runtime::Builder,
    time::{Instant, sleep, timeout},
};
use tower_sessions::session::{Id, Record};
use tower_sessions_redis_store::fred::{
    types::{Key, Value},
    util::redis_keyslot,
};

use super::{
    events::{Event, Fate, History, PATHS, VISITORS},
    lua::{self, SERVER, Server},
};

const TTL: Duration = Duration::from_secs(100);

type Page = (i128, &'static str);

/// What is true of the sessions, told from outside.
#[derive(Clone, Default)]
struct Truth {
    /// For each living session how often each page was counted.
    counts: HashMap<Page, u64>,
    /// Sessions that ended by an event.
    ended: HashSet<Id>,
    /// Calls that were counted.
    done: HashSet<(Vec<u8>, u64)>,
    /// When a session was last viewed or saved, in ms of Redis's clock.
    used: HashMap<Id, u64>,
}

#[derive(Default)]
struct World {
    fates: VecDeque<Fate>,
    knows_script: bool,
    truth: Truth,
    replica: Option<(Server, Truth)>,
    /// How often each number was counted, and answered.
    issued: BTreeMap<(Page, u64), i64>,
    answered: BTreeMap<(Page, u64), i64>,
    /// Views that ended without a number.
    failed: HashMap<Page, i64>,
    reply_keys: BTreeSet<Vec<u8>>,
    has_failed_over: bool,
    drift: i64,
    /// When Redis's clock was last read: the instances' time, in ms.
    clock: Option<Instant>,
    violation: Option<String>,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::default();
    static SCRIPTS: RefCell<Option<Rc<[lua::Script; 2]>>> = const { RefCell::new(None) };
}

/// Plays the scripts with these sources from now on.
pub fn use_scripts(count_views: &str, save: &str) {
    let scripts = [count_views, save].map(|source| lua::Script::new(source).unwrap());
    SCRIPTS.set(Some(Rc::new(scripts)));
}

fn scripts() -> Rc<[lua::Script; 2]> {
    SCRIPTS.with_borrow(|scripts| scripts.clone().unwrap())
}

fn violate(what: String) {
    WORLD.with_borrow_mut(|world| {
        world.violation.get_or_insert(what);
    });
}

macro_rules! must {
    ($holds:expr, $($what:tt)+) => { if !$holds { violate(format!($($what)+)) } };
}

/// Lets Redis's clock pass as the instances' has.
fn pass_time() {
    WORLD.with_borrow_mut(|world| {
        let now = Instant::now();
        let passed = world.clock.replace(now).map_or(0, |then| (now - then).as_millis() as i64);
        let passed = passed + passed * world.drift / 1_000_000;
        SERVER.with_borrow_mut(|server| server.model.now += passed.max(0) as u64);
    });
}

fn views_key(id: Id) -> Vec<u8> {
    format!("v:{{{id}}}").into_bytes()
}

fn left(key: &[u8]) -> Option<u64> {
    pass_time();
    SERVER.with_borrow_mut(|server| server.model.left(key))
}

/// One instance's way to Redis.
#[derive(Clone)]
struct Way {
    is_alive: Arc<AtomicBool>,
    is_clustered: bool,
}

impl RunScript for Way {
    fn is_clustered(&self) -> bool {
        self.is_clustered
    }

    async fn attempt(
        &self,
        send_by: Instant,
        _: &Script,
        in_full: bool,
        keys: Vec<Key>,
        arguments: Vec<Value>,
    ) -> Result<String, Error> {
        const WAY: Duration = Duration::from_millis(1);
        let call = Call {
            keys: keys.iter().map(|key| key.as_bytes().to_vec()).collect(),
            arguments: arguments.iter().map(|value| value.as_string().unwrap().into_bytes()).collect(),
            in_full,
            is_clustered: self.is_clustered,
            is_late: false,
        };
        let fate = WORLD.with_borrow_mut(|world| world.fates.pop_front());
        let millis = Duration::from_millis;
        let later = |call: Call, late| {
            tokio::spawn(async move {
                sleep(millis(late)).await;
                let _ = Call { is_late: true, ..call }.arrive(None);
            });
        };
        if Instant::now() >= send_by {
            return Err(Error::Unreached);
        }
        if let Some(Fate::FrozenBefore(time)) = fate {
            sleep(millis(time)).await;
        }
        sleep(WAY).await;
        let reply = match fate {
            Some(Fate::Lost) => Err(Error::Unanswered),
            Some(Fate::Late(late)) => {
                later(call, late);
                Err(Error::Unanswered)
            }
            Some(Fate::ReplyLost) => {
                let _ = call.arrive(fate);
                Err(Error::Unanswered)
            }
            Some(Fate::Refused(error)) => Err(Error::Refused(error.to_owned())),
            _ => {
                let reply = call.arrive(fate);
                if let Some(Fate::Twice(late)) = fate {
                    later(call, late);
                }
                reply
            }
        };
        sleep(WAY).await;
        if let Some(Fate::Answered(time) | Fate::FrozenAfter(time)) = fate {
            sleep(millis(time)).await;
        }
        if !self.is_alive.load(Relaxed) {
            std::future::pending().await
        }
        match reply {
            // The connection gives up such a server.
            Err(Error::Refused(error)) if error.starts_with("READONLY") => Err(Error::Unreached),
            reply => reply,
        }
    }
}

/// A call on its way.
#[derive(Clone)]
struct Call {
    keys: Vec<Vec<u8>>,
    arguments: Vec<Vec<u8>>,
    in_full: bool,
    is_clustered: bool,
    /// Whether nobody waits for it any more.
    is_late: bool,
}

impl Call {
    /// Arrives at Redis, which runs the script.
    fn arrive(&self, fate: Option<Fate>) -> Result<String, Error> {
        let knows_script = WORLD.with_borrow_mut(|world| {
            world.knows_script |= self.in_full;
            world.knows_script
        });
        if !knows_script {
            return Err(Error::Refused("NOSCRIPT No matching script".to_owned()));
        }
        pass_time();
        if self.is_clustered {
            let slots: HashSet<_> = self.keys.iter().map(|key| redis_keyslot(key)).collect();
            must!(slots.len() == 1, "a call with keys in {} slots", slots.len());
        }
        let before = SERVER.with_borrow_mut(|server| {
            server.fails = match fate {
                Some(Fate::Fails(at, error)) => Some((at, error)),
                _ => None,
            };
            server.tick = if let Some(Fate::Slow(tick)) = fate { tick } else { 0 };
            // Expired entries are gone, whether or not they were accessed.
            for key in &self.keys {
                server.model.get(key);
            }
            server.model.entries.clone()
        });
        let reply = scripts()[0].run(&self.keys, &self.arguments);
        SERVER.with_borrow_mut(|server| {
            server.model.now += std::mem::take(&mut server.model.ahead);
            (server.fails, server.tick) = (None, 0);
        });
        self.judge(&before, &reply);
        reply.map_err(Error::Refused)
    }

    fn number(&self) -> u64 {
        std::str::from_utf8(&self.arguments[0]).unwrap().parse().unwrap()
    }

    fn judge(&self, before: &BTreeMap<Vec<u8>, super::model::Entry>, reply: &Result<String, String>) {
        let (number, lane) = (self.number(), &self.keys[0]);
        let own = reply.as_ref().ok().and_then(|reply| reply.strip_prefix(&format!("{number}\n")));
        must!(self.is_late || own.is_some() || reply.is_err(), "call {number} is awaited, and a newer one was kept");
        let call = (lane.clone(), number);
        let is_first = WORLD.with_borrow_mut(|world| {
            world.reply_keys.insert(lane.clone());
            own.is_some() && !world.truth.done.contains(&call)
        });
        let lines: Vec<_> = own.unwrap_or_default().split('\n').collect();
        if is_first {
            must!(lines.len() == self.views().count(), "{} lines", lines.len());
            let is_kept = lines.iter().any(|line| *line != "0");
            if is_kept {
                WORLD.with_borrow_mut(|world| world.truth.done.insert(call));
            }
            for ((id, path), line) in self.views().zip(&lines) {
                self.judge_view(id, path, line, before);
            }
        } else {
            SERVER.with_borrow(|server| {
                let after = &server.model.entries;
                let mut keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
                keys.retain(|key| !key.starts_with(b"calls:") && before.get(*key) != after.get(*key));
                // A record in its last moment may go: its session is over.
                let last = server.model.now + MARGIN.as_millis() as u64;
                keys.retain(|key| after.contains_key(*key) || before[*key].ends > Some(last));
                if let Some(key) = keys.first() {
                    let name = String::from_utf8_lossy(key);
                    let (was, is) = (before.get(*key), after.get(*key));
                    violate(format!("call {number} is not counted, {reply:?}, but {name} was {was:?}, is {is:?}"));
                }
            });
        }
        judge_keys();
    }

    /// A view that the script says it has looked at.
    fn judge_view(&self, id: Id, path: &'static str, line: &str, before: &BTreeMap<Vec<u8>, super::model::Entry>) {
        let record = id.to_string().into_bytes();
        if line.starts_with('-') {
            return;
        }
        let Ok(count) = line.parse::<u64>() else {
            return violate(format!("no count: {line:?}"));
        };
        let is_left = SERVER.with_borrow(|server| server.model.entries.contains_key(&record));
        must!(count > 0 || !is_left, "a session is over, and its record is left");
        WORLD.with_borrow_mut(|world| {
            let now = SERVER.with_borrow(|server| server.model.now);
            if count == 0 {
                let used = world.truth.used.get(&id).copied().unwrap_or_default();
                let is_early = !world.truth.ended.contains(&id) && now < used + TTL.as_millis() as u64;
                if is_early && !world.has_failed_over {
                    let what = format!("a session is over {} ms after its last use", now - used);
                    world.violation.get_or_insert(what);
                }
                return;
            }
            let expected = world.truth.counts.entry((id.0, path)).or_default();
            *expected += 1;
            let is_over = world.truth.ended.contains(&id) || !before.contains_key(&record);
            if is_over || count != *expected {
                let what = format!("{path} counted to {count}, not {expected}; session over: {is_over}");
                world.violation.get_or_insert(what);
            }
            *world.issued.entry(((id.0, path), count)).or_default() += 1;
        });
    }

    fn views(&self) -> impl Iterator<Item = (Id, &'static str)> {
        let ids = self.keys[1..].chunks(2).map(|keys| std::str::from_utf8(&keys[0]).unwrap().parse().unwrap());
        let paths = self.arguments[5..].chunks(2).map(|arguments| {
            let is_this = |path: &&&str| path.as_bytes() == arguments[0];
            *PATHS.iter().find(is_this).unwrap()
        });
        ids.zip(paths)
    }
}

/// What must hold of all keys at any time.
fn judge_keys() {
    let longest = Lifetime::new(TTL).of_record().as_millis() as u64;
    SERVER.with_borrow_mut(|server| {
        let model = &mut server.model;
        let keys: Vec<_> = model.entries.keys().cloned().collect();
        for key in &keys {
            let Some(ends) = model.get(key).map(|entry| entry.ends) else {
                continue;
            };
            let name = String::from_utf8_lossy(key).into_owned();
            must!(ends.is_some(), "{name} lives for ever");
            if key.starts_with(b"calls:") {
                continue;
            }
            let ends = ends.unwrap_or_default();
            must!(ends <= model.now + longest, "{name} lives {} ms", ends - model.now);
            if let Some(id) = name.strip_prefix("v:{") {
                let record = model.get(&id.as_bytes()[..id.len() - 1]).and_then(|entry| entry.ends);
                must!(record >= Some(ends), "views end at {ends}, their record at {record:?}");
            }
        }
        let replies = keys.iter().filter(|key| key.starts_with(b"calls:")).count();
        WORLD.with_borrow_mut(|world| {
            if replies > world.reply_keys.len() {
                world.violation.get_or_insert(format!("{replies} kept replies"));
            }
        });
    });
}

struct Instance {
    way: Way,
    committer: Committer<Way>,
    renewed: Arc<Renewed>,
}

impl Instance {
    fn start(is_clustered: bool) -> Rc<Self> {
        let renewed = Arc::new(Renewed::new(Lifetime::new(TTL)));
        let way = Way { is_alive: Arc::new(AtomicBool::new(true)), is_clustered };
        let committer = Committer::new(way.clone(), Lifetime::new(TTL), renewed.clone());
        Rc::new(Self { way, committer, renewed })
    }

    /// Creates a session, as the session layer does after the first view of a new visitor.
    fn create(&self, id: Id, first: Option<&'static str>) {
        self.set(id, first, Lifetime::new(TTL).record_millis());
        self.renewed.remember([id].into_iter(), Instant::now());
    }

    fn set(&self, id: Id, first: Option<&'static str>, life: i64) {
        pass_time();
        let value = record(id, first);
        let command = [b"SET".to_vec(), id.to_string().into(), value, b"PX".to_vec(), life.to_string().into()];
        let now = SERVER.with_borrow_mut(|server| {
            server.model.execute(&command);
            server.model.now
        });
        WORLD.with_borrow_mut(|world| {
            world.truth.used.insert(id, now);
            if let Some(path) = first {
                world.truth.counts.insert((id.0, path), 1);
            }
        });
    }

    /// Saves a session, as store/redis.rs does, which then is renewed or has been so lately.
    fn save(&self, id: Id, first: Option<&'static str>) {
        pass_time();
        let begin = Instant::now();
        if !self.renewed.are_due([id].iter(), begin)[0] {
            return;
        }
        let key = id.to_string().into_bytes();
        let is_alive = SERVER.with_borrow_mut(|server| server.model.left(&key)) > Some(MARGIN.as_millis() as u64);
        let life = Lifetime::new(TTL).record_millis().to_string().into_bytes();
        let arguments = [record(id, first), life, MARGIN.as_millis().to_string().into()];
        let saved = scripts()[1].run(&[key, views_key(id)], &arguments);
        must!(saved.is_ok(), "{saved:?}");
        self.renewed.remember([id].into_iter(), begin);
        if is_alive {
            let now = SERVER.with_borrow(|server| server.model.now);
            WORLD.with_borrow_mut(|world| world.truth.used.insert(id, now));
        }
        judge_keys();
    }
}

fn record(id: Id, first: Option<&str>) -> Vec<u8> {
    let data = first.map(|path| (FirstView::KEY.to_owned(), path.into()));
    let record = Record { id, data: data.into_iter().collect(), expiry_date: time::OffsetDateTime::UNIX_EPOCH };
    rmp_serde::to_vec(&record).unwrap()
}

#[derive(Clone, Copy)]
struct Session {
    id: Id,
    first: Option<&'static str>,
}

/// Plays a history. Gives the first thing that must hold and did not.
pub fn play(history: &History) -> Option<String> {
    WORLD.set(World { knows_script: true, ..World::default() });
    SERVER.set(Server::default());
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, happen(history));
    WORLD.take().violation
}

async fn happen(history: &History) {
    let start = || Instance::start(history.is_clustered);
    let mut instances: Vec<_> = (0..history.instances).map(|_| start()).collect();
    let visitors: Rc<RefCell<Vec<Option<Session>>>> = Rc::new(RefCell::new(vec![None; VISITORS]));
    let mut views = Vec::new();
    let mut ids = 0;
    let end = |visitor: &mut Option<Session>| {
        if let Some(session) = visitor.take() {
            let commands = [b"DEL".to_vec(), session.id.to_string().into(), views_key(session.id)];
            SERVER.with_borrow_mut(|server| server.model.execute(&commands));
            WORLD.with_borrow_mut(|world| world.truth.ended.insert(session.id));
            return Some(session);
        }
        None
    };
    for event in &history.events {
        ids += 1;
        match *event {
            Event::View { visitor, path, instance, patience } => {
                let (instance, visitors) = (instances[instance].clone(), visitors.clone());
                let view = view(instance, visitors, visitor, PATHS[path], patience, Id(ids));
                views.push(tokio::task::spawn_local(view));
            }
            Event::Wait(time) => sleep(Duration::from_millis(time)).await,
            Event::Next(fate) => WORLD.with_borrow_mut(|world| world.fates.push_back(fate)),
            Event::Save { visitor, instance } => {
                if let Some(session) = visitors.borrow()[visitor] {
                    instances[instance].save(session.id, session.first);
                }
            }
            Event::Delete(visitor) => drop(end(&mut visitors.borrow_mut()[visitor])),
            Event::NewId(visitor) => {
                let visitor = &mut visitors.borrow_mut()[visitor];
                if end(visitor).is_some() {
                    *visitor = Some(Session { id: Id(ids), first: None });
                    instances[0].create(Id(ids), None);
                }
            }
            Event::Break(visitor, time) => {
                if let Some(session) = visitors.borrow()[visitor] {
                    let key = session.id.to_string().into_bytes();
                    let put = move |value: Vec<u8>| {
                        let command = [b"SET".to_vec(), key.clone(), value, b"XX".to_vec(), b"KEEPTTL".to_vec()];
                        SERVER.with_borrow_mut(|server| server.model.execute(&command));
                    };
                    pass_time();
                    put(b"a record that nobody can read".to_vec());
                    tokio::task::spawn_local(async move {
                        sleep(Duration::from_millis(time)).await;
                        pass_time();
                        put(record(session.id, session.first));
                    });
                }
            }
            Event::LoseScripts => WORLD.with_borrow_mut(|world| world.knows_script = false),
            Event::RestartEmpty => {
                SERVER.with_borrow_mut(|server| server.model.entries.clear());
                WORLD.with_borrow_mut(|world| {
                    world.knows_script = false;
                    world.has_failed_over = true;
                    let all: Vec<_> = world.truth.used.keys().copied().collect();
                    world.truth.ended.extend(all);
                });
            }
            Event::Replicate => WORLD.with_borrow_mut(|world| {
                world.replica = Some((SERVER.with_borrow(Server::clone), world.truth.clone()));
            }),
            Event::FailOver => {
                pass_time();
                WORLD.with_borrow_mut(|world| {
                    if let Some((server, truth)) = world.replica.take() {
                        let now = SERVER.with_borrow(|server| server.model.now);
                        SERVER.set(server);
                        SERVER.with_borrow_mut(|server| server.model.now = now);
                        // What was lost may be counted again, and what has ended since may live again.
                        world.truth = truth;
                        world.has_failed_over = true;
                    }
                });
            }
            Event::Crash(instance) => {
                instances[instance].way.is_alive.store(false, Relaxed);
                instances[instance] = start();
            }
            Event::Drift(drift) => {
                pass_time();
                WORLD.with_borrow_mut(|world| world.drift = drift);
            }
        }
    }
    for view in views {
        view.await.unwrap();
    }
    // What is late arrives, and lanes end.
    sleep(Duration::from_secs(60)).await;
    for instance in &instances {
        must!(instance.committer.is_idle(), "an instance is not idle after all views");
    }
    WORLD.with_borrow_mut(|world| {
        let mut skipped: BTreeMap<Page, i64> = BTreeMap::new();
        for ((page, number), issued) in &world.issued {
            let answered = world.answered.get(&(*page, *number)).copied().unwrap_or_default();
            *skipped.entry(*page).or_default() += issued - answered;
        }
        for (page, skipped) in skipped {
            let failed = world.failed.get(&page).copied().unwrap_or_default();
            // A call whose count was lost may be counted twice, by an attempt that is late.
            if skipped > failed && !world.has_failed_over {
                let what = format!("{skipped} numbers of {} skipped for {failed} failed views", page.1);
                world.violation.get_or_insert(what);
            }
        }
    });
}

async fn view(
    instance: Rc<Instance>,
    visitors: Rc<RefCell<Vec<Option<Session>>>>,
    visitor: usize,
    path: &'static str,
    patience: u64,
    new_id: Id,
) {
    let begin = |session: &mut Option<Session>| {
        *session = Some(Session { id: new_id, first: Some(path) });
        instance.create(new_id, Some(path));
    };
    let session = {
        let session = &mut visitors.borrow_mut()[visitor];
        let Some(known) = session else {
            return begin(session);
        };
        *known
    };
    let page = (session.id.0, path);
    let patience = DEADLINE.min(Duration::from_millis(patience));
    let failed = || WORLD.with_borrow_mut(|world| *world.failed.entry(page).or_default() += 1);
    match timeout(patience, instance.committer.count_view(session.id, path)).await {
        Ok(Ok(Some(count))) => {
            let is_issued = WORLD.with_borrow_mut(|world| {
                let answered = world.answered.entry((page, count)).or_default();
                *answered += 1;
                *answered <= world.issued.get(&(page, count)).copied().unwrap_or_default()
            });
            must!(is_issued, "{path}: {count} is answered more often than it was counted");
            judge_life(session.id);
        }
        Ok(Ok(None)) => {
            // It may have been counted before the session was deleted, and its reply lost.
            failed();
            // Another view of this visitor may have begun a session meanwhile.
            let current = &mut visitors.borrow_mut()[visitor];
            if current.is_none_or(|current| current.id == session.id) {
                begin(current);
            }
        }
        Ok(Err(Error::Unanswered | Error::Refused(_)) | Err(_)) | Err(_) => failed(),
    }
}

/// A session lives as long as is promised after a view.
fn judge_life(id: Id) {
    let (record, views) = (left(id.to_string().as_bytes()), left(&views_key(id)));
    let now = SERVER.with_borrow(|server| server.model.now);
    let is_sure = WORLD.with_borrow_mut(|world| {
        world.truth.used.insert(id, now);
        !world.has_failed_over && !world.truth.ended.contains(&id)
    });
    // A view of one page, and no views of others, has no hash yet.
    let ttl = TTL.as_millis() as u64;
    let lives = |left: Option<u64>| left.is_some_and(|left| left + 5 >= ttl);
    must!(!is_sure || lives(record) && lives(views), "after a view {record:?} and {views:?} ms are left of {ttl}");
}
