//! Prints the report and writes it into docs/benchmark.md, and a summary into the README; draws the chart.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use plotters::prelude::*;

use crate::{
    ROUND, VISITORS,
    billing::{Billing, Executed, VISIT},
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
    let billing = billing(all, redis, valkey);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let documents = [
        ("docs/benchmark.md", "figures", format!("{}\n{}", machine(), table(all, &rows))),
        ("docs/benchmark.md", "figures on Valkey", on_valkey(all, valkey)),
        ("docs/benchmark.md", "billing", billing.clone()),
        ("docs/benchmark.md", "capacity", capacity(all)),
        ("README.md", "summary", summary(all)),
        ("README.md", "billing", billing),
    ];
    for (file, part, text) in documents {
        println!("\n{text}");
        write_between_marks(&root.join(file), part, &text);
    }
    bars(all, &rows[..4], &root.join("docs/benchmark.svg")).unwrap();
    lines(all, &root.join("docs/connections.svg")).unwrap();
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

/// The README's table: a few figures of the programs that have sessions.
fn summary(all: &All) -> String {
    let rows = [counted(all), changes_kept(all), views_per_second(all, MAIN), memory(all), first_answer(all)];
    let programs: Vec<_> = (0..all.len()).filter(|&program| all[program].0.uses_redis()).collect();
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

fn whole(number: f64) -> String {
    format!("{number:.0}")
}

fn hundredths(number: f64) -> String {
    format!("{number:.2}")
}

fn round_trips(round_trips: f64) -> String {
    format!("{round_trips:.2} round trips")
}

fn views_per_second(all: &All, load: Load) -> Row {
    Row::new(all, &format!("views/s, {load}"), whole, |_, f| f.drives.median(load, |drive| drive.views_per_second))
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
    Row::new(all, &name, whole, |_, f| f.counted.map(|counted| counted as f64))
}

fn changes_kept(all: &All) -> Row {
    let name = format!("kept of {OVERLAPPING} overlapping changes of a page's own value");
    Row::new(all, &name, whole, |_, f| f.changes_kept.map(|kept| kept as f64))
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
        row(&format!("commands executed for a visit of {VISIT} views"), whole, &|f| {
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
        redis(all, "bytes sent to Redis per view", MAIN, whole, |drive| drive.received),
        redis(all, "bytes received from Redis per view", MAIN, whole, |drive| drive.replied),
        redis(all, "bytes sent to Redis per view", Load::OwnData, whole, |drive| drive.received),
        redis(all, "bytes received from Redis per view", Load::OwnData, whole, |drive| drive.replied),
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
    rows.push(row("bytes in Redis per session, after one view", whole, &|f| f.bytes.map(|[one, _]| one)));
    rows.push(row("the same, after one view of each page", whole, &|f| f.bytes.map(|[_, three]| three)));
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

/// Capacity and cost, computed from the measured figures.
fn capacity(all: &All) -> String {
    let (ours, express) = (of(all, Program::Service), of(all, Program::Express));
    /// The utilization of a core above which latency grows.
    const BUSY: f64 = 0.7;
    /// Dollars per executed command of a serverless Redis.
    const PRICE: f64 = 0.20 / 100_000.0;
    /// The limit of a serverless Redis in executed commands per second.
    const LIMIT: f64 = 10_000.0;
    const MILLION: f64 = 1e6;
    /// CPU, Redis's CPU, and commands executed per view.
    fn per_view(figures: &Figures, load: Load) -> (f64, f64, f64) {
        let median = |figure: fn(&Drive) -> f64| figures.drives.median(load, figure).unwrap();
        (median(|drive| drive.cpu), median(|drive| drive.redis_cpu), median(|drive| drive.executed))
    }
    let load = |figures: &Figures| per_view(figures, MAIN);
    let rest = |figures: &Figures| per_view(figures, Load::Connections(1));
    let both =
        |name: &str, show: &dyn Fn(&Figures) -> String| format!("| {name} | {} | {} |\n", show(ours), show(express));
    let money = |commands: f64| {
        let all = commands * MILLION;
        format!("{:.2} M executed, {:.2} dollars", all / MILLION, all * PRICE)
    };
    let mut text = String::from("| | cloud-run-sessions | Express |\n|---|---|---|\n");
    text += &both("views/s of an instance with one core: 0.7 / CPU per view", &|f| format!("{:.0}", BUSY / load(f).0));
    text += &both("views/s of one Redis, which uses one core: 0.7 / its CPU per view", &|f| {
        format!("{:.0}", BUSY / load(f).1)
    });
    text += &both("Redis's memory for a million sessions, each with views of three pages", &|f| {
        format!("{:.0} MB", f.bytes.unwrap()[1])
    });
    text += &both("commands for a million views when idle, and their price", &|f| money(rest(f).2));
    text += &both("the same under load", &|f| money(load(f).2));
    text +=
        &both("views/s when idle on a database limited to 10,000 commands/s", &|f| format!("{:.0}", LIMIT / rest(f).2));
    text += &both("the same under load", &|f| format!("{:.0}", LIMIT / load(f).2));
    text += &both("CPU of the instance for a million views when idle", &|f| format!("{:.0} s", rest(f).0 * MILLION));
    text += &both("the same under load", &|f| format!("{:.0} s", load(f).0 * MILLION));
    text += "\nInstances with one core, and the share of one Redis's core, that a load needs. In a Cluster, \
             views of different slots share no call, and nearly each costs Redis as much as when idle:\n\n\
             | views/s | instances | one Redis | or masters of a Cluster |\n|---|---|---|---|\n";
    for views in [1e3, 1e4, 1e5, 1e6] {
        let (cpu, redis, _) = load(ours);
        let masters = (views * rest(ours).1 / BUSY).ceil();
        text += &format!(
            "| {views:.0} | {:.0} | {:.0} %{} | {masters:.0} |\n",
            (views * cpu / BUSY).ceil(),
            views * redis * 100.0,
            if views * redis > BUSY { ", too much" } else { "" },
        );
    }
    text
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
        "{cores} cores of {}, shared by Redis, wrk and the program; Linux {}, Redis {}, Node {}. Under \
         load: {VISITORS} sessions, the median of {} rounds of \
         {ROUND:?}. In parentheses: our figure divided by this one.\n",
        model.unwrap_or("an unknown processor"),
        said("uname", "-r"),
        redis.trim_start_matches("v="),
        said("node", "--version"),
        rounds(),
    )
}

/// Draws one panel per row, with one bar per program.
fn bars(all: &All, rows: &[Row], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    const WIDTH: u32 = 860;
    const PANEL: u32 = 202;
    const LABELS: i32 = 180;
    const BAR: i32 = 22;
    const OURS: RGBColor = RGBColor(21, 101, 192);
    const OTHERS: RGBColor = RGBColor(120, 144, 156);
    fs::create_dir_all(path.parent().unwrap())?;
    let area = SVGBackend::new(path, (WIDTH, PANEL * rows.len() as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    for (panel, row) in area.split_evenly((rows.len(), 1)).iter().zip(rows) {
        let text = |size: u32| ("sans-serif", size).into_font().color(&RGBColor(38, 50, 56));
        panel.draw(&Text::new(row.name.clone(), (12, 10), text(18)))?;
        let values = row.values.iter().flatten();
        let longest = values.fold(f64::MIN_POSITIVE, |longest, value| longest.max(*value));
        for (n, (value, (program, _))) in row.values.iter().zip(all).enumerate() {
            let top = 38 + n as i32 * (BAR + 4);
            panel.draw(&Text::new(program.to_string(), (12, top + 4), text(14)))?;
            let shown = row.cell(n);
            let room = WIDTH as i32 - LABELS - 110;
            let length = (value.unwrap_or_default() / longest * f64::from(room)) as i32;
            let bar = [(LABELS, top), (LABELS + length.max(1), top + BAR)];
            panel.draw(&Rectangle::new(bar, if n == 0 { OURS } else { OTHERS }.filled()))?;
            panel.draw(&Text::new(shown, (LABELS + length + 8, top + 4), text(14)))?;
        }
    }
    area.present()?;
    Ok(())
}

/// Draws views/s over the number of connections, one line per program.
fn lines(all: &All, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (width, height) = (860, 460);
    let (left, right, top, bottom) = (70, 200, 40, 50);
    let area = SVGBackend::new(path, (width as u32, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let text = ("sans-serif", 14).into_font().color(&RGBColor(38, 50, 56));
    area.draw(&Text::new("views/s over connections", (12, 10), text.clone()))?;
    let speed =
        |program: usize, n: usize| all[program].1.drives.median(CLOSED[n], |drive| drive.views_per_second).unwrap();
    let programs = 0..all.len();
    let fastest = programs.clone().flat_map(|program| (0..CLOSED.len()).map(move |n| speed(program, n)));
    let fastest = fastest.fold(0.0, f64::max);
    let x = |n: usize| left + (width - left - right) * n as i32 / (CLOSED.len() as i32 - 1);
    let y = |speed: f64| height - bottom - (f64::from(height - top - bottom) * speed / fastest) as i32;
    for (n, connections) in CLOSED.iter().enumerate() {
        area.draw(&Text::new(connections.to_string(), (x(n) - 8, height - bottom + 14), text.clone()))?;
    }
    for part in 0..=4 {
        let speed = fastest * f64::from(part) / 4.0;
        area.draw(&Text::new(whole(speed), (12, y(speed) - 6), text.clone()))?;
        let line = vec![(left, y(speed)), (width - right, y(speed))];
        area.draw(&PathElement::new(line, RGBColor(207, 216, 220)))?;
    }
    // Names beside the ends of their lines, from the top, none over another.
    let last = CLOSED.len() - 1;
    let mut order: Vec<_> = programs.collect();
    order.sort_by(|&a, &b| speed(b, last).total_cmp(&speed(a, last)));
    let mut free = 0;
    for program in order {
        let color = Palette99::pick(program).stroke_width(if program == 0 { 4 } else { 2 });
        let line: Vec<_> = (0..CLOSED.len()).map(|n| (x(n), y(speed(program, n)))).collect();
        area.draw(&PathElement::new(line, color))?;
        let name = (width - right + 12, (y(speed(program, last)) - 6).max(free));
        free = name.1 + 18;
        let style = ("sans-serif", 14).into_font().color(&Palette99::pick(program));
        area.draw(&Text::new(all[program].0.to_string(), name, style))?;
    }
    area.present()?;
    Ok(())
}
