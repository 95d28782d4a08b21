//! A run as a picture: workers, queue and waits over time, and the jobs of each worker.

use testbed::Svg;

use super::{
    figures::{Figures, Wait},
    plan::Way,
    report::{duration, quantiles},
};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 884.0;
/// Of the first panel: above it stand the phases.
const TOP: f64 = 112.0;
const HEIGHT: f64 = 104.0;
const STEP: f64 = 144.0;
/// Below the bars stand the workers' names.
const FOOT: f64 = 62.0;
/// Above them the time's axis has its words.
const GAP: f64 = 10.0;
/// The shortest wait that is told apart.
const SHORTEST: f64 = 0.001;
/// A phase that is narrower has its name in its title only.
const ROOM: f64 = 44.0;

const LIGHT: &str = "\
.small{font-size:9px;fill:#59636e}.band{fill:#f6f8fa}\
.many{fill:none;stroke:#0969da;stroke-width:2}.many-ground{fill:#0969da;opacity:.15}\
.rare{fill:none;stroke:#bc4c00;stroke-width:2}.rare-ground{fill:#bc4c00;opacity:.18}\
.bar{fill:#0969da}.bar-bad{fill:#cf222e}.mark{fill:none;stroke-width:2}.done{stroke:#59636e}\
.key-many{fill:#0969da}.key-rare{fill:#bc4c00}.key-bad{fill:#cf222e}";
const DARK: &str = "\
.small{fill:#9198a1}.band{fill:#161b22}.many{stroke:#4493f8}.many-ground{fill:#4493f8}\
.rare{stroke:#f0883e}.rare-ground{fill:#f0883e}.bar{fill:#4493f8}.bar-bad{fill:#ff7b72}.done{stroke:#9198a1}\
.key-many{fill:#4493f8}.key-rare{fill:#f0883e}.key-bad{fill:#ff7b72}";

/// One below the other.
struct Panel {
    top: f64,
    /// The value at its upper edge, and at its lower one.
    most: f64,
    least: f64,
    is_logarithmic: bool,
}

impl Panel {
    fn new(number: usize, most: f64) -> Self {
        Self { top: TOP + STEP * number as f64, most: most.max(1.0), least: 0.0, is_logarithmic: false }
    }

    fn bottom(&self) -> f64 {
        self.top + HEIGHT
    }

    fn y(&self, value: f64) -> f64 {
        let share = if self.is_logarithmic {
            (value.max(self.least) / self.least).ln() / (self.most / self.least).ln()
        } else {
            (value - self.least) / (self.most - self.least)
        };
        self.bottom() - HEIGHT * share.clamp(0.0, 1.0)
    }

    fn axis(&self, plot: &mut Svg, title: &str, ticks: &[(f64, String)]) {
        plot.label(LEFT, self.top - 10.0, "", "start", title);
        for (value, words) in ticks {
            let y = self.y(*value);
            plot.line("line", [LEFT, y], [RIGHT, y]);
            plot.label(LEFT - 8.0, y + 4.0, "note", "end", words);
        }
    }
}

/// The whole picture.
pub(super) fn svg(figures: &Figures) -> String {
    let height = TOP + STEP * 3.0 + GAP + HEIGHT + FOOT;
    let title = format!(
        "{} jobs, up to {} workers on one queue",
        figures.jobs,
        figures.up.iter().map(|(_, count)| *count).max().unwrap_or(0)
    );
    let mut plot = Svg::new(WIDTH, height, &format!("comfy-worker: {title}"), LIGHT, DARK);
    plot.label(20.0, 30.0, "title", "start", &title);
    let [p50, p90, p99] = quantiles(figures.wait);
    let about = format!(
        "{:.1} jobs a second, wait p50 {p50}, p90 {p90}, p99 {p99}; {} workers killed, none of their jobs lost; {}",
        figures.jobs_per_second, figures.losses.kills, figures.machine
    );
    let lost = figures.losses.jobs - figures.losses.answered_elsewhere - figures.losses.stored_before;
    let about = if lost == 0 { about } else { about.replace("none of their", &format!("{lost} of their")) };
    plot.label(20.0, 50.0, "note", "start", &about);

    let end = figures.phases.last().map_or(1.0, |phase| phase.to).max(1.0);
    let x = |at: f64| LEFT + (RIGHT - LEFT) * (at / end).clamp(0.0, 1.0);
    phases(&mut plot, figures, x);
    workers(&mut plot, figures, x, end);
    queue(&mut plot, figures, x, end);
    waits(&mut plot, figures, x);
    time(&mut plot, x, end);
    bars(&mut plot, figures);
    plot.finish()
}

