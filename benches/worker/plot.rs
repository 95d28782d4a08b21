//! The figures against their goals, as an SVG that is readable on light and on dark ground.

use std::fmt::Write as _;

use crate::figure::Figure;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 250.0;
const RIGHT: f64 = 640.0;
const TOP: f64 = 84.0;
const STEP: f64 = 30.0;
/// The axis goes from 2⁻⁴ to 2⁴ times the goal; what lies beyond stands at its end.
const OCTAVES: f64 = 4.0;

const STYLE: &str = "\
text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1f2328}\
.title{font-size:16px;font-weight:600}.note{font-size:11px;fill:#59636e}\
.ground{fill:#fff}.stripe{fill:#f6f8fa}.line{stroke:#d1d9e0}.goal{stroke:#1f2328;stroke-width:1.5}\
.good{fill:#1a7f37;stroke:#1a7f37}.bad{fill:#cf222e;stroke:#cf222e}.stem{stroke-width:2;opacity:.45}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.note{fill:#9198a1}.ground{fill:#0d1117}\
.stripe{fill:#161b22}.line{stroke:#30363d}.goal{stroke:#e6edf3}\
.good{fill:#3fb950;stroke:#3fb950}.bad{fill:#ff7b72;stroke:#ff7b72}}";

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
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\"><title>comfy-worker: measured figures against their goals</title>\
         <style>{STYLE}</style><rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\n"
    );
    label(&mut text, 20.0, 30.0, "title", "start", "Figures against their goals");
    let legend = "● stand-in or no ComfyUI · ◆ real ComfyUI · left of the line: better than the goal";
    label(&mut text, 20.0, 50.0, "note", "start", legend);
    for (number, _) in lines.iter().enumerate().filter(|(number, _)| number % 2 == 0) {
        let y = TOP + STEP * number as f64;
        let _ = writeln!(
            text,
            "<rect class=\"stripe\" x=\"10\" y=\"{y}\" width=\"{}\" height=\"{STEP}\"/>",
            WIDTH - 20.0
        );
    }
    for octave in [-4, -2, 0, 2, 4] {
        let x = place(f64::from(octave).exp2());
        let (class, name) = match octave {
            0 => ("goal", "goal".to_owned()),
            less if less < 0 => ("line", format!("× 1/{}", 1 << -less)),
            more => ("line", format!("× {}", 1 << more)),
        };
        let _ = writeln!(
            text,
            "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>"
        );
        label(&mut text, x, TOP - 8.0, "note", "middle", &name);
    }
    for (number, line) in lines.iter().enumerate() {
        let y = TOP + STEP * (number as f64 + 0.5);
        label(&mut text, 20.0, y + 4.5, "", "start", &line[0].name);
        for figure in line {
            mark(&mut text, figure, y);
        }
        let values: Vec<String> = line.iter().map(|figure| figure.shown_value()).collect();
        let values = format!("{}  ({})", values.join(" · "), line[0].shown_goal());
        label(&mut text, RIGHT + 20.0, y + 4.5, "", "start", &values);
    }
    label(&mut text, 20.0, bottom + 26.0, "note", "start", machine);
    text.push_str("</svg>\n");
    text
}

/// Where a multiple of the goal stands.
fn place(load: f64) -> f64 {
    let octaves = load.log2().clamp(-OCTAVES, OCTAVES);
    LEFT + (RIGHT - LEFT) * (octaves + OCTAVES) / (2.0 * OCTAVES)
}

fn mark(text: &mut String, figure: &Figure, y: f64) {
    let x = place(figure.load().unwrap_or(1.0));
    let class = if figure.holds() == Some(true) { "good" } else { "bad" };
    let goal = place(1.0);
    let _ = writeln!(
        text,
        "<line class=\"{class} stem\" x1=\"{goal:.1}\" x2=\"{x:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
    );
    let _ = if figure.engine == crate::bed::On::Real.name() {
        writeln!(
            text,
            "<path class=\"{class}\" d=\"M{x:.1} {:.1}l6 6l-6 6l-6 -6z\"><title>{}</title></path>",
            y - 6.0,
            escaped(&figure.shown_value())
        )
    } else {
        writeln!(
            text,
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"><title>{}</title></circle>",
            escaped(&figure.shown_value())
        )
    };
}

fn label(text: &mut String, x: f64, y: f64, class: &str, anchor: &str, words: &str) {
    let words = escaped(words);
    let _ = writeln!(
        text,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
    );
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;")
}
