//! Draws the charts, as SVG that is readable in light and dark mode.

use std::fmt::Write;

/// Their colours. GitHub shows an SVG as an image, whose style knows the reader's scheme.
const STYLE: &str = "\
<style>
svg { font: 12px system-ui, sans-serif; fill: #1f2328; --service: #0969da; --variant: #80b4ec; --peer: #9aa4ae; \
--grid: #d1d9e0; --tick: #59636e; }
@media (prefers-color-scheme: dark) {
svg { fill: #f0f6fc; --service: #4493f8; --variant: #3a72b8; --peer: #7d8590; --grid: #3d444d; --tick: #9198a1; }
}
.service { --own: var(--service); }
.variant { --own: var(--variant); }
.peer { --own: var(--peer); }
rect { fill: var(--own); }
polyline, path { fill: none; stroke: var(--own); }
polyline { stroke-width: 2; stroke-linejoin: round; }
polyline.service { stroke-width: 4; }
.dashed { stroke-dasharray: 6 4; }
.grid { stroke: var(--grid); }
.tick { fill: var(--tick); }
.title { font-weight: 600; font-size: 13px; }
text.service { font-weight: 600; fill: var(--service); }
</style>
";

/// Whose figures they are, which gives them their colour.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The service's, in the same colour in all charts.
    Service,
    /// Another build or store of the service: a tint of its colour.
    Variant,
    /// Another program's: grey.
    Peer,
}

impl Whose {
    fn class(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Variant => "variant",
            Self::Peer => "peer",
        }
    }

    /// The attribute of its names and figures.
    fn text_class(self) -> &'static str {
        if self == Self::Service { " class=\"service\"" } else { "" }
    }
}

/// A group of bars.
pub struct Bars {
    pub title: String,
    /// What is desirable.
    pub hint: &'static str,
    pub bars: Vec<Bar>,
}

/// One program's figure.
pub struct Bar {
    pub name: String,
    pub whose: Whose,
    pub value: f64,
    /// The figure with its unit.
    pub label: String,
}

/// One program's figures over the same places on the horizontal axis.
pub struct Line {
    pub name: String,
    pub whose: Whose,
    pub is_dashed: bool,
    pub values: Vec<f64>,
}

const WIDTH: f64 = 860.0;

fn svg(height: f64, content: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\">\n{STYLE}{content}</svg>\n"
    )
}

/// Groups of horizontal bars, in two columns.
pub fn bars(groups: &[Bars]) -> String {
    const COLUMN: f64 = 430.0;
    const NAMES: f64 = 152.0;
    const LABELS: f64 = 84.0;
    const BAR: f64 = 16.0;
    const STEP: f64 = 22.0;
    const HEAD: f64 = 42.0;
    const GAP: f64 = 26.0;
    let mut content = String::new();
    let mut top = 8.0;
    for row in groups.chunks(2) {
        for (column, group) in row.iter().enumerate() {
            let left = column as f64 * COLUMN;
            let most = group.bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
            let _ = writeln!(
                content,
                "<text x=\"{left}\" y=\"{}\" class=\"title\">{}</text>\
                 <text x=\"{left}\" y=\"{}\" class=\"tick\">{}</text>",
                top + 14.0,
                group.title,
                top + 31.0,
                group.hint
            );
            for (n, bar) in group.bars.iter().enumerate() {
                let y = top + HEAD + n as f64 * STEP;
                let width = (bar.value / most * (COLUMN - NAMES - LABELS)).max(1.0);
                let (class, text, x) = (bar.whose.class(), y + 12.5, left + NAMES);
                let text_class = bar.whose.text_class();
                let _ = writeln!(
                    content,
                    "<text x=\"{:.0}\" y=\"{text}\" text-anchor=\"end\"{text_class}>{}</text>\
                     <rect x=\"{x}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\" class=\"{class}\"/>\
                     <text x=\"{:.1}\" y=\"{text}\"{text_class}>{}</text>",
                    x - 8.0,
                    bar.name,
                    x + width + 6.0,
                    bar.label
                );
            }
        }
        let bars = row.iter().map(|group| group.bars.len()).max().unwrap_or_default();
        top += HEAD + bars as f64 * STEP + GAP;
    }
    svg(top - GAP + 4.0, &content)
}

