//! An SVG that is readable on light and on dark ground.

use std::fmt::{Display, Write as _};

const LIGHT: &str = "\
text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1f2328}\
.title{font-size:16px;font-weight:600}.note{font-size:11px;fill:#59636e}\
.ground{fill:#fff}.stripe{fill:#f6f8fa}.line{stroke:#d1d9e0}\
.good{fill:#1a7f37;stroke:#1a7f37}.bad{fill:#cf222e;stroke:#cf222e}";
const DARK: &str = "\
text{fill:#e6edf3}.note{fill:#9198a1}.ground{fill:#0d1117}.stripe{fill:#161b22}.line{stroke:#30363d}\
.good{fill:#3fb950;stroke:#3fb950}.bad{fill:#ff7b72;stroke:#ff7b72}";

/// A drawing in progress. Classes that are always there: `title`, `note` (small and pale), `stripe`,
/// `line`, `good`, `bad`.
#[derive(Debug)]
pub struct Svg(String);

impl Svg {
    /// Its size, what it shows, and more CSS rules: for light ground, and what is other on dark.
    #[must_use]
    pub fn new(width: f64, height: f64, title: &str, light: &str, dark: &str) -> Self {
        let title = escaped(title);
        Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\"><title>{title}</title><style>{LIGHT}{light}\
             @media(prefers-color-scheme:dark){{{DARK}{dark}}}</style>\
             <rect class=\"ground\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>\n"
        ))
    }

    /// Words at a place; `anchor`: `start`, `middle`, `end`.
    pub fn label(&mut self, x: f64, y: f64, class: &str, anchor: &str, words: &str) {
        let words = escaped(words);
        self.element(format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
        ));
    }

    /// From one place to another.
    pub fn line(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
        self.element(format_args!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" x2=\"{x2:.1}\" y1=\"{y1:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    /// A rectangle by its upper left corner and its size; `title` is shown by a pointer upon it.
    pub fn rect(&mut self, class: &str, [x, y]: [f64; 2], [width, height]: [f64; 2], title: &str) {
        let title = titled(title);
        self.element(format_args!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\">{title}</rect>"
        ));
    }

    /// An SVG path in its own language.
    pub fn path(&mut self, class: &str, d: &str, title: &str) {
        let title = titled(title);
        self.element(format_args!("<path class=\"{class}\" d=\"{d}\">{title}</path>"));
    }

    /// Any element.
    pub fn element(&mut self, element: impl Display) {
        let _ = writeln!(self.0, "{element}");
    }

    /// The whole text.
    #[must_use]
    pub fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

fn titled(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!("<title>{}</title>", escaped(words)) }
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;")
}
