//! Counters, gauges and histograms with labels, as our list of metrics declares them.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    metrics::{counter, family::Family, gauge, histogram},
    registry::Registry,
};

/// Names and values, in the order of the declaration.
type Labels = Vec<(&'static str, String)>;

/// What a metric is, in Prometheus' terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only rises; `rate()` it.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets.
    Histogram,
}

pub(super) struct Counter(Family<Labels, counter::Counter<f64, AtomicU64>>);
pub(super) struct Gauge(Family<Labels, gauge::Gauge<f64, AtomicU64>>);
pub(super) struct Histogram(Family<Labels, histogram::Histogram, fn() -> histogram::Histogram>);

/// From a tiny job to one of an hour.
const SECONDS: [f64; 20] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0,
    600.0, 1200.0, 3600.0,
];

pub(super) trait Meter {
    const KIND: MetricKind;

    fn registered(registry: &mut Registry, name: &str, help: &str) -> Self;
}

impl Meter for Counter {
    const KIND: MetricKind = MetricKind::Counter;

    fn registered(registry: &mut Registry, name: &str, help: &str) -> Self {
        let family = Family::default();
        // The encoder appends it.
        registry.register(name.trim_end_matches("_total"), help, family.clone());
        Self(family)
    }
}

impl Meter for Gauge {
    const KIND: MetricKind = MetricKind::Gauge;

    fn registered(registry: &mut Registry, name: &str, help: &str) -> Self {
        let family = Family::default();
        registry.register(name, help, family.clone());
        Self(family)
    }
}

impl Meter for Histogram {
    const KIND: MetricKind = MetricKind::Histogram;

    fn registered(registry: &mut Registry, name: &str, help: &str) -> Self {
        let family = Family::new_with_constructor((|| histogram::Histogram::new(SECONDS)) as fn() -> _);
        registry.register(name, help, family.clone());
        Self(family)
    }
}

/// The encoder writes values as they are: a publisher's quotation mark would end one.
fn owned(labels: &[(&'static str, &str)]) -> Labels {
    let escaped = |value: &str| value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
    labels.iter().map(|(name, value)| (*name, escaped(value))).collect()
}

impl Counter {
    pub(super) fn add(&self, labels: &[(&'static str, &str)], amount: f64) {
        self.0.get_or_create(&owned(labels)).inc_by(amount);
    }
}

impl Gauge {
    pub(super) fn set(&self, labels: &[(&'static str, &str)], value: f64) {
        self.0.get_or_create(&owned(labels)).set(value);
    }

    pub(super) fn add(&self, amount: f64) {
        self.0.get_or_create(&Labels::new()).inc_by(amount);
    }
}

impl Histogram {
    pub(super) fn record(&self, labels: &[(&'static str, &str)], time: Duration) {
        self.0.get_or_create(&owned(labels)).observe(time.as_secs_f64());
    }
}