/// Lines over these places, with their names beside their ends.
pub fn lines(title: &str, hint: &str, places: &[String], axis: &str, lines: &[Line]) -> String {
    const HEIGHT: f64 = 450.0;
    const LEFT: f64 = 64.0;
    const RIGHT: f64 = 210.0;
    const TOP: f64 = 56.0;
    const BOTTOM: f64 = 52.0;
    const STEP: f64 = 17.0;
    let most = lines.iter().flat_map(|line| &line.values).copied().fold(f64::MIN_POSITIVE, f64::max);
    let tick = round_tick(most);
    let ticks = (most / tick).ceil();
    let x = |place: usize| LEFT + (WIDTH - LEFT - RIGHT) * place as f64 / (places.len() - 1) as f64;
    let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / (ticks * tick);
    let end = WIDTH - RIGHT;

    let mut content = format!(
        "<text x=\"0\" y=\"16\" class=\"title\">{title}</text><text x=\"0\" y=\"33\" class=\"tick\">{hint}</text>\n"
    );
    for value in (0..=ticks as u32).map(|n| f64::from(n) * tick) {
        let y = y(value);
        let _ = writeln!(
            content,
            "<path d=\"M{LEFT} {y:.1}H{end}\" class=\"grid\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" class=\"tick\">{}</text>",
            LEFT - 10.0,
            y + 4.0,
            thousands(value)
        );
    }
    for (place, name) in places.iter().enumerate() {
        let _ = writeln!(
            content,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" class=\"tick\">{name}</text>",
            x(place),
            HEIGHT - BOTTOM + 20.0
        );
    }
    let middle = (LEFT + end) / 2.0;
    let _ = writeln!(
        content,
        "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" class=\"tick\">{axis}</text>",
        HEIGHT - 10.0
    );

    // The service's own line is drawn last, over the others.
    let mut order: Vec<_> = lines.iter().collect();
    order.sort_by_key(|line| line.whose == Whose::Service);
    for line in order {
        let points: Vec<_> =
            line.values.iter().enumerate().map(|(n, value)| format!("{:.1},{:.1}", x(n), y(*value))).collect();
        let (class, points) = (line.whose.class(), points.join(" "));
        let dashed = if line.is_dashed { " dashed" } else { "" };
        let _ = writeln!(content, "<polyline points=\"{points}\" class=\"{class}{dashed}\"/>");
    }

    let last = |line: &Line| y(line.values.last().copied().unwrap_or_default());
    let mut order: Vec<_> = lines.iter().collect();
    order.sort_by(|a, b| last(a).total_cmp(&last(b)));
    let wanted: Vec<_> = order.iter().map(|line| last(line)).collect();
    for (line, name_y) in order.iter().zip(spread(&wanted, STEP, HEIGHT - BOTTOM)) {
        let (y, class) = (last(line), line.whose.class());
        let text_class = line.whose.text_class();
        let _ = writeln!(
            content,
            "<path d=\"M{} {y:.1}L{} {name_y:.1}\" class=\"{class}\"/>\
             <text x=\"{}\" y=\"{:.1}\"{text_class}>{}</text>",
            end + 2.0,
            end + 22.0,
            end + 27.0,
            name_y + 4.0,
            line.name
        );
    }
    svg(HEIGHT, &content)
}

/// The step between ticks: 1, 2 or 5 times a power of ten, so that there are three to eight.
fn round_tick(most: f64) -> f64 {
    let power = 10_f64.powf((most / 8.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    steps.into_iter().find(|step| most / step <= 8.0).unwrap_or(most)
}

/// The number with commas between thousands.
pub fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Places near the wanted ones, which are in ascending order: at least `step` apart, and at most `bottom`.
fn spread(wanted: &[f64], step: f64, bottom: f64) -> Vec<f64> {
    let mut places = wanted.to_vec();
    let mut limit = bottom;
    for place in places.iter_mut().rev() {
        *place = place.min(limit);
        limit = *place - step;
    }
    // What was pushed too far up comes down again where there is room.
    for n in 0..places.len() {
        let above = if n > 0 { places[n - 1] + step } else { f64::MIN };
        let below = places.get(n + 1).map_or(bottom, |next| next - step);
        places[n] = wanted[n].clamp(above, below.max(above));
    }
    places
}
