//! The figures against their goals, as an SVG that is readable on light and on dark ground.

use testbed::Svg;

use crate::figure::Figure;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 250.0;
const RIGHT: f64 = 640.0;
const TOP: f64 = 84.0;
const STEP: f64 = 30.0;
/// The axis goes from 2⁻⁴ to 2⁴ times the goal; what lies beyond stands at its end.
const OCTAVES: f64 = 4.0;

const LIGHT: &str = ".goal{stroke:#1f2328;stroke-width:1.5}.stem{stroke-width:2;opacity:.45}";
const DARK: &str = ".goal{stroke:#e6edf3}";

/// One line a name, with a mark for each ComfyUI that it was measured on.
pub(crate) fn svg(figures: &[Figure], machine: &str) -> String {
    let mut lines: Vec<Vec<&Figure>> = Vec::new();
    for figure in figures.iter().filter(|figure| figure.load().is_some()) {
        match lines.iter_mut().find(|line| line[0].name == figure.name) {
            Some(line) => line.push(figure),
            None => lines.push(vec![figure]),
        }
    }
    let bottom = TOP + STEP * lines.len() as f64;
    let height = bottom + 44.0;
    let mut plot = Svg::new(WIDTH, height, "comfy-worker: measured figures against their goals", LIGHT, DARK);
    plot.label(20.0, 30.0, "title", "start", "Figures against their goals");
    let legend = "● stand-in or no ComfyUI · ◆ real ComfyUI · left of the line: better than the goal";
    plot.label(20.0, 50.0, "note", "start", legend);
    for (number, _) in lines.iter().enumerate().filter(|(number, _)| number % 2 == 0) {
        let y = TOP + STEP * number as f64;
        plot.rect("stripe", [10.0, y], [WIDTH - 20.0, STEP], "");
    }
    for octave in [-4, -2, 0, 2, 4] {
        let x = place(f64::from(octave).exp2());
        let (class, name) = match octave {
            0 => ("goal", "goal".to_owned()),
            less if less < 0 => ("line", format!("× 1/{}", 1 << -less)),
            more => ("line", format!("× {}", 1 << more)),
        };
        plot.line(class, [x, TOP], [x, bottom]);
        plot.label(x, TOP - 8.0, "note", "middle", &name);
    }
    for (number, line) in lines.iter().enumerate() {
        let y = TOP + STEP * (number as f64 + 0.5);
        plot.label(20.0, y + 4.5, "", "start", &line[0].name);
        for figure in line {
            mark(&mut plot, figure, y);
        }
        let values: Vec<String> = line.iter().map(|figure| figure.shown_value()).collect();
        let values = format!("{}  ({})", values.join(" · "), line[0].shown_goal());
        plot.label(RIGHT + 20.0, y + 4.5, "", "start", &values);
    }
    plot.label(20.0, bottom + 26.0, "note", "start", machine);
    plot.finish()
}

/// Where a multiple of the goal stands.
fn place(load: f64) -> f64 {
    let octaves = load.log2().clamp(-OCTAVES, OCTAVES);
    LEFT + (RIGHT - LEFT) * (octaves + OCTAVES) / (2.0 * OCTAVES)
}

fn mark(plot: &mut Svg, figure: &Figure, y: f64) {
    let x = place(figure.load().unwrap_or(1.0));
    let class = if figure.holds() == Some(true) { "good" } else { "bad" };
    plot.line(&format!("{class} stem"), [place(1.0), y], [x, y]);
    let shape = if figure.engine == crate::bed::On::Real.name() {
        format!("M{x:.1} {:.1}l6 6l-6 6l-6 -6z", y - 6.0)
    } else {
        format!("M{:.1} {y:.1}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z", x - 5.0)
    };
    plot.path(class, &shape, &figure.shown_value());
}
