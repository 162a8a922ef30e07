//! The table and the chart, printed, and written into the README and beside it.

use std::{fs, path::PathBuf, process::Command};

use plotters::prelude::*;

use crate::{
    CONNECTIONS, ROUND, ROUNDS, SESSIONS,
    figures::{Figures, OVERLAPPING, VISIT},
    programs::Program,
};

/// What stands between these lines in the README is written anew.
const BEGIN: &str = "<!-- cargo bench writes this: begin -->\n";
const END: &str = "<!-- cargo bench writes this: end -->\n";

type All = [(Program, Figures)];

/// A figure of all programs.
struct Row {
    name: String,
    /// None where the program has none.
    values: Vec<Option<f64>>,
    show: fn(f64) -> String,
}

pub fn report(all: &All) {
    let rows = rows(all);
    let capacity = capacity(&all[0].1, &express(all).1);
    let report = format!("{}\n{}\n{capacity}", machine(), table(all, &rows));
    println!("\n{report}");
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let (before, rest) = readme
        .split_once(BEGIN)
        .expect("the begin mark in the README");
    let (_, after) = rest.split_once(END).expect("the end mark in the README");
    let readme = format!("{before}{BEGIN}\n{report}{END}{after}");
    fs::write(root.join("README.md"), readme).unwrap();
    chart(all, &rows[..4], &root.join("docs/benchmark.svg")).unwrap();
}

fn rows(all: &All) -> Vec<Row> {
    let row = |name: &str, show: fn(f64) -> String, value: &dyn Fn(&Figures) -> Option<f64>| Row {
        name: name.to_owned(),
        values: all.iter().map(|(_, figures)| value(figures)).collect(),
        show,
    };
    let micros = |seconds: f64| format!("{:.1} us", seconds * 1e6);
    let millis = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
    let megabytes = |bytes: f64| format!("{:.1} MB", bytes / 1e6);
    let bytes = |bytes: f64| format!("{bytes:.0}");
    let commands = |commands: f64| format!("{commands:.2}");
    let trips = |trips: f64| format!("{trips:.2} round trips");
    vec![
        row("views/s", |views| format!("{views:.0}"), &|f| {
            Some(f.median(|drive| drive.views_per_second))
        }),
        row("CPU a view", micros, &|f| Some(f.median(|drive| drive.cpu))),
        row(
            &format!("commands executed a view, {CONNECTIONS} connections"),
            commands,
            &|f| {
                f.overlapping?;
                Some(f.median(|drive| drive.executed))
            },
        ),
        row("first answer after exec", millis, &|f| Some(f.first_answer)),
        row("commands executed a view, at rest", commands, &|f| {
            f.overlapping?;
            Some(f.rest.as_ref()?.executed)
        }),
        row(
            &format!("commands executed for a visit of {VISIT} views"),
            bytes,
            &|f| f.visit,
        ),
        row(
            &format!("commands sent a view, {CONNECTIONS} connections"),
            |sent| format!("{sent:.3}"),
            &|f| {
                f.overlapping?;
                Some(f.median(|drive| drive.sent))
            },
        ),
        row("Redis's CPU a view", micros, &|f| {
            f.overlapping?;
            Some(f.median(|drive| drive.redis_cpu))
        }),
        row("memory after the load", megabytes, &|f| Some(f.memory)),
        row(
            &format!("counted of {OVERLAPPING} overlapping views of one visitor"),
            bytes,
            &|f| f.overlapping.map(|counted| counted as f64),
        ),
        row("median answer, Redis 5 ms away, at rest", trips, &|f| {
            f.far.as_ref().map(|far| far.at_rest)
        }),
        row(&format!("the same, {CONNECTIONS} in flight"), trips, &|f| {
            f.far.as_ref().map(|far| far.in_flight)
        }),
        row("bytes in Redis, after one view", bytes, &|f| {
            f.bytes.map(|[one, _]| one)
        }),
        row("after one of each page", bytes, &|f| {
            f.bytes.map(|[_, three]| three)
        }),
    ]
}

/// The first program's figures beside all others'.
fn table(all: &All, rows: &[Row]) -> String {
    let mut lines = vec![String::from("|"), String::from("|---|")];
    lines[0] += " |";
    for (program, _) in all {
        lines[0] += &format!(" {program} |");
        lines[1] += "---|";
    }
    for row in rows {
        let ours = row.values[0].unwrap_or_default();
        let cells = row.values.iter().enumerate().map(|(n, value)| match value {
            None => "–".to_owned(),
            Some(value) if n == 0 => (row.show)(*value),
            Some(value) => format!("{} ({:.2})", (row.show)(*value), ours / value),
        });
        let cells: Vec<_> = cells.collect();
        lines.push(format!("| {} | {} |", row.name, cells.join(" | ")));
    }
    lines.join("\n") + "\n"
}

fn express(all: &All) -> &(Program, Figures) {
    all.iter()
        .find(|(program, _)| *program == Program::Express)
        .unwrap()
}

