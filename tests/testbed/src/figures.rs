//! What measured figures are reported with: quantiles, a table, and the machine that they come from.

use std::{fmt, fs, thread};

use serde::Serialize;

/// The middle one, or the lower of two; 0 of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The smallest value that so large a share of them does not exceed; 0 of none.
#[must_use]
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or_default()
}

/// Rows under a head, good to read in a terminal and as Markdown.
#[must_use]
pub fn table<const COLUMNS: usize>(head: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let head = head.map(str::to_owned);
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
        let cells = rows.iter().chain([&head]).map(|row| row[column].chars().count());
        cells.max().unwrap_or_default().max(3)
    });
    let row = |cells: &[String; COLUMNS]| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width));
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule = widths.map(|width| "-".repeat(width + 2));
    let body: String = rows.iter().map(row).collect();
    format!("{}|{}|\n{body}", row(&head), rule.join("|"))
}

/// Where something was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Those that this process may use.
    pub cores: usize,
    /// Its name, as the kernel has it.
    pub processor: String,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let processor = model.map_or("unknown processor", |(_, name)| name.trim()).to_owned();
        Self { cores, processor }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cores, {}", self.cores, self.processor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_there() {
        assert_eq!((quantile(&[], 0.5), quantile(&[3.0], 0.99)), (0.0, 3.0));
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!((median(&values), quantile(&values, 0.99)), (50.0, 99.0));
    }

    #[test]
    fn a_table_is_as_wide_as_its_cells() {
        let rows = [["a".to_owned(), "12345".to_owned()]];
        assert_eq!(table(["name", "n"], &rows), "| name | n     |\n|------|-------|\n| a    | 12345 |\n");
    }
}
