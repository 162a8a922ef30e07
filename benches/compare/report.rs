//! Writes the report: tables into docs/benchmark.md and the README, and the charts.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    ROUND, VISITORS,
    billing::{Billing, Executed, VISIT},
    capacity,
    charts::{self, Bar, Bars, Line, Whose, thousands},
    distance::{IN_FLIGHT, RATES},
    figures::{Figures, median},
    load::{CLOSED, Drive, Load, MAIN, PIPELINED},
    overlapping::OVERLAPPING,
    programs::Program,
    rounds,
};

type All = [(Program, Figures)];

/// One figure of all programs.
struct Row {
    name: String,
    /// `None` where the figure does not apply.
    values: Vec<Option<f64>>,
    show: fn(f64) -> String,
}

impl Row {
    fn new(all: &All, name: &str, show: fn(f64) -> String, value: impl Fn(Program, &Figures) -> Option<f64>) -> Self {
        let values = all.iter().map(|(program, figures)| value(*program, figures)).collect();
        Self { name: name.to_owned(), values, show }
    }

    /// The figure of the program at this index.
    fn cell(&self, program: usize) -> String {
        self.values[program].map_or("–".to_owned(), self.show)
    }
}

/// Writes the figures on these two servers, whose names and versions are given.
pub fn report(all: &All, redis: &str, valkey: &str) {
    let rows = rows(all);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let documents = [
        ("docs/benchmark.md", "figures", format!("{}\n{}", machine(), table(all, &rows))),
        ("docs/benchmark.md", "figures on Valkey", on_valkey(all, valkey)),
        ("docs/benchmark.md", "capacity", capacity::table(of(all, Program::Service), of(all, Program::Express))),
        ("README.md", "summary", summary(all)),
        ("README.md", "billing", billing(all, redis, valkey)),
    ];
    for (file, part, text) in documents {
        println!("\n{text}");
        write_between_marks(&root.join(file), part, &text);
    }
    fs::write(root.join("docs/benchmark.svg"), bar_chart(all)).unwrap();
    fs::write(root.join("docs/connections.svg"), line_chart(all)).unwrap();
}

/// Replaces this part of a file: what is between its two marks.
fn write_between_marks(path: &Path, part: &str, text: &str) {
    let [begin, end] = ["begin", "end"].map(|mark| format!("<!-- cargo bench writes the {part}: {mark} -->\n"));
    let file = fs::read_to_string(path).unwrap();
    let parts = file.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    let (before, after) = parts.unwrap_or_else(|| panic!("no marks of the {part} in {}", path.display()));
    fs::write(path, format!("{before}{begin}{text}{end}{after}")).unwrap();
}

/// The full table: each figure, and the first program's figure divided by it.
fn table(all: &All, rows: &[Row]) -> String {
    let programs: Vec<_> = (0..all.len()).collect();
    markdown(all, rows, &programs, |row, program| match (row.values[0], row.values[program]) {
        (Some(ours), Some(value)) if program > 0 => {
            format!("{} ({:.2})", row.cell(program), ours / value)
        }
        _ => row.cell(program),
    })
}

/// The README's table: a few figures of the programs that keep sessions in Redis, all built alike.
fn summary(all: &All) -> String {
    let rows = [counted(all), changes_kept(all), views_per_second(all, MAIN), memory(all), first_answer(all)];
    let is_shown = |program: &usize| all[*program].0.uses_redis() && all[*program].0 != Program::Image;
    let programs: Vec<_> = (0..all.len()).filter(is_shown).collect();
    markdown(all, &rows, &programs, Row::cell)
}

/// A table with one column for each of these programs.
fn markdown(all: &All, rows: &[Row], programs: &[usize], cell: impl Fn(&Row, usize) -> String) -> String {
    let names: Vec<_> = programs.iter().map(|&program| all[program].0.to_string()).collect();
    let rule = "---|".repeat(programs.len());
    let mut table = format!("| | {} |\n|---|{rule}\n", names.join(" | "));
    for row in rows {
        let cells: Vec<_> = programs.iter().map(|&program| cell(row, program)).collect();
        table += &format!("| {} | {} |\n", row.name, cells.join(" | "));
    }
    table
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connections(1) => f.write_str("1 connection"),
            Self::Connections(connections) => write!(f, "{connections} connections"),
            Self::Pipelined(connections, pipelined) => {
                write!(f, "{connections} connections that pipeline {pipelined} requests each")
            }
            Self::OwnData => write!(f, "{MAIN}, 4 kB of own data"),
        }
    }
}

fn micros(seconds: f64) -> String {
    format!("{:.1} us", seconds * 1e6)
}