/// What the figures come to: nothing here is measured, all is computed from the table above.
fn capacity(ours: &Figures, express: &Figures) -> String {
    /// Of a core, before the time to an answer grows.
    const BUSY: f64 = 0.7;
    /// Dollars a command that is executed, serverless.
    const PRICE: f64 = 0.20 / 100_000.0;
    /// Commands executed a second, at which serverless databases stop.
    const LIMIT: f64 = 10_000.0;
    const MILLION: f64 = 1e6;
    let load = |figures: &Figures| {
        let cpu = figures.median(|drive| drive.cpu);
        let redis = figures.median(|drive| drive.redis_cpu);
        (cpu, redis, figures.median(|drive| drive.executed))
    };
    let rest = |figures: &Figures| {
        let rest = figures.rest.as_ref().unwrap();
        (rest.cpu, rest.redis_cpu, rest.executed)
    };
    let both = |name: &str, show: &dyn Fn(&Figures) -> String| {
        format!("| {name} | {} | {} |\n", show(ours), show(express))
    };
    let money = |commands: f64| {
        let all = commands * MILLION;
        format!(
            "{:.2} M executed, {:.2} dollars",
            all / MILLION,
            all * PRICE
        )
    };
    let mut text = String::from(
        "\n### Capacity and cost\n\nComputed from the figures above, with cores 70 % busy and 0.20 \
         dollars for 100,000 commands executed; at rest is one view after the other.\n\n\
         | | cloud-run-sessions | Express |\n|---|---|---|\n",
    );
    text += &both(
        "views/s of an instance with one core: 0.7 / CPU a view",
        &|f| format!("{:.0}", BUSY / load(f).0),
    );
    text += &both(
        "views/s of a Redis, which uses one core: 0.7 / its CPU a view",
        &|f| format!("{:.0}", BUSY / load(f).1),
    );
    text += &both(
        "Redis's memory for a million sessions that have seen three pages",
        &|f| format!("{:.0} MB", f.bytes.unwrap()[1]),
    );
    text += &both("a million views at rest, in Redis", &|f| money(rest(f).2));
    text += &both("the same under load", &|f| money(load(f).2));
    text += &both(
        "views/s at rest of a database that stops at 10,000 commands/s",
        &|f| format!("{:.0}", LIMIT / rest(f).2),
    );
    text += &both("the same under load", &|f| {
        format!("{:.0}", LIMIT / load(f).2)
    });
    text += &both("a million views at rest, in CPU of the instance", &|f| {
        format!("{:.0} s", rest(f).0 * MILLION)
    });
    text += &both("the same under load", &|f| {
        format!("{:.0} s", load(f).0 * MILLION)
    });
    text += "\nAs the crowd grows, instances of one core and Redis's core, in per cent; in a Cluster each \
             view is a command of its own, and costs Redis what it does at rest:\n\n\
             | views/s | instances | one Redis | masters of a Cluster |\n|---|---|---|---|\n";
    for views in [1e3, 1e4, 1e5, 1e6] {
        let (cpu, redis, _) = load(ours);
        let masters = (views * rest(ours).1 / BUSY).ceil();
        text += &format!(
            "| {views:.0} | {:.0} | {:.0} %{} | {masters:.0} |\n",
            (views * cpu / BUSY).ceil(),
            views * redis * 100.0,
            if views * redis > BUSY {
                ", too much"
            } else {
                ""
            },
        );
    }
    text
}

/// What all this was measured on.
fn machine() -> String {
    let said = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().next().unwrap_or_default().trim().to_owned()
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().unwrap();
    let redis = said("redis-server", "--version");
    let redis = redis.split(' ').nth(2).unwrap_or_default().to_owned();
    format!(
        "{cores} cores of {}, Linux {}, Redis {}, Node {}. Redis, wrk and the program share them. The \
         median of {ROUNDS} rounds of {ROUND:?}, {CONNECTIONS} connections, {SESSIONS} sessions; in \
         brackets, the first column beside this one.\n",
        model.unwrap_or("an unknown processor"),
        said("uname", "-r"),
        redis.trim_start_matches("v="),
        said("node", "--version"),
    )
}

/// A bar for each program, in a panel for each row.
fn chart(all: &All, rows: &[Row], path: &PathBuf) -> Result<(), Box<dyn std::error::Error>> {
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
        let text = |size: u32| {
            ("sans-serif", size)
                .into_font()
                .color(&RGBColor(38, 50, 56))
        };
        panel.draw(&Text::new(row.name.clone(), (12, 10), text(18)))?;
        let values = row.values.iter().flatten();
        let longest = values.fold(f64::MIN_POSITIVE, |longest, value| longest.max(*value));
        for (n, (value, (program, _))) in row.values.iter().zip(all).enumerate() {
            let top = 38 + n as i32 * (BAR + 4);
            panel.draw(&Text::new(program.to_string(), (12, top + 4), text(14)))?;
            let shown = value.map_or("–".to_owned(), row.show);
            let room = WIDTH as i32 - LABELS - 110;
            let length = (value.unwrap_or_default() / longest * f64::from(room)) as i32;
            let bar = [(LABELS, top), (LABELS + length.max(1), top + BAR)];
            panel.draw(&Rectangle::new(
                bar,
                if n == 0 { OURS } else { OTHERS }.filled(),
            ))?;
            panel.draw(&Text::new(shown, (LABELS + length + 8, top + 4), text(14)))?;
        }
    }
    area.present()?;
    Ok(())
}