fn phases(plot: &mut Svg, figures: &Figures, x: impl Fn(f64) -> f64) {
    for (number, phase) in figures.phases.iter().enumerate() {
        let (from, to) = (x(phase.from), x(phase.to));
        let [p50, _, p99] = quantiles(phase.wait);
        let about = format!("{}: {} jobs, wait p50 {p50}, p99 {p99}", phase.name, phase.jobs);
        let class = if number % 2 == 0 { "band" } else { "ground" };
        plot.rect(class, [from, TOP], [to - from, STEP * 2.0 + HEIGHT], &about);
        if to - from < ROOM {
            continue;
        }
        let (count, what) = phase.name.split_once(", ").unwrap_or((&phase.name, ""));
        for (line, words) in [what, count].into_iter().enumerate() {
            plot.label(f64::midpoint(from, to), TOP - 44.0 + 11.0 * line as f64, "small", "middle", words);
        }
    }
}

fn workers(plot: &mut Svg, figures: &Figures, x: impl Fn(f64) -> f64, end: f64) {
    let most = figures.up.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let panel = Panel::new(0, most as f64);
    panel.axis(plot, "workers that take jobs", &whole_ticks(most as u32));
    let mut line = String::new();
    let mut last = None;
    for (at, count) in figures.up.iter().filter(|(at, _)| *at <= end) {
        let (at, y) = (x(*at), panel.y(*count as f64));
        match last {
            None => line += &format!("M{at:.1} {y:.1}"),
            Some(_) => line += &format!("H{at:.1}V{y:.1}"),
        }
        last = Some(y);
    }
    line += &format!("H{:.1}", x(end));
    plot.path("many-ground", &format!("{line}V{:.1}H{LEFT}Z", panel.bottom()), "");
    plot.path("many", &line, "");
    for life in &figures.lives {
        let (Some(at), Some(way)) = (life.leaving.filter(|at| *at < end), life.way) else { continue };
        let (at, y) = (x(at), panel.bottom() + 12.0);
        let (class, shape, words) = match way {
            Way::Kill => ("bad mark", format!("M{:.1} {:.1}l7 7m0 -7l-7 7", at - 3.5, y - 3.5), "killed"),
            Way::Itself => ("bad mark", format!("M{at:.1} {:.1}v7", y - 3.5), "ended by itself"),
            Way::Term => ("done mark", format!("M{:.1} {:.1}l4 6l4 -6", at - 4.0, y - 3.0), "SIGTERM"),
            Way::Order => {
                ("done mark", format!("M{:.1} {:.1}l4 6l4 -6", at - 4.0, y - 3.0), "ordered to drain")
            }
        };
        plot.path(class, &shape, &format!("{}: {words}", life.worker));
    }
    plot.label(RIGHT, panel.top - 10.0, "note", "end", "below: ✕ killed, ⌄ drained");
}

fn queue(plot: &mut Svg, figures: &Figures, x: impl Fn(f64) -> f64, end: f64) {
    let panel = Panel::new(1, f64::from(figures.most_waiting) * 1.05);
    panel.axis(plot, "jobs in the queue", &whole_ticks(figures.most_waiting));
    let points: Vec<(f64, f64)> = figures
        .waiting
        .iter()
        .filter(|(at, _)| *at <= end)
        .map(|(at, jobs)| (x(*at), panel.y(f64::from(*jobs))))
        .collect();
    let (Some((first, _)), Some((last, _))) = (points.first(), points.last()) else { return };
    let line = through(&points);
    plot.path("rare-ground", &format!("{line}L{last:.1} {0:.1}L{first:.1} {0:.1}Z", panel.bottom()), "");
    plot.path("rare", &line, "");
}

