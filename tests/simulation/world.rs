//! The world: instances, visitors and one Redis, and what happens to them.

use std::{
    cell::RefCell,
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use cloud_run_sessions::store::{
    DEADLINE, Error,
    change::{Change, NewId},
    committer::Committer,
    compare_and_set::{CompareAndSet, SendCommand},
    contents::{Contents, Data, is_ended},
    ttl::SessionTtl,
};
use fred::types::Value;
use tokio::{
    runtime::Builder,
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tower_sessions::session::Id;

use super::{
    events::{Event, Fate, History, Server},
    lua,
    model::{Entry, Model, Reply, Result as ModelResult, Stored},
    truth::{ITEMS, Seen, Truth, must},
};

const MS: Duration = Duration::from_millis(1);
/// How long sessions live.
pub const TTL: Duration = Duration::from_secs(100);
/// How long a sending waits for its reply, as the connection does.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(750);

#[derive(Default)]
pub struct World {
    pub server: Server,
    pub distances: Vec<u32>,
    pub instances: Vec<Instance>,
    /// How many instances were started.
    started: usize,
    pub visitors: Vec<Visitor>,
    requests: usize,
    /// How many items pages have added.
    items: u64,
    /// When the history began.
    began: Option<Instant>,
    pub model: Model,
    /// What the replica holds.
    replica: Option<Model>,
    has_lost_scripts: bool,
    /// What happens to the next sendings; what happens to the script that runs.
    fates: VecDeque<Fate>,
    failing: Option<(usize, &'static str)>,
    /// How many commands Redis has executed.
    pub executed: u64,
    /// A moment, and how many were executed before it.
    until: (u64, u64),
    /// The writes that are in flight: of which instance, and of which session.
    in_flight: HashSet<(usize, Id)>,
    pub truth: Truth,
    /// The first thing that must hold and did not.
    pub violation: Option<String>,
    /// What was answered, in short.
    pub log: Vec<(&'static str, u64)>,
}

#[derive(Clone, Copy, Default)]
pub struct Visitor {
    pub id: Option<Id>,
    old: Option<Id>,
}

thread_local! {
    /// The world of the history that this thread plays.
    pub static WORLD: RefCell<World> = Default::default();
}

/// Acts in the world as it is now. The script must not be run in here: it borrows the world itself.
pub fn world<T>(act: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(|world| {
        world.model.pass_until(world.began.get_or_insert_with(Instant::now).elapsed().as_millis() as u64);
        act(world)
    })
}

/// Plays a history. Gives the world as it is afterwards.
pub fn play(history: &History) -> World {
    play_with(history, async {
        for event in &history.events {
            match *event {
                Event::Wait(time) => sleep(time * MS).await,
                event => world(|world| world.happens(event)),
            }
            yield_now().await; // Between events at one moment, tasks go on.
        }
    })
}

/// Plays this in the world of a history, in place of its events.
pub fn play_with(history: &History, events: impl Future<Output = ()>) -> World {
    WORLD.set(World {
        server: history.server,
        distances: history.distances.clone(),
        visitors: vec![Visitor::default(); history.visitors],
        model: Model { ifeq: history.server.ifeq, ..Model::default() },
        ..World::default()
    });
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        world(|world| world.instances = (0..history.distances.len()).map(|place| world.start(place)).collect());
        sleep(20 * MS).await;
        events.await;
        // Requests end, and what is late arrives.
        sleep(2 * TTL).await;
        world(World::judge_end);
    });
    WORLD.take()
}

impl World {
    /// Starts an instance in this place, which checks the server.
    fn start(&mut self, place: usize) -> Instance {
        self.started += 1;
        let way = Way { instance: self.started, distance: self.distances[place] };
        let ttl = SessionTtl::new(TTL, None);
        let shared = Arc::default();
        let threads = [(); 2].map(|()| {
            let compare_and_set = Arc::new(CompareAndSet::new(ttl, self.server.is_clustered));
            (compare_and_set.clone(), Committer::new(way, compare_and_set, ttl, &shared))
        });
        let instance = Instance { way, threads };
        instance.check();
        instance
    }

    /// Lets an event happen that takes no time, or begins one that does.
    pub fn happens(&mut self, event: Event) {
        match event {
            Event::Wait(_) => unreachable!("the history waits"),
            Event::View { visitor, path, instance, patience } => {
                tokio::spawn(view(visitor, path, self.instances[instance].clone(), patience * MS));
            }
            Event::ViewEverywhere { visitor, path } => {
                for instance in self.instances.clone() {
                    tokio::spawn(view(visitor, path, instance, DEADLINE));
                }
            }
            Event::ViewWithOldId { visitor, instance } => {
                let Some(id) = self.visitors[visitor].old else { return };
                tokio::spawn(view_session(id, "/", self.instances[instance].clone(), DEADLINE));
            }
            Event::Add { visitor, instance, patience, fails } => {
                let Some(id) = self.visitors[visitor].id else { return };
                let item = self.next_item();
                tokio::spawn(add(id, item, self.instances[instance].clone(), patience * MS, fails));
            }
            Event::Read { visitor, instance } => {
                let Some(id) = self.visitors[visitor].id else { return };
                tokio::spawn(read(id, self.instances[instance].clone()));
            }
            Event::ChangeId { visitor, instance, patience } => {
                let Some(id) = self.visitors[visitor].id else { return };
                let item = self.next_item();
                tokio::spawn(change_id(visitor, id, item, self.instances[instance].clone(), patience * MS));
            }
            Event::End { visitor, instance } => {
                let Some(id) = self.visitors[visitor].id else { return };
                tokio::spawn(end(visitor, id, self.instances[instance].clone()));
            }
            Event::Next(fate) => self.fates.push_back(fate),
            Event::Delete { visitor } => {
                let Some(id) = self.visitors[visitor].id else { return };
                self.model.entries.remove(id.to_string().as_bytes());
            }
            Event::Break { visitor, time, is_list } => {
                let Some(id) = self.visitors[visitor].id else { return };
                let another = self.visitors[(visitor + 1) % self.visitors.len()].id;
                self.break_session(id, another.filter(|other| *other != id), time, is_list);
            }
            Event::LoseScripts => self.has_lost_scripts = true,
            Event::RestartEmpty => {
                self.model.entries.clear();
                self.has_lost_scripts = true;
                self.truth.forget_sessions();
            }
            Event::Replicate => {
                self.replica = Some(self.model.clone());
                self.truth.replicate();
            }
            Event::FailOver => {
                let Some(Model { entries, .. }) = self.replica.take() else { return };
                self.model.entries = entries;
                self.truth.fail_over();
                self.instances.iter().for_each(Instance::check);
            }
            Event::Crash { instance } => self.instances[instance] = self.start(instance),
            Event::Reconnect { instance } => self.instances[instance].check(),
        }
    }

    fn next_item(&mut self) -> u64 {
        self.items += 1;
        self.items
    }

    /// Replaces a session's value for a while, perhaps by another session's.
    fn break_session(&mut self, id: Id, another: Option<Id>, time: u32, is_list: bool) {
        let key = id.to_string().into_bytes();
        let another = another.and_then(|other| self.truth.sessions.get(&other));
        let broken = match another.filter(|session| !is_ended(&session.value)) {
            _ if is_list => Stored::List(1),
            Some(session) => Stored::Text(session.value.clone()),
            None => Stored::Text(b"what nobody can read".into()),
        };
        let Some(entry) = self.model.entries.get_mut(&key) else { return };
        let session = self.truth.sessions.get(&id).map(|session| Stored::Text(session.value.clone()));
        if session.as_ref() != Some(&entry.stored) {
            return;
        }
        let whole = std::mem::replace(&mut entry.stored, broken.clone());
        self.truth.broken.insert(id);
        tokio::spawn(async move {
            sleep(time * MS).await;
            world(|world| {
                let session = world.truth.sessions.get(&id).map(|session| Stored::Text(session.value.clone()));
                let is_current = session.as_ref() == Some(&whole);
                match world.model.entries.get_mut(&key) {
                    Some(entry) if entry.stored == broken && is_current => entry.stored = whole,
                    _ => {}
                }
            });
        });
    }

    /// Whether commands are sent without end, while no time passes.
    fn is_endless(&mut self) -> bool {
        if self.until.0 < self.model.now {
            self.until = (self.model.now, self.executed);
        }
        let is_endless = self.executed > self.until.1 + 5_000;
        must!(self, !is_endless, "commands are sent without end");
        is_endless
    }

    /// Executes a command of the script, unless it is the one that fails.
    pub fn execute_in_script(&mut self, command: &[&[u8]]) -> ModelResult {
        // What restores a session never fails: Redis has already let this script write.
        if let Some((left, error)) = self.failing.filter(|_| command.contains(&&b"XX"[..])) {
            self.failing = left.checked_sub(1).map(|left| (left, error));
            if left == 0 {
                return Err(error);
            }
        }
        self.executed += 1;
        self.model.execute(command)
    }
}

/// A visitor views a page, as the web layer does.
async fn view(visitor: usize, path: &'static str, instance: Instance, patience: Duration) {
    let id = world(|world| world.visitors[visitor].id);
    if let Some(id) = id
        && view_session(id, path, instance.clone(), patience).await
    {
        return;
    }
    let mut contents = Contents::default();
    contents.count(path).unwrap();
    let created = timeout(patience.min(DEADLINE), instance.committer().create(&contents)).await;
    world(|world| {
        if let Ok(Ok(new)) = &created {
            world.truth.begin(*new);
            let of_visitor = &mut world.visitors[visitor];
            // Another view of this visitor may have begun a session meanwhile.
            if of_visitor.id == id {
                of_visitor.id = Some(*new);
            }
        }
        world.log.push(("create", matches!(created, Ok(Ok(_))).into()));
    });
}

/// Views a page in a session. Returns whether there is one.
async fn view_session(id: Id, path: &'static str, instance: Instance, patience: Duration) -> bool {
    let before = world(|world| world.before(id));
    let change = Change::View(path.into());
    let outcome = timeout(patience.min(DEADLINE), instance.committer().change(id, change)).await.ok();
    let is_over = matches!(outcome, Some(Ok(None)));
    world(|world| world.judge_view(id, path, &before, instance.way.instance, outcome));
    !is_over
}

async fn add(id: Id, item: u64, instance: Instance, patience: Duration, fails: bool) {
    let before = world(|world| world.before(id));
    let change = Change::Data(Box::new(move |data| {
        add_item(data, item)?;
        if fails { Err(Error::Mismatched) } else { Ok(()) }
    }));
    let outcome = timeout(patience.min(DEADLINE), instance.committer().change(id, change)).await.ok();
    world(|world| world.judge_item(id, item, &before, instance.way.instance, outcome));
}

fn add_item(data: &mut Data, item: u64) -> Result<(), Error> {
    let items = data.entry(ITEMS.to_owned()).or_insert_with(|| Vec::<u64>::new().into());
    items.as_array_mut().ok_or(Error::Mismatched)?.push(item.into());
    // A long value is passed to the script in another way than a short one.
    if item.is_multiple_of(4) {
        data.insert("text".to_owned(), "x".repeat(600).into());
    }
    Ok(())
}

async fn end(visitor: usize, id: Id, instance: Instance) {
    let before = world(|world| world.before(id));
    world(|world| world.truth.ends_begun.insert(id, Instant::now()));
    let outcome = timeout(DEADLINE, instance.committer().change(id, Change::End)).await.ok();
    world(|world| {
        if let Some(Ok(Some(_))) = outcome {
            world.leave(visitor, id, None);
        }
        world.judge_end_of_session(id, &before, instance.way.instance, outcome);
    });
}

async fn change_id(visitor: usize, id: Id, item: u64, instance: Instance, patience: Duration) {
    let before = world(|world| world.before(id));
    world(|world| world.truth.ends_begun.insert(id, Instant::now()));
    let add = |contents: &mut Contents| contents.change(|data| add_item(data, item));
    let outcome = timeout(patience.min(DEADLINE), instance.committer().change_id(&id, add)).await.ok();
    // A visitor who cannot know whether the session has ended under this id keeps it here.
    let outcome = outcome.map(|outcome| match outcome? {
        Some(new) if new.is_in_doubt => Err(Error::Unanswered),
        new => Ok(new.map(|NewId { id, .. }| id)),
    });
    world(|world| {
        if let Some(Ok(Some(new))) = &outcome {
            world.leave(visitor, id, Some(*new));
        }
        world.judge_change_of_id(id, item, &before, instance.way.instance, outcome);
    });
}

async fn read(id: Id, instance: Instance) {
    let before = world(|world| world.before(id));
    let value = instance.committer().read(&id).await;
    world(|world| world.judge_read(id, &before, instance.way.instance, value));
}

impl World {
    /// A visitor whose session was this one has another one, or none.
    fn leave(&mut self, visitor: usize, id: Id, new: Option<Id>) {
        let visitor = &mut self.visitors[visitor];
        if visitor.id == Some(id) {
            *visitor = Visitor { id: new, old: Some(id) };
        }
    }
}

/// An instance, with two committers in place of two threads. Tasks take turns, and only where they wait.
#[derive(Clone)]
pub struct Instance {
    pub way: Way,
    pub threads: [(Arc<CompareAndSet>, Committer<Way>); 2],
}

impl Instance {
    /// Checks the server, as each thread's connection does when it connects.
    fn check(&self) {
        for (compare_and_set, _) in self.threads.clone() {
            let way = self.way;
            tokio::spawn(async move { compare_and_set.check(&way, Instant::now() + DEADLINE).await });
        }
    }

    /// The committer of the thread that gets the next request: each in turn.
    pub fn committer(&self) -> &Committer<Way> {
        let requests = world(|world| {
            world.requests += 1;
            world.requests
        });
        &self.threads[requests % self.threads.len()].1
    }
}

/// The way from an instance to Redis.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Counted from the beginning of the history.
    pub instance: usize,
    distance: u32,
}

impl SendCommand for Way {
    async fn send(
        &self,
        send_by: Instant,
        command: &'static str,
        key: Option<usize>,
        arguments: Vec<Value>,
    ) -> Result<Value, Error> {
        let command = Command::new(command, &arguments);
        world(|world| {
            let first_key = key.map(|key| &command.words[1 + key]);
            must!(
                world,
                first_key == command.keys().first(),
                "{command:?} has its first key elsewhere than at {key:?}"
            );
            for (id, _, new) in command.swaps() {
                let is_first = is_ended(new) || world.in_flight.insert((self.instance, id));
                must!(world, is_first, "an instance has two writes of a session in flight");
            }
        });
        let sent = Instant::now();
        let reply = self.carry(send_by, &command).await;
        world(|world| {
            for (index, (id, expected, new)) in command.swaps().into_iter().enumerate() {
                world.in_flight.remove(&(self.instance, id));
                world.truth.note(self.instance, sent, id, [expected, new], reply_for(&reply, index));
            }
            if command.swaps().is_empty() {
                world.truth.note_other(self.instance, &reply);
            }
        });
        reply
    }
}

/// What a reply says of the session with this index.
fn reply_for(reply: &Result<Value, Error>, index: usize) -> Result<Value, Error> {
    match reply {
        Ok(Value::Array(replies)) => Ok(replies.get(index).cloned().unwrap_or(Value::Null)),
        reply => reply.clone(),
    }
}

impl Way {
    async fn carry(&self, send_by: Instant, command: &Command) -> Result<Value, Error> {
        let fate = world(|world| world.fates.pop_front());
        self.while_alive().await;
        if world(World::is_endless) {
            std::future::pending().await
        }
        yield_now().await;
        if Instant::now() >= send_by {
            return Err(Error::Unreached);
        }
        let distance = MS * self.distance;
        sleep(distance + MS * if let Some(Fate::FrozenBefore(time)) = fate { time } else { 0 }).await;
        let reply = match fate {
            Some(Fate::Lost(_) | Fate::Late(_)) => Err(Error::Unanswered),
            Some(Fate::ReplyLost(_)) => command.arrive(fate).and(Err(Error::Unanswered)),
            _ => command.arrive(fate),
        };
        if let Some(Fate::Late(time) | Fate::Twice(time)) = fate {
            let (command, is_executed) = (command.clone(), reply.is_ok());
            tokio::spawn(async move {
                sleep(time * MS).await;
                let is_late = matches!(fate, Some(Fate::Late(_)));
                if is_late || is_executed && world(|world| command.is_void_again(world)) {
                    let _ = command.arrive(None);
                }
            });
        }
        match fate {
            Some(Fate::Lost(true) | Fate::ReplyLost(true)) => sleep(ATTEMPT_TIMEOUT).await,
            Some(Fate::Answered(time)) => sleep(distance + MS * time).await,
            _ => sleep(distance).await,
        }
        self.while_alive().await;
        reply
    }

    /// If the instance has crashed, nothing happens any more.
    async fn while_alive(&self) {
        let lives = |world: &mut World| world.instances.iter().any(|living| living.way.instance == self.instance);
        if !world(lives) {
            std::future::pending().await
        }
    }
}

fn texts(words: &[Vec<u8>]) -> Vec<&[u8]> {
    words.iter().map(|word| &**word).collect()
}

/// A command on its way.
#[derive(Clone, Debug)]
struct Command {
    words: Vec<Vec<u8>>,
}

impl Command {
    fn new(command: &str, arguments: &[Value]) -> Self {
        let argument = |value: &Value| match value {
            Value::Integer(number) => number.to_string().into_bytes(),
            text => text.as_bytes().unwrap().to_vec(),
        };
        Self { words: [command.as_bytes().to_vec()].into_iter().chain(arguments.iter().map(argument)).collect() }
    }

    fn is_script(&self) -> bool {
        self.words[0].starts_with(b"EVAL")
    }

    fn keys(&self) -> &[Vec<u8>] {
        if self.is_script() {
            let number: usize = str::from_utf8(&self.words[2]).unwrap().parse().unwrap();
            &self.words[3..3 + number]
        } else {
            &self.words[1..2]
        }
    }

    /// The sessions that it is to swap, the value that is expected of each, and the new one.
    fn swaps(&self) -> Vec<(Id, &[u8], &[u8])> {
        let id = |key: &[u8]| str::from_utf8(key).ok()?.parse().ok();
        if !self.is_script() {
            let is_swap = self.words.iter().any(|word| word == b"IFEQ");
            let id = is_swap.then(|| id(&self.words[1])).flatten();
            return id.into_iter().map(|id| (id, &*self.words[6], &*self.words[2])).collect();
        }
        let mut values = self.words[3 + self.keys().len()..].iter().skip(3).map(Vec::as_slice);
        let mut text = values.next().unwrap_or_default();
        let mut swaps = Vec::new();
        for key in self.keys() {
            let lengths = text.split_off(..5).unwrap();
            let length = |bytes: &[u8]| bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            let [mut expected, mut new, _ttl] =
                [&lengths[..2], &lengths[2..4], &lengths[4..]].map(|bytes| text.split_off(..length(bytes)).unwrap());
            if expected.is_empty() {
                (expected, new) = (values.next().unwrap(), values.next().unwrap());
            }
            swaps.extend(id(key).map(|id| (id, expected, new)));
        }
        swaps
    }

    /// Whether a second arrival, after its execution, changes nothing. A new session's first value could begin the
    /// session again after its end; a swap could meet a value that somebody took away and brought back.
    fn is_void_again(&self, world: &World) -> bool {
        let is_broken = |(id, _, _)| world.truth.broken.contains(&id);
        !self.words.iter().any(|word| word == b"NX") && !self.swaps().into_iter().any(is_broken)
    }

    /// Arrives at Redis.
    fn arrive(&self, fate: Option<Fate>) -> Result<Value, Error> {
        // The connection gives up a server that is read-only.
        let refuse =
            |error: &str| if error.starts_with("READONLY") { Error::Unreached } else { Error::Refused(error.into()) };
        let (is_script, keys) = (self.is_script(), self.keys());
        let refusal = world(|world| {
            world.executed += 1;
            let Server { has_scripts, is_node, .. } = world.server;
            match fate {
                Some(Fate::Refused(error)) => Some(error),
                _ if is_script && !has_scripts => Some("NOPERM this user has no permissions to run scripts"),
                _ if is_node && keys.len() > 1 => Some("CROSSSLOT Keys in request don't hash to the same slot"),
                _ if self.words[0] == b"EVALSHA" && world.has_lost_scripts => Some("NOSCRIPT No matching script."),
                _ => None,
            }
        });
        if let Some(error) = refusal {
            return Err(refuse(error));
        }
        let before: Vec<Option<Entry>> =
            world(|world| keys.iter().map(|key| world.model.entries.get(key).cloned()).collect());
        let reply = if is_script {
            world(|world| {
                world.has_lost_scripts = false;
                world.failing = if let Some(Fate::Fails(left, error)) = fate { Some((left, error)) } else { None };
            });
            lua::run(&texts(keys), &texts(&self.words[3 + keys.len()..]))
        } else {
            match world(|world| world.model.execute(&texts(&self.words))) {
                Ok(Reply::Nil) => Ok(Value::Null),
                Ok(Reply::Ok) => Ok(Value::from_static_str("OK")),
                Ok(Reply::Int(number)) => Ok(Value::Integer(number)),
                Ok(Reply::Bulk(text)) => Ok(Value::Bytes(text.into())),
                Err(error) => Err(error.to_owned()),
            }
        };
        world(|world| {
            for (key, before) in keys.iter().zip(before) {
                world.judge_command(&self.words[0], key, before);
            }
        });
        reply.map_err(|error| refuse(&error))
    }
}

impl World {
    /// What a session holds, as far as anybody can tell.
    pub fn seen(&self, id: Id) -> Option<&Seen> {
        self.truth.sessions.get(&id).map(|session| &session.seen)
    }
}
