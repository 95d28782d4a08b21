//! The rows of the table, in order.

use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    bed::{Bed, On},
    binary, busy, cold, conversion,
    figure::Figure,
    large, memory, overhead, scale, throughput,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    Busy,
    Overhead,
    Throughput,
    Cold,
    Conversion,
    Large,
    Memory,
    Scale,
    Binary,
}

impl Row {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Busy => "execution ÷ wall, and the gaps between executions: 200 ms jobs, 8 MB in, 8 MB out",
            Self::Overhead => "run_workflow of a tiny prompt ÷ the barest client",
            Self::Throughput => "tiny jobs a second ÷ ComfyUI's own full queue",
            Self::Cold => "start to ready ÷ ComfyUI alone",
            Self::Conversion => "UI workflows: first sight ÷ the page itself, and known ones",
            Self::Large => "a file of 2 GiB in and out ÷ s5cmd",
            Self::Memory => "the worker's own memory, idle and while the large file passes",
            Self::Scale => "two and four workers on one queue ÷ one",
            Self::Binary => "the size of the stripped release",
        }
    }

    /// The ComfyUIs that it is measured on; none: it does not matter which.
    fn engines(self) -> Vec<Option<On>> {
        match self {
            Self::Busy | Self::Overhead | Self::Throughput | Self::Cold | Self::Conversion => {
                On::all().into_iter().map(Some).collect()
            }
            Self::Large | Self::Memory | Self::Scale | Self::Binary => vec![None],
        }
    }

    async fn measure(self, bed: &Bed, on: On) -> Result<Vec<Figure>> {
        match self {
            Self::Busy => Box::pin(busy::measure(bed, on)).await,
            Self::Overhead => Box::pin(overhead::measure(bed, on)).await,
            Self::Throughput => Box::pin(throughput::measure(bed, on)).await,
            Self::Cold => Box::pin(cold::measure(bed, on)).await,
            Self::Conversion => Box::pin(conversion::measure(bed, on)).await,
            Self::Large => Box::pin(large::measure(bed)).await,
            Self::Memory => memory::measure(bed).await,
            Self::Scale => Box::pin(scale::measure(bed)).await,
            Self::Binary => binary::measure(bed),
        }
    }
}

/// The figures, and the names of the rows that could not be measured.
pub(crate) async fn measure_all(bed: &Bed, rows: &[Row]) -> (Vec<Figure>, Vec<String>) {
    let (mut figures, mut failed) = (Vec::new(), Vec::new());
    for row in rows {
        for on in row.engines() {
            let name = on.map_or_else(|| row.name(), |on| format!("{} on the {}", row.name(), on.name()));
            eprintln!("{name} …");
            let begin = Instant::now();
            match row.measure(bed, on.unwrap_or(On::Standin)).await {
                Ok(measured) => {
                    for figure in &measured {
                        let (value, goal) = (figure.shown_value(), figure.shown_goal());
                        eprintln!("    {}: {value} ({goal}) {}", figure.name, figure.beside);
                    }
                    figures.extend(measured);
                }
                Err(error) => {
                    eprintln!("    could not be measured: {error:#}");
                    failed.push(name);
                }
            }
            eprintln!("    {:.0} s", begin.elapsed().as_secs_f64());
        }
    }
    (figures, failed)
}
