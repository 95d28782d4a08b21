//! Progress for people: a bar on a terminal, plain lines elsewhere. On standard error, so that
//! standard output holds results only.

use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

use contract::{
    event::{EventKind, JobEvent},
    result::JobResult,
    text::one_line,
};
use indicatif::{ProgressBar, ProgressStyle};

use super::print;
use crate::{
    events::{EventSink, Preview},
    telemetry::BARS,
};

/// Where progress is shown.
#[derive(Clone, Debug)]
pub(super) struct Display {
    bar: ProgressBar,
    interactive: bool,
}

/// Steps of the bar: the fraction of a job in thousandths.
const STEPS: u64 = 1000;

impl Display {
    /// A display that says `message` first.
    pub(super) fn new(message: &str) -> Self {
        let interactive = stderr().is_terminal();
        let bar = if interactive { BARS.add(ProgressBar::new(STEPS)) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} [{elapsed}] {bar:30} {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        let display = Self { bar, interactive };
        display.say(message);
        display
    }

    /// A new stage.
    pub(super) fn say(&self, message: &str) {
        if self.interactive {
            self.bar.set_message(message.to_owned());
        } else {
            print::note(message);
        }
    }

    /// Something passing within a stage: shown on a terminal only.
    pub(super) fn hint(&self, message: &str) {
        if self.interactive {
            self.bar.set_message(one_line(message, 200));
        }
    }

    /// An event of the job.
    pub(super) fn show(&self, event: &JobEvent) {
        match &event.kind {
            EventKind::Accepted => self.say(&format!("accepted by {}", event.worker)),
            EventKind::Staged { files: 0, .. } => {}
            EventKind::Staged { files, bytes } => {
                self.say(&format!("staged {files} file(s), {}", indicatif::HumanBytes(*bytes)));
            }
            EventKind::Converted { nodes } => self.say(&format!("prompt of {nodes} nodes")),
            EventKind::Queued { .. } => self.say("queued at ComfyUI"),
            EventKind::Started => self.say("running"),
            EventKind::Progress { title, value, max, fraction, .. } => {
                self.progress(title, *value, *max, *fraction)
            }
            EventKind::Executed => {
                self.bar.set_position(STEPS);
                self.say("executed, uploading");
            }
            EventKind::Uploaded { filename, bytes, done, of } => {
                let size = indicatif::HumanBytes(*bytes);
                self.say(&format!("uploaded {} ({size}), {done} of {of}", one_line(filename, 80)));
            }
            EventKind::Finished { .. } => {}
        }
    }

    fn progress(&self, title: &str, value: f64, max: f64, fraction: f64) {
        let title = one_line(title, 60);
        if self.interactive {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            self.bar.set_position((fraction.clamp(0.0, 1.0) * 1000.0) as u64);
        }
        let message = if max > 1.0 { format!("{title} {value}/{max}") } else { title };
        self.say(&format!("{message} ({:.0} %)", fraction * 100.0));
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl EventSink for Display {
    fn event(&self, event: &JobEvent) {
        self.show(event);
    }

    fn preview(&self, _: &Preview<'_>) {}

    fn ended(&self, _: &JobResult) {}
}
