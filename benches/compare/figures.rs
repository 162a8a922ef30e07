//! The measurements.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use crate::{
    MAIN,
    open_loop::{self, Took},
    programs::{Program, Redis, Server},
    proxy::Proxy,
    wrk,
};

/// Concurrent views of one visitor.
pub const OVERLAPPING: usize = 1000;

/// Views of one page per visit.
pub const VISIT: usize = 5;

/// Requests a second, at random times.
pub const RATES: [f64; 3] = [20.0, 200.0, 800.0];

/// The latency that the proxy adds to a round trip to Redis.
const FAR: Duration = Duration::from_millis(5);

#[derive(Default)]
pub struct Figures {
    /// Seconds from exec to the first response, with Redis available.
    pub first_answers: Vec<f64>,
    /// How many of [`OVERLAPPING`] views were counted.
    pub overlapping: Option<u64>,
    /// Bytes in Redis per session after one view, and after one view of each page.
    pub bytes: Option<[f64; 2]>,
    /// Commands that Redis executes for a visit of [`VISIT`] views.
    pub visit: Option<f64>,
    /// For each number of connections the rounds of load.
    pub drives: BTreeMap<usize, Vec<Drive>>,
    /// Resident bytes, the most after any round with [`MAIN`] connections. Rounds with up to 900 lie between them.
    pub memory: f64,
    /// Resident bytes with 1,000 connections, each of which was answered, after all rounds.
    pub memory_connected: f64,
    /// With added latency to Redis.
    pub far: Option<Far>,
}

/// One round of load.
pub struct Drive {
    pub views_per_second: f64,
    /// CPU seconds of the program per view.
    pub cpu: f64,
    /// CPU seconds of Redis per view.
    pub redis_cpu: f64,
    /// Commands sent to Redis per view.
    pub sent: f64,
    /// Commands that Redis executes per view, including those inside scripts.
    pub executed: f64,
}

/// The latency of a view with a distant Redis, in round trips to that Redis.
pub struct Far {
    /// The median with one view in flight, and with [`MAIN`].
    pub at_rest: f64,
    pub in_flight: f64,
    /// For each of [`RATES`], the median and the 99th percentile.
    pub open_loop: Vec<Took>,
}

impl Figures {
    /// The median of the rounds with this many connections.
    pub fn median(&self, connections: usize, figure: impl Fn(&Drive) -> f64) -> f64 {
        median(self.drives[&connections].iter().map(figure))
    }
}

pub fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// A response: its body, and the cookie that it sets.
pub struct Answer {
    body: String,
    cookie: Option<String>,
}

/// Views a page on a persistent connection. Returns `None` if the response is not a page.
pub fn view(stream: &mut TcpStream, path: &str, cookie: Option<&str>) -> Option<Answer> {
    let cookie = cookie.map(|cookie| format!("cookie: {cookie}\r\n")).unwrap_or_default();
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
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{}", answer.body))
}

/// Measures the seconds from exec to the first response.
pub fn first_answer(program: &Program, redis: &Redis) -> f64 {
    let url = redis.url(*program as usize);
    let begin = Instant::now();
    let server = program.launch(&url);
    loop {
        let answer =
            TcpStream::connect(("127.0.0.1", server.port)).ok().and_then(|mut stream| view(&mut stream, "/", None));
        if answer.is_some() {
            return begin.elapsed().as_secs_f64();
        }
        thread::sleep(Duration::from_micros(100));
    }
}

/// Sends [`OVERLAPPING`] views of one visitor at once and returns how many were counted.
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
    // Without the first and the last view.
    number(&last) - 2
}

/// Measures the bytes of a session after one view, and after one view of each page. The replies that
/// are kept per instance do not belong to a session.
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

/// The cookies of new visitors after two views each. Programs without sessions get a dummy cookie.
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
pub fn drive(server: &Server, redis: &Redis, cookies: &[String], connections: usize, time: Duration) -> Drive {
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

/// Measures the memory with 1,000 connections.
pub fn memory_connected(server: &Server) -> f64 {
    let mut streams: Vec<_> = (0..1000).map(|_| connect(server)).collect();
    for stream in &mut streams {
        view(stream, "/", None).unwrap();
    }
    server.memory()
}

/// Counts the commands that Redis executes for a new visitor's visit. The program is already warm.
pub fn visit(server: &Server, redis: &Redis) -> f64 {
    let mut stream = connect(server);
    redis.commands();
    let first = view(&mut stream, "/", None).unwrap();
    for _ in 1..VISIT {
        view(&mut stream, "/", first.cookie.as_deref()).unwrap();
    }
    redis.commands().executed
}

/// Measures the latency of a view with a distant Redis.
pub fn far(program: &Program, redis: &Redis, time: Duration) -> Far {
    let proxy = Proxy::start(redis.port, FAR);
    let server = program.launch(&format!("redis://127.0.0.1:{}/{}", proxy.port, *program as usize));
    while TcpStream::connect(("127.0.0.1", server.port)).is_err() {
        thread::sleep(Duration::from_millis(1));
    }
    let cookies = sessions(&server, 64);
    let round_trip = round_trip(&proxy);
    let in_round_trips = |connections| {
        let load = wrk::run(server.port, &cookies, connections, time);
        load.p50.as_secs_f64() / round_trip
    };
    let open_loop = RATES.map(|rate| {
        let took = open_loop::run(server.port, &cookies, rate, time);
        Took { median: took.median / round_trip, p99: took.p99 / round_trip }
    });
    Far { at_rest: in_round_trips(1), in_flight: in_round_trips(MAIN), open_loop: open_loop.into() }
}

/// The median time of a PING through the proxy, in seconds.
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
