//! A measured figure, what it should be, and whether it is.

use serde_json::{Value, json};

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// Stands beside another one.
    None,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) row: String,
    pub(crate) name: String,
    /// The ComfyUI it was measured on; empty where that does not matter.
    pub(crate) engine: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) goal: Goal,
    /// What was compared, in numbers.
    pub(crate) beside: String,
    /// What keeps it from being better.
    pub(crate) bound: String,
}

impl Figure {
    pub(crate) fn new(row: &str, name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            row: row.to_owned(),
            name: name.into(),
            engine: "",
            value,
            unit,
            goal: Goal::None,
            beside: String::new(),
            bound: String::new(),
        }
    }

    pub(crate) fn on(mut self, engine: &'static str) -> Self {
        self.engine = engine;
        self
    }

    pub(crate) fn at_least(mut self, goal: f64) -> Self {
        self.goal = Goal::AtLeast(goal);
        self
    }

    pub(crate) fn at_most(mut self, goal: f64) -> Self {
        self.goal = Goal::AtMost(goal);
        self
    }

    pub(crate) fn beside(mut self, text: impl Into<String>) -> Self {
        self.beside = text.into();
        self
    }

    pub(crate) fn bound(mut self, text: impl Into<String>) -> Self {
        self.bound = text.into();
        self
    }

    /// How far it is from the goal: 1 is the goal itself, less is better, more misses it.
    pub(crate) fn load(&self) -> Option<f64> {
        match self.goal {
            Goal::AtLeast(goal) => Some(goal / self.value),
            Goal::AtMost(goal) => Some(self.value / goal),
            Goal::None => None,
        }
    }

    /// `None`: it has no goal.
    pub(crate) fn holds(&self) -> Option<bool> {
        Some(self.load()? <= 1.0)
    }

    pub(crate) fn shown_value(&self) -> String {
        format!("{}{}", number(self.value), self.unit)
    }

    pub(crate) fn shown_goal(&self) -> String {
        match self.goal {
            Goal::AtLeast(goal) => format!("≥ {}{}", number(goal), self.unit),
            Goal::AtMost(goal) => format!("≤ {}{}", number(goal), self.unit),
            Goal::None => "for comparison".into(),
        }
    }

    pub(crate) fn verdict(&self) -> String {
        let off = match self.goal {
            Goal::AtLeast(goal) => (goal - self.value) / goal,
            Goal::AtMost(goal) => (self.value - goal) / goal,
            Goal::None => return String::new(),
        };
        if off <= 0.0 {
            "holds".into()
        } else if off < 1.0 {
            format!("**misses by {:.1} %**", off * 100.0)
        } else {
            format!("**misses, × {:.1}**", off + 1.0)
        }
    }

    pub(crate) fn json(&self) -> Value {
        let (relation, goal) = match self.goal {
            Goal::AtLeast(goal) => (Some(">="), Some(goal)),
            Goal::AtMost(goal) => (Some("<="), Some(goal)),
            Goal::None => (None, None),
        };
        json!({
            "row": self.row, "figure": self.name, "engine": self.engine, "value": self.value,
            "unit": self.unit.trim(), "relation": relation, "goal": goal, "holds": self.holds(),
            "beside": self.beside, "bound": self.bound,
        })
    }
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        _ => format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}
