//! The world: instances, visitors and one Redis, and what happens to them.

use super::*;

const MS: Duration = Duration::from_millis(1);
/// How long sessions live.
pub const TTL: Duration = Duration::from_secs(100);

#[derive(Default)]
pub struct World {
    pub is_clustered: bool,
    pub instances: Vec<Instance>,
    /// The visitors' sessions, and the records of all sessions.
    visitors: [Option<Id>; VISITORS],
    records: HashMap<Id, Vec<u8>>,
    /// What Redis holds, what its replica does, and what was true when that was copied.
    pub model: Model,
    replica: Option<(Model, Truth)>,
    has_lost_scripts: bool,
    /// Redis's clock: since this moment and this time it has run faster by so many parts per million.
    since: Option<Instant>,
    time: u64,
    drift: i64,
    /// What happens to the next attempts; what happens to the script that runs, and its keys.
    fates: VecDeque<Fate>,
    fate: Option<Fate>,
    keys: Vec<Vec<u8>>,
    pub truth: Truth,
    /// Whether Redis has lost writes. Then they may be counted again, and sessions may be over, or live again.
    pub has_lost_writes: bool,
    /// For each page: the counts that Redis gave and that are not answered yet, and the views that ended without one.
    pub open: HashMap<Page, (Vec<u64>, usize)>,
    /// The first thing that must hold and did not.
    pub violation: Option<String>,
}

thread_local! {
    /// The world of the history that this thread plays.
    pub static WORLD: std::cell::RefCell<World> = Default::default();
}

/// Acts in the world as it is now. A script must not be run in here: it does so itself.
pub fn world<T>(act: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(|world| {
        let passed = world.since.get_or_insert_with(Instant::now).elapsed().as_millis() as i64;
        world.model.pass_until(world.time + (passed + passed * world.drift / 1_000_000) as u64);
        act(world)
    })
}

/// Plays a history. Gives the world as it is afterwards.
pub fn play(history: &History) -> World {
    WORLD.set(World { is_clustered: history.is_clustered, ..World::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        world(|world| world.instances = [0, 1].map(|_| start(world.is_clustered)).into());
        for event in &history.events {
            match *event {
                Event::Wait(time) => sleep(time * MS).await,
                event => world(|world| world.happens(event)),
            }
            tokio::task::yield_now().await; // Between events at one moment, tasks go on.
        }
        // Views end, what is late arrives, and lanes end.
        sleep(Duration::from_secs(60)).await;
        world(World::judge_end);
    });
    WORLD.take()
}

impl World {
    /// Lets an event happen that takes no time, or begins one that does.
    fn happens(&mut self, event: Event) {
        match event {
            Event::Wait(_) => unreachable!("the history waits"),
            Event::View(visitor, path, instance, patience) => {
                tokio::spawn(view(visitor, path, self.instances[instance].clone(), patience * MS));
            }
            Event::Next(fate) => self.fates.push_back(fate),
            Event::Save(visitor, instance) => {
                let Some(id) = self.visitors[visitor] else { return };
                tokio::spawn(save(id, self.instances[instance].clone()));
            }
            Event::Delete(visitor) | Event::NewId(visitor) => {
                let Some(id) = self.visitors[visitor].take() else { return };
                let [record, views] = keys(id);
                let _ = self.model.execute(&[b"DEL", &record, &views]);
                self.truth.lives.remove(&id);
                if let Event::NewId(_) = event {
                    self.begin(visitor, None, &self.instances[0].clone());
                }
            }
            Event::Break(visitor, time) => {
                let Some(id) = self.visitors[visitor] else { return };
                self.overwrite(id, b"a record that nobody can read");
                tokio::spawn(async move {
                    sleep(time * MS).await;
                    world(|world| world.overwrite(id, &world.records[&id].clone()));
                });
            }
            Event::LoseScripts => self.has_lost_scripts = true,
            Event::RestartEmpty => {
                (self.model, self.truth, self.has_lost_writes) = (Model::default(), Truth::default(), true);
                self.has_lost_scripts = true;
            }
            Event::Replicate => self.replica = Some((self.model.clone(), self.truth.clone())),
            Event::FailOver => {
                let Some((model, truth)) = self.replica.take() else { return };
                (self.model, self.truth, self.has_lost_writes) = (model, truth, true);
            }
            Event::Crash(instance) => self.instances[instance] = start(self.is_clustered),
            Event::Drift(drift) => (self.since, self.time, self.drift) = (Some(Instant::now()), self.model.now, drift),
        }
    }

