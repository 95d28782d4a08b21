//! Reads the recordings and plays them to a tracker.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use contract::{
    prompt::{Prompt, prompt_from_value},
    result::NodeTiming,
};

use connector::comfy::{
    events::{Event, Frame, binary_frame, text_frame},
    history::History,
    tracker::{Step, Tracker},
};
use serde_json::Value;

/// One exchange: a posted prompt, the frames that followed, and its history.
pub(crate) struct Recording {
    pub(crate) name: String,
    pub(crate) prompt: Prompt,
    pub(crate) prompt_id: String,
    pub(crate) status: u64,
    pub(crate) lines: Vec<Line>,
    pub(crate) history: Option<History>,
}

/// A frame and its time since the post.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) at: Duration,
    pub(crate) raw: Raw,
}

#[derive(Clone, Debug)]
pub(crate) enum Raw {
    Text(String),
    Binary(Bytes),
}

/// What a tracker made of a recording.
pub(crate) struct Played {
    pub(crate) steps: Vec<Step>,
    pub(crate) timings: BTreeMap<String, NodeTiming>,
    pub(crate) failures: Vec<Event>,
}

impl Line {
    pub(crate) fn frame(&self) -> Option<Frame> {
        match &self.raw {
            Raw::Text(text) => text_frame(text),
            Raw::Binary(bytes) => binary_frame(bytes),
        }
    }
}

impl Recording {
    pub(crate) fn all() -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for (folder, version) in [("transcripts", ""), ("transcripts-0.33.0", " of 0.33.0")] {
            let folder = testbed::checkout().join("tests/fixtures").join(folder);
            let before = found.len();
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "jsonl") {
                    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
                    let name = format!("{stem}{version}");
                    found.push(Self::read(&name, &fs::read_to_string(&path)?).context(name)?);
                }
            }
            let count = found.len() - before;
            ensure!(count >= 18, "only {count} transcripts in {}", folder.display());
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    pub(crate) fn named(name: &str) -> Result<Self> {
        let found = Self::all()?.into_iter().find(|recording| recording.name == name);
        found.with_context(|| format!("no transcript {name}"))
    }

    fn read(name: &str, text: &str) -> Result<Self> {
        let steps: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let post = steps.first().context("empty")?;
        let request = post.get("request").context("no request")?;
        let prompt_id = request.get("prompt_id").and_then(Value::as_str).context("no id")?.to_owned();
        let prompt = request.get("prompt").cloned().context("no prompt")?;
        let (mut lines, mut history) = (Vec::new(), None);
        for step in &steps {
            let at = Duration::from_secs_f64(step.get("t").and_then(Value::as_f64).unwrap_or_default());
            match step.get("at").and_then(Value::as_str) {
                Some("ws text") => {
                    let text = step.get("message").context("no message")?.to_string();
                    lines.push(Line { at, raw: Raw::Text(text) });
                }
                Some("ws binary") => {
                    let bytes = step.get("base64").and_then(Value::as_str).context("no bytes")?;
                    lines.push(Line { at, raw: Raw::Binary(STANDARD.decode(bytes)?.into()) });
                }
                Some("GET /history/{prompt_id}") => {
                    history = step.get("response").and_then(|answer| History::find(answer, &prompt_id));
                }
                _ => {}
            }
        }
        Ok(Self {
            name: name.to_owned(),
            prompt: prompt_from_value(prompt)?,
            prompt_id,
            status: post.get("status").and_then(Value::as_u64).context("no status")?,
            lines,
            history,
        })
    }

    /// Plays it to a tracker as the socket would: this prompt's events, and what names no prompt.
    pub(crate) fn play(&self) -> Played {
        let mut tracker = Tracker::new(&self.prompt);
        let (mut steps, mut failures) = (Vec::new(), Vec::new());
        for line in &self.lines {
            let Some(Frame { prompt, event }) = line.frame() else { continue };
            let unnamed = matches!(event, Event::Executing(Some(_)) | Event::Image(_));
            if prompt.as_deref() == Some(&self.prompt_id) || (prompt.is_none() && unnamed) {
                if matches!(event, Event::Failed(_) | Event::Interrupted) {
                    failures.push(event.clone());
                }
                steps.push(tracker.step(event, line.at));
            }
        }
        Played { steps, timings: tracker.into_timings(), failures }
    }
}
