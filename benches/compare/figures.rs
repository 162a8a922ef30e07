//! What is measured, and how.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use crate::{
    programs::{Program, Redis, Server},
    proxy::Proxy,
    wrk,
};

/// Views of one visitor that overlap.
pub const OVERLAPPING: usize = 1000;

/// Views of one page in a visit.
pub const VISIT: usize = 5;

/// The delaying proxy's share of a round trip to Redis.
const FAR: Duration = Duration::from_millis(5);

#[derive(Default)]
pub struct Figures {
    /// Seconds from exec to the first answer, Redis there.
    pub first_answer: f64,
    /// Of [`OVERLAPPING`], how many were counted.
    pub overlapping: Option<u64>,
    /// Bytes in Redis of a session after one view, and after one of each page.
    pub bytes: Option<[f64; 2]>,
    /// Commands executed by Redis for a visit of [`VISIT`] views.
    pub visit: Option<f64>,
    /// Rounds of load.
    pub drives: Vec<Drive>,
    /// One view after the other.
    pub rest: Option<Drive>,
    /// Bytes, after all the load.
    pub memory: f64,
    pub far: Option<Far>,
}

/// One round of load.
pub struct Drive {
    pub views_per_second: f64,
    /// Seconds of CPU a view, of the program.
    pub cpu: f64,
    /// Seconds of CPU a view, of Redis.
    pub redis_cpu: f64,
    /// Commands sent to Redis a view.
    pub sent: f64,
    /// Commands executed by Redis a view, those inside scripts among them.
    pub executed: f64,
}

/// The median time to an answer with a round trip of some milliseconds to Redis, in round trips.
pub struct Far {
    pub at_rest: f64,
    pub in_flight: f64,
}

impl Figures {
    pub fn median(&self, figure: impl Fn(&Drive) -> f64) -> f64 {
        median(self.drives.iter().map(figure))
    }
}

pub fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// An answer: its body, and the cookie it sets.
struct Answer {
    body: String,
    cookie: Option<String>,
}