    /// Creates a session, as the session layer does after a visitor's first view.
    fn begin(&mut self, visitor: usize, first: Option<&'static str>, instance: &Instance) {
        let id = Id(1 + self.records.len() as i128);
        let data = first.map(|path| (FirstView::KEY.to_owned(), path.into())).into_iter().collect();
        let record = rmp_serde::to_vec(&Record { id, data, expiry_date: time::OffsetDateTime::UNIX_EPOCH }).unwrap();
        let life = Lifetime::new(TTL).record_millis().to_string();
        let _ = self.model.execute(&[b"SET", &keys(id)[0], &record, b"PX", life.as_bytes()]);
        instance.renewed.remember([id].into_iter(), Instant::now());
        self.visitors[visitor] = Some(id);
        self.records.insert(id, record);
        self.truth.lives.insert(id, self.model.now + TTL.as_millis() as u64);
        self.truth.counts.extend(first.map(|path| ((id, path), 1)));
    }

    /// Overwrites the record of a session that lives.
    fn overwrite(&mut self, id: Id, record: &[u8]) {
        let _ = self.model.execute(&[b"SET", &keys(id)[0], record, b"XX", b"KEEPTTL"]);
    }

    /// Executes a command of a script, unless it is the one that fails.
    pub fn execute(&mut self, command: &[&[u8]]) -> model::Result {
        let keys = if command[0] == b"DEL" { &command[1..] } else { &command[1..2] };
        let are_given = keys.iter().all(|key| self.keys.iter().any(|given| given == key));
        must!(self, are_given, "a script uses keys that it was not given");
        // Commands that undo, or that follow the kept reply, never fail: Redis has already let this script write.
        let may_fail = !matches!(command[0], b"DEL" | b"HDEL" | b"PEXPIRE") && command.last() != Some(&&b"-1"[..]);
        match self.fate {
            Some(Fate::Slow(tick)) => (self.model.now, self.time) = (self.model.now + tick, self.time + tick),
            Some(Fate::Fails(left, error)) if may_fail => {
                self.fate = (left > 0 && command[0] != b"SET").then(|| Fate::Fails(left - 1, error));
                if left == 0 {
                    return Err(error);
                }
            }
            _ => {}
        }
        self.model.execute(command)
    }
}

/// A visitor views a page, as the web layer does.
async fn view(visitor: usize, path: &'static str, instance: Instance, patience: Duration) {
    let Some(id) = world(|world| world.visitors[visitor]) else {
        return world(|world| world.begin(visitor, Some(path), &instance));
    };
    let counted = timeout(patience.min(DEADLINE), instance.committer.count_view(id, path)).await;
    world(|world| {
        if let Ok(Ok(Some(count))) = counted {
            return world.judge_answer(id, path, count);
        }
        // It may have been counted, even if its session is over: before the session was deleted.
        world.open.entry((id, path)).or_default().1 += 1;
        // Another view of this visitor may have begun a session meanwhile.
        if matches!(counted, Ok(Ok(None))) && world.visitors[visitor].is_none_or(|current| current == id) {
            world.begin(visitor, Some(path), &instance);
        }
    });
}

/// Saves a session, as store/redis.rs does, which is not simulated.
async fn save(id: Id, instance: Instance) {
    let begin = Instant::now();
    if !instance.renewed.are_due([id].iter(), begin)[0] {
        return;
    }
    let [life, margin] = [Lifetime::new(TTL).record_millis(), MARGIN.as_millis() as i64];
    let (lives, record) = world(|world| (world.model.left(&keys(id)[0]), world.records[&id].clone()));
    let arguments = vec![record, life.to_string().into_bytes(), margin.to_string().into_bytes()];
    let (_, saved) = Call { script: "save", keys: keys(id).to_vec(), arguments, in_full: true }.run(None);
    world(|world| {
        let lives = lives > Some(margin as u64);
        must!(world, saved.as_deref() == Ok(if lives { "1" } else { "0" }), "a save is answered {saved:?}");
        world.judge_keys(&keys(id));
        if lives {
            world.is_used(id);
            instance.renewed.remember([id].into_iter(), begin);
        }
    });
}