fn millis(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

fn megabytes(bytes: f64) -> String {
    format!("{:.1} MB", bytes / 1e6)
}

fn hundredths(number: f64) -> String {
    format!("{number:.2}")
}

fn round_trips(round_trips: f64) -> String {
    format!("{round_trips:.2} round trips")
}

fn views_per_second(all: &All, load: Load) -> Row {
    Row::new(all, &format!("views/s, {load}"), thousands, |_, f| f.drives.median(load, |drive| drive.views_per_second))
}

fn cpu(all: &All, load: Load) -> Row {
    Row::new(all, &format!("CPU per view, {load}"), micros, |_, f| f.drives.median(load, |drive| drive.cpu))
}

/// A figure of Redis under load, for the programs that use it.
fn redis(all: &All, name: &str, load: Load, show: fn(f64) -> String, value: fn(&Drive) -> f64) -> Row {
    Row::new(all, &format!("{name}, {load}"), show, |program, figures| {
        program.uses_redis().then(|| figures.drives.median(load, value))?
    })
}

fn executed(all: &All, load: Load) -> Row {
    redis(all, "commands executed per view", load, hundredths, |drive| drive.executed)
}

fn first_answer(all: &All) -> Row {
    Row::new(all, "first answer after start", millis, |_, f| Some(median(f.first_answers.iter().copied())))
}

fn memory(all: &All) -> Row {
    Row::new(all, "memory after the load", megabytes, |_, f| f.drives.most(MAIN, |drive| drive.memory))
}

fn counted(all: &All) -> Row {
    let name = format!("counted of {OVERLAPPING} overlapping views");
    Row::new(all, &name, thousands, |_, f| f.counted.map(|counted| counted as f64))
}

fn changes_kept(all: &All) -> Row {
    let name = format!("kept of {OVERLAPPING} overlapping changes of a page's own value");
    Row::new(all, &name, thousands, |_, f| f.changes_kept.map(|kept| kept as f64))
}

/// All rows of the full table.
fn rows(all: &All) -> Vec<Row> {
    let row = |name: &str, show, value: &dyn Fn(&Figures) -> Option<f64>| {
        Row::new(all, name, show, |_, figures| value(figures))
    };
    let others = || CLOSED.into_iter().filter(|load| *load != MAIN);
    let mut rows = vec![views_per_second(all, MAIN), cpu(all, MAIN), executed(all, MAIN), first_answer(all)];
    rows.extend(others().map(|load| views_per_second(all, load)));
    rows.push(views_per_second(all, Load::OwnData));
    rows.push(views_per_second(all, PIPELINED));
    rows.push(row("cores used by the program then", hundredths, &|f| f.drives.median(PIPELINED, Drive::cores)));
    rows.push(cpu(all, Load::Connections(900)));
    rows.extend(others().map(|load| executed(all, load)));
    rows.extend([
        row(&format!("commands executed for a visit of {VISIT} views"), thousands, &|f| {
            Some(f.billing.as_ref()?.visit.mean())
        }),
        row("commands executed per view, in turns on two instances", hundredths, &|f| {
            Some(f.billing.as_ref()?.in_turns.mean())
        }),
        row("commands executed per view, a page that reads its own data", hundredths, &|f| {
            Some(f.billing.as_ref()?.own_data.as_ref()?.mean())
        }),
        redis(all, "commands sent per view", MAIN, |sent| format!("{sent:.3}"), |drive| drive.sent),
        redis(all, "Redis's CPU per view", MAIN, micros, |drive| drive.redis_cpu),
        redis(all, "bytes sent to Redis per view", MAIN, thousands, |drive| drive.received),
        redis(all, "bytes received from Redis per view", MAIN, thousands, |drive| drive.replied),
        redis(all, "bytes sent to Redis per view", Load::OwnData, thousands, |drive| drive.received),
        redis(all, "bytes received from Redis per view", Load::OwnData, thousands, |drive| drive.replied),
        memory(all),
        row("memory with 1000 connections", megabytes, &|f| Some(f.memory_connected)),
        counted(all),
        changes_kept(all),
        row("median response time when idle, Redis 5 ms away", round_trips, &|f| Some(f.latency.as_ref()?.idle)),
        row(&format!("the same, {IN_FLIGHT} views in flight"), round_trips, &|f| Some(f.latency.as_ref()?.in_flight)),
    ]);
    for (n, rate) in RATES.iter().enumerate() {
        let name = format!("the same, {rate} requests a second at random times");
        rows.push(row(&name, round_trips, &|f| Some(f.latency.as_ref()?.open_loop[n].median)));
        rows.push(row("the 99th percentile of these", round_trips, &|f| Some(f.latency.as_ref()?.open_loop[n].p99)));
    }
    rows.push(row("bytes in Redis per session, after one view", thousands, &|f| f.bytes.map(|[one, _]| one)));
    rows.push(row("the same, after one view of each page", thousands, &|f| f.bytes.map(|[_, three]| three)));
    rows
}

/// Commands executed and CPU on Valkey.
fn on_valkey(all: &All, valkey: &str) -> String {
    let row = |name: String, show, figure: fn(&Drive) -> f64, load| {
        Row::new(all, &name, show, |_, figures| figures.on_valkey.as_ref()?.drives.median(load, figure))
    };
    let executed =
        CLOSED.map(|load| row(format!("commands executed per view, {load}"), hundredths, |drive| drive.executed, load));
    let cpu = CLOSED.map(|load| row(format!("{valkey}'s CPU per view, {load}"), micros, |drive| drive.redis_cpu, load));
    let programs: Vec<_> = (0..all.len()).filter(|&program| all[program].1.on_valkey.is_some()).collect();
    let rows: Vec<_> = executed.into_iter().chain(cpu).collect();
    markdown(all, &rows, &programs, Row::cell)
}

/// The commands that serverless Redis bills.
fn billing(all: &All, redis: &str, valkey: &str) -> String {
    let (service, express) = (of(all, Program::Service), of(all, Program::Express));
    let columns = [&express.billing, &service.billing].map(|billing| billing.as_ref().unwrap());
    let columns = [columns[0], columns[1], &service.on_valkey.as_ref().unwrap().billing];
    let row = |name: &str, executed: fn(&Billing) -> &Executed| {
        let [express, on_redis, on_valkey] = columns.map(executed);
        format!("| {name} | {express} | {on_redis} | {on_valkey} |\n")
    };
    [
        format!("| commands executed for | the tutorial's app | this service on {redis} | on {valkey} |\n"),
        "|---|---|---|---|\n".to_owned(),
        row("a new visitor", |billing| &billing.new_visitor),
        row("a later view, on the instance that served the last one", |billing| &billing.later_view),
        row("a view on an instance that does not know the session", |billing| &billing.unknown),
        row("a view by a visitor whose views go in turn to two instances", |billing| &billing.in_turns),
        row(&format!("a visit of {VISIT} views"), |billing| &billing.visit),
        row("a view of a page that reads its own data", |billing| billing.own_data.as_ref().unwrap()),
        row("a visitor whose session is over", |billing| &billing.over),
    ]
    .concat()
}

/// The figures of this program.
fn of(all: &All, program: Program) -> &Figures {
    &all.iter().find(|(other, _)| *other == program).unwrap().1
}

/// The machine and the parameters of the benchmark.
fn machine() -> String {
    let said = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().next().unwrap_or_default().trim().to_owned()
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().unwrap();
    let redis = said("redis-server", "--version");
    let redis = redis.split(' ').nth(2).unwrap_or_default().to_owned();
    format!(
        "{cores} cores of {}, shared by Redis, wrk and the program; Linux {}, Redis {}, Node {}. Under\n\
         load: {VISITORS} sessions, the median of {} rounds of {ROUND:?}; of the memory, the maximum. In parentheses:\n\
         cloud-run-sessions' figure divided by that column's.\n",
        model.unwrap_or("an unknown processor"),
        said("uname", "-r"),
        redis.trim_start_matches("v="),
        said("node", "--version"),
        rounds(),
    )
}

/// The charts with bars: what the service promises, what it is measured by, and what it costs.
fn bar_chart(all: &All) -> String {
    const MORE: &str = "more is better";
    const LESS: &str = "less is better";
    let rows = [
        (counted(all), MORE),
        (changes_kept(all), MORE),
        (views_per_second(all, MAIN), MORE),
        (cpu(all, MAIN), LESS),
        (executed(all, MAIN), LESS),
        (first_answer(all), LESS),
    ];
    let groups = rows.map(|(row, hint)| {
        let bars = row.values.iter().zip(all).enumerate().filter_map(|(n, (value, (program, _)))| {
            let (name, whose) = drawn(*program);
            Some(Bar { name, whose, value: (*value)?, label: row.cell(n) })
        });
        Bars { bars: bars.collect(), title: row.name, hint }
    });
    charts::bars(&groups)
}

/// The chart of views/s over connections.
fn line_chart(all: &All) -> String {
    let places = CLOSED.map(|load| load.connections().to_string());
    let lines: Vec<_> = all
        .iter()
        .map(|(program, figures)| {
            let (name, whose) = drawn(*program);
            let values = CLOSED.map(|load| figures.drives.median(load, |drive| drive.views_per_second).unwrap());
            Line { name, whose, is_dashed: !program.uses_redis(), values: values.into() }
        })
        .collect();
    charts::lines(
        "views/s",
        "more is better; dashed: programs that do not use Redis",
        &places,
        "connections, each with one view in flight",
        &lines,
    )
}

/// A program's name and kind in a chart.
fn drawn(program: Program) -> (String, Whose) {
    let whose = match program {
        Program::Service => Whose::Service,
        Program::Image | Program::InMemory => Whose::Variant,
        _ => Whose::Peer,
    };
    let name = program.to_string();
    (name.trim_start_matches("cloud-run-sessions, ").to_owned(), whose)
}