/// Views a page on a connection that stays.
fn view(stream: &mut TcpStream, path: &str, cookie: Option<&str>) -> Option<Answer> {
    let cookie = cookie
        .map(|cookie| format!("cookie: {cookie}\r\n"))
        .unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{cookie}\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut reader = BufReader::new(stream);
    let (mut length, mut cookie, mut head) = (0, None, String::new());
    reader.read_line(&mut head).ok()?;
    if !head.contains(" 200 ") {
        return None;
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "set-cookie" => cookie = value.split(';').next().map(str::to_owned),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).ok()?;
    Some(Answer { body, cookie })
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn number(answer: &Answer) -> u64 {
    let number = answer.body.split(' ').rev().nth(1);
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{}", answer.body))
}

/// Seconds from exec to the first answer.
pub fn first_answer(program: &Program, redis: &Redis) -> f64 {
    let url = redis.url(*program as usize);
    let begin = Instant::now();
    let server = program.launch(&url);
    loop {
        let answer = TcpStream::connect(("127.0.0.1", server.port))
            .ok()
            .and_then(|mut stream| view(&mut stream, "/", None));
        if answer.is_some() {
            return begin.elapsed().as_secs_f64();
        }
        thread::sleep(Duration::from_micros(100));
    }
}

/// How many views of one visitor are counted, all asked for at once.
pub fn overlapping(server: &Server) -> u64 {
    let mut stream = connect(server);
    let first = view(&mut stream, "/", None).unwrap();
    let cookie = first.cookie.unwrap();
    let streams: Vec<_> = (0..OVERLAPPING).map(|_| connect(server)).collect();
    let start = Barrier::new(OVERLAPPING);
    thread::scope(|scope| {
        for mut stream in streams {
            let (start, cookie) = (&start, &cookie);
            let thread = thread::Builder::new().stack_size(64 * 1024);
            let view = move || {
                start.wait();
                view(&mut stream, "/", Some(cookie)).unwrap();
            };
            thread.spawn_scoped(scope, view).unwrap();
        }
    });
    let last = view(&mut stream, "/", Some(&cookie)).unwrap();
    // The first view and this one were no part of it.
    number(&last) - 2
}

/// Bytes of a session after one view, and after one of each page. What is kept for an instance is no
/// part of it.
pub fn bytes(server: &Server, redis: &Redis) -> [f64; 2] {
    let used = || {
        let keys = redis.cli(server.database, &["KEYS", "*"]);
        let sessions = keys.lines().filter(|key| !key.starts_with("calls:"));
        let usage = |key| redis.cli(server.database, &["MEMORY", "USAGE", key, "SAMPLES", "0"]);
        sessions.map(|key| usage(key).parse::<f64>().unwrap()).sum()
    };
    redis.cli(server.database, &["FLUSHDB"]);
    let mut stream = connect(server);
    let first = view(&mut stream, "/", None).unwrap();
    let one = used();
    for path in ["/foo", "/bar"] {
        view(&mut stream, path, first.cookie.as_deref()).unwrap();
    }
    [one, used()]
}

/// The cookies of so many visitors, each after two views. Without sessions, none.
pub fn sessions(server: &Server, sessions: usize) -> Vec<String> {
    let mut stream = connect(server);
    let cookies = (0..sessions).map(|_| {
        let first = view(&mut stream, "/", None).unwrap();
        let cookie = first.cookie.unwrap_or_else(|| "id=none".to_owned());
        view(&mut stream, "/", Some(&cookie)).unwrap();
        cookie
    });
    cookies.collect()
}

/// One round of load.
pub fn drive(
    server: &Server,
    redis: &Redis,
    cookies: &[String],
    connections: usize,
    time: Duration,
) -> Drive {
    redis.commands();
    let (cpu, redis_cpu) = (server.cpu(), redis.cpu());
    let load = wrk::run(server.port, cookies, connections, time);
    let (cpu, redis_cpu) = (server.cpu() - cpu, redis.cpu() - redis_cpu);
    let commands = redis.commands();
    Drive {
        views_per_second: load.views_per_second,
        cpu: cpu / load.views,
        redis_cpu: redis_cpu / load.views,
        sent: commands.sent / load.views,
        executed: commands.executed / load.views,
    }
}

/// Commands that Redis executes for a new visitor's visit, by a program that has had others.
pub fn visit(server: &Server, redis: &Redis) -> f64 {
    let mut stream = connect(server);
    redis.commands();
    let first = view(&mut stream, "/", None).unwrap();
    for _ in 1..VISIT {
        view(&mut stream, "/", first.cookie.as_deref()).unwrap();
    }
    redis.commands().executed
}

/// The time to an answer with a slow way to Redis.
pub fn far(program: &Program, redis: &Redis, time: Duration) -> Far {
    let proxy = Proxy::start(redis.port, FAR);
    let server = program.launch(&format!(
        "redis://127.0.0.1:{}/{}",
        proxy.port, *program as usize
    ));
    while TcpStream::connect(("127.0.0.1", server.port)).is_err() {
        thread::sleep(Duration::from_millis(1));
    }
    let cookies = sessions(&server, 64);
    let round_trip = round_trip(&proxy);
    let in_round_trips = |connections| {
        let load = wrk::run(server.port, &cookies, connections, time);
        load.p50.as_secs_f64() / round_trip
    };
    Far {
        at_rest: in_round_trips(1),
        in_flight: in_round_trips(64),
    }
}

/// The median time to an answer of Redis itself, by this way, in seconds.
fn round_trip(proxy: &Proxy) -> f64 {
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port)).unwrap();
    stream.set_nodelay(true).unwrap();
    median((0..200).map(|_| {
        let begin = Instant::now();
        stream.write_all(b"PING\r\n").unwrap();
        stream.read_exact(&mut [0; 7]).unwrap();
        begin.elapsed().as_secs_f64()
    }))
}