fn waits(plot: &mut Svg, figures: &Figures, x: impl Fn(f64) -> f64) {
    let longest = figures.waits.iter().map(|(_, wait)| wait.p99).fold(0.1, f64::max);
    let shortest = figures.waits.iter().map(|(_, wait)| wait.p50).fold(longest, f64::min).max(SHORTEST);
    let least = 10_f64.powf(shortest.log10().floor());
    let most = 10_f64.powf(longest.log10().ceil()).max(least * 10.0);
    let panel = Panel { least, most, is_logarithmic: true, ..Panel::new(2, most) };
    let decades = (least.log10().round() as i32)..=(most.log10().round() as i32);
    let ticks: Vec<(f64, String)> =
        decades.map(|power| 10_f64.powi(power)).map(|at| (at, tick(at))).collect();
    panel.axis(plot, "wait from publication to start", &ticks);
    let mut curve = |name: &str, class: &str, right: f64, value: fn(&Wait) -> f64| {
        let point = |(at, wait): &(f64, Wait)| (x(*at), panel.y(value(wait)));
        plot.path(class, &through(&figures.waits.iter().map(point).collect::<Vec<_>>()), "");
        plot.label(right, panel.top - 10.0, &format!("key-{class}"), "end", name);
    };
    curve("p99", "rare", RIGHT, |wait| wait.p99);
    curve("p50", "many", RIGHT - 32.0, |wait| wait.p50);
}

fn time(plot: &mut Svg, x: impl Fn(f64) -> f64, end: f64) {
    let y = TOP + STEP * 2.0 + HEIGHT;
    // 6 to 12 of them.
    let step =
        [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0].into_iter().find(|step| end / step <= 12.0);
    let step = step.unwrap_or(1800.0);
    for number in 0..=(end / step) as u32 {
        let at = f64::from(number) * step;
        plot.line("line", [x(at), y], [x(at), y + 4.0]);
        let (minutes, seconds) = ((at / 60.0) as u32, at % 60.0);
        plot.label(x(at), y + 16.0, "note", "middle", &format!("{minutes}:{seconds:02.0}"));
    }
}

fn bars(plot: &mut Svg, figures: &Figures) {
    let most = figures.lives.iter().map(|life| life.jobs).max().unwrap_or(0);
    let mut panel = Panel::new(3, most as f64 * 1.05);
    panel.top += GAP;
    let top = panel.top - 10.0;
    panel.axis(plot, "jobs of each worker, in the order of their starts", &whole_ticks(most as u32));
    plot.label(RIGHT, top, "key-bad", "end", "killed");
    plot.label(RIGHT - 44.0, top, "key-many", "end", "drained");
    let width = (RIGHT - LEFT) / figures.lives.len().max(1) as f64;
    for (number, life) in figures.lives.iter().enumerate() {
        let left = LEFT + width * number as f64;
        let y = panel.y(life.jobs as f64);
        let is_bad = !matches!(life.way, Some(Way::Term | Way::Order));
        let about = format!(
            "{}: {} jobs, up {}, busy {:.0} %",
            life.worker,
            life.jobs,
            duration(life.up()),
            life.busy * 100.0
        );
        let class = if is_bad { "bar-bad" } else { "bar" };
        plot.rect(class, [left + width * 0.12, y], [width * 0.76, panel.bottom() - y], &about);
        let (x, y) = (left + width / 2.0 + 3.0, panel.bottom() + 8.0);
        plot.element(format_args!(
            "<text class=\"small\" text-anchor=\"end\" transform=\"translate({x:.1} {y:.1})rotate(-60)\">{}</text>",
            life.worker
        ));
    }
}

/// A line through these points.
fn through(points: &[(f64, f64)]) -> String {
    let parts = points.iter().enumerate().map(|(number, (x, y))| {
        let command = if number == 0 { 'M' } else { 'L' };
        format!("{command}{x:.1} {y:.1}")
    });
    parts.collect()
}

/// From 0 to `most`, 3 to 6 of them where there is room for whole numbers.
fn whole_ticks(most: u32) -> Vec<(f64, String)> {
    let scales = (0..9).map(|power| 10_u32.pow(power));
    let mut steps = scales.flat_map(|scale| [scale, 2 * scale, 4 * scale, 5 * scale]);
    let step = steps.find(|step| most / step <= 5).unwrap_or(most.max(1));
    (0..=most / step).map(|number| number * step).map(|tick| (f64::from(tick), tick.to_string())).collect()
}

fn tick(seconds: f64) -> String {
    if seconds < 0.9 { format!("{:.0} ms", seconds * 1000.0) } else { format!("{seconds:.0} s") }
}
