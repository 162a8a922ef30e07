//! Capacity and cost, computed from the measured figures.

use crate::{
    figures::Figures,
    load::{Drive, Load, MAIN},
};

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

/// The service beside Express.
pub fn table(ours: &Figures, express: &Figures) -> String {
    let load = |figures: &Figures| per_view(figures, MAIN);
    let idle = |figures: &Figures| per_view(figures, Load::Connections(1));
    let both =
        |name: &str, show: &dyn Fn(&Figures) -> String| format!("| {name} | {} | {} |\n", show(ours), show(express));
    let money = |commands: f64| format!("{commands:.2} M executed, {:.2} dollars", commands * MILLION * PRICE);
    let mut text = String::from("| | cloud-run-sessions | Express |\n|---|---|---|\n");
    text += &both("views/s of an instance with one core: 0.7 / CPU per view", &|f| format!("{:.0}", BUSY / load(f).0));
    text += &both("views/s of one Redis, which uses one core: 0.7 / its CPU per view", &|f| {
        format!("{:.0}", BUSY / load(f).1)
    });
    text += &both("Redis's memory for a million sessions, each with views of three pages", &|f| {
        format!("{:.0} MB", f.bytes.unwrap()[1])
    });
    text += &both("commands for a million views when idle, and their price", &|f| money(idle(f).2));
    text += &both("the same under load", &|f| money(load(f).2));
    text +=
        &both("views/s when idle on a database limited to 10,000 commands/s", &|f| format!("{:.0}", LIMIT / idle(f).2));
    text += &both("the same under load", &|f| format!("{:.0}", LIMIT / load(f).2));
    text += &both("CPU of the instance for a million views when idle", &|f| format!("{:.0} s", idle(f).0 * MILLION));
    text += &both("the same under load", &|f| format!("{:.0} s", load(f).0 * MILLION));
    text += "\nHow many instances with one core a load needs, and what share of one Redis's core. In a Cluster, each\n\
             session is a command of its own, and costs Redis as much as a view when idle:\n\n\
             | views/s | instances | one Redis | or masters of a Cluster |\n|---|---|---|---|\n";
    for views in [1e3, 1e4, 1e5, 1e6] {
        let (cpu, redis, _) = load(ours);
        let masters = (views * idle(ours).1 / BUSY).ceil();
        text += &format!(
            "| {views:.0} | {:.0} | {:.0} %{} | {masters:.0} |\n",
            (views * cpu / BUSY).ceil(),
            views * redis * 100.0,
            if views * redis > BUSY { ", too much" } else { "" },
        );
    }
    text
}