/// The keys of a session's record and of its views.
pub fn keys(id: Id) -> [Vec<u8>; 2] {
    [id.to_string().into_bytes(), format!("v:{{{id}}}").into_bytes()]
}

#[derive(Clone)]
pub struct Instance {
    renewed: Arc<Renewed>,
    pub committer: Committer<Way>,
}

fn start(is_clustered: bool) -> Instance {
    let renewed = Arc::new(Renewed::new(Lifetime::new(TTL)));
    let way = Way { renewed: renewed.clone(), is_clustered };
    Instance { committer: Committer::new(way, Lifetime::new(TTL), renewed.clone()), renewed }
}

/// The way to Redis of the instance that has this memory.
#[derive(Clone)]
pub struct Way {
    renewed: Arc<Renewed>,
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
        let keys = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
        let arguments = arguments.iter().map(|value| value.as_string().unwrap().into_bytes()).collect();
        let call = Call { script: "count_views", keys, arguments, in_full };
        let fate = world(|world| world.fates.pop_front());
        // Redis is next door, unless something happens to the attempt.
        let distance = u32::from(fate.is_some());
        tokio::task::yield_now().await;
        if Instant::now() >= send_by {
            return Err(Error::Unreached);
        }
        sleep(MS * if let Some(Fate::FrozenBefore(time)) = fate { 1 + time } else { distance }).await;
        let reply = match fate {
            Some(Fate::Lost | Fate::Late(_)) => Err(Error::Unanswered),
            Some(Fate::ReplyLost) => call.arrive(fate).and(Err(Error::Unanswered)),
            _ => call.arrive(fate),
        };
        if let Some(Fate::Late(time) | Fate::Twice(time)) = fate {
            tokio::spawn(async move {
                sleep(time * MS).await;
                let _ = call.arrive(Some(Fate::Late(time)));
            });
        }
        sleep(MS * if let Some(Fate::Answered(time)) = fate { 1 + time } else { distance }).await;
        let lives = world(|world| world.instances.iter().any(|living| Arc::ptr_eq(&living.renewed, &self.renewed)));
        if lives { reply } else { std::future::pending().await } // Else it has crashed.
    }
}

/// A call of a script, on its way.
pub struct Call {
    script: &'static str,
    pub keys: Vec<Vec<u8>>,
    pub arguments: Vec<Vec<u8>>,
    in_full: bool,
}

impl Call {
    /// Arrives at Redis and counts views.
    fn arrive(&self, fate: Option<Fate>) -> Result<String, Error> {
        let reply = match fate {
            Some(Fate::Refused(error)) => Err(error.to_owned()),
            _ if !self.in_full && world(|world| world.has_lost_scripts) => Err("NOSCRIPT No script".to_owned()),
            _ => {
                world(|world| world.has_lost_scripts = false);
                let (before, reply) = self.run(fate);
                world(|world| world.judge_call(self, &before, &reply, matches!(fate, Some(Fate::Late(_)))));
                reply
            }
        };
        // The connection gives up a server that is read-only.
        reply.map_err(|error| if error.starts_with("READONLY") { Error::Unreached } else { Error::Refused(error) })
    }

    /// Redis runs the script. Gives what its keys held before, and the reply.
    fn run(&self, fate: Option<Fate>) -> (Entries, Result<String, String>) {
        let before = world(|world| {
            (world.fate, world.keys) = (fate, self.keys.clone());
            let entry = |key: &Vec<u8>| Some((key.clone(), world.model.entries.get(key)?.clone()));
            self.keys.iter().filter_map(entry).collect()
        });
        (before, lua::run(self.script, &self.keys, &self.arguments))
    }
}
