//! Frames cut and mangled: never a panic, never an end that nobody sent.

use std::{
    env,
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use anyhow::Result;
use connector::comfy::{
    events::{Event, binary_frame, text_frame},
    tracker::{Step, Tracker},
};
use serde_json::Value;

use super::recording::{Raw, Recording};

/// Mutations of each frame.
const ROUNDS: usize = 60;

#[test]
fn frames_cut_at_any_byte_end_nothing() -> Result<()> {
    for recording in Recording::all()? {
        for line in &recording.lines {
            match &line.raw {
                Raw::Text(text) => {
                    for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
                        let cut = text.get(..end).unwrap_or_default();
                        assert_eq!(text_frame(cut), None, "{}: {cut}", recording.name);
                    }
                }
                Raw::Binary(bytes) => {
                    let head = 8 + 165; // two integers and the metadata
                    for end in 0..bytes.len() {
                        let frame = binary_frame(&bytes.slice(..end));
                        assert_eq!(frame.is_some(), end >= head, "{}: cut at {end}", recording.name);
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn mangled_frames_neither_panic_nor_end_a_prompt() -> Result<()> {
    let mut dice = Dice::new()?;
    for recording in Recording::all()? {
        let texts = recording.lines.iter().filter_map(|line| match &line.raw {
            Raw::Text(text) => Some(text.clone().into_bytes()),
            Raw::Binary(_) => None,
        });
        let texts = texts.collect::<Vec<_>>();
        let mut tracker = Tracker::new(&recording.prompt);
        let (mut ends, mut furthest, mut now) = (0, 0.0, Duration::ZERO);
        for round in 0..ROUNDS * texts.len() {
            let Some(original) = texts.get(round % texts.len()) else { continue };
            let mangled = dice.mangle(original, &texts);
            let text = String::from_utf8_lossy(&mangled);
            let _ = binary_frame(&mangled.clone().into());
            let Some(frame) = text_frame(&text) else { continue };
            if frame.event == Event::Executing(None) {
                assert!(says_it_is_over(&text), "seed {}: {text}", dice.seed);
            }
            now += Duration::from_millis(dice.below(5) as u64);
            match tracker.step(frame.event, now) {
                Step::Ended => ends += 1,
                Step::Progress(progress) => {
                    let fraction = progress.fraction;
                    assert!((furthest..=1.0).contains(&fraction), "seed {}: {progress:?}", dice.seed);
                    furthest = fraction;
                }
                _ => {}
            }
        }
        assert!(ends <= 1, "seed {}: {ends} ends of {}", dice.seed, recording.name);
        let timings = tracker.into_timings();
        assert!(timings.values().all(|timing| timing.ms.is_finite()), "seed {}: {timings:?}", dice.seed);
    }
    Ok(())
}

#[test]
fn mangled_pictures_are_pictures_or_nothing() -> Result<()> {
    let mut dice = Dice::new()?;
    let recording = Recording::named("websocket-image-output")?;
    let frames = recording.lines.iter().filter_map(|line| match &line.raw {
        Raw::Binary(bytes) => Some(bytes.to_vec()),
        Raw::Text(_) => None,
    });
    let frames = frames.collect::<Vec<_>>();
    for round in 0..5_000 {
        let Some(original) = frames.get(round % frames.len()) else { continue };
        let mangled = dice.mangle(original, &frames);
        let event = binary_frame(&mangled.into()).map(|frame| frame.event);
        let harmless = matches!(event, None | Some(Event::Image(_) | Event::Other(_)));
        assert!(harmless, "seed {}: {event:?}", dice.seed);
    }
    Ok(())
}

/// What another reader of the same text says. Python writes half a surrogate pair, which ours reads
/// and that one does not.
fn says_it_is_over(text: &str) -> bool {
    let Ok(message) = serde_json::from_str::<Value>(&without_surrogates(text)) else { return false };
    message.get("type").and_then(Value::as_str) == Some("executing")
        && message.pointer("/data/node").is_some_and(Value::is_null)
}

/// With a question mark for each `\ud8xx` to `\udfxx`.
fn without_surrogates(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some((before, escape)) = rest.split_once('\\') {
        plain.push_str(before);
        let code = escape.strip_prefix('u').and_then(|code| u16::from_str_radix(code.get(..4)?, 16).ok());
        let length = match code {
            Some(0xd800..=0xdfff) => {
                plain.push('?');
                5
            }
            _ => {
                plain.push('\\');
                let length = escape.chars().next().map_or(0, char::len_utf8);
                plain.push_str(&escape[..length]);
                length
            }
        };
        rest = &escape[length..];
    }
    plain + rest
}

/// Random numbers from a seed (SplitMix64), for mutations that can be repeated.
struct Dice {
    seed: u64,
    state: u64,
}

impl Dice {
    /// `TRANSCRIPTS_SEED`, else a random one.
    fn new() -> Result<Self> {
        let seed = match env::var("TRANSCRIPTS_SEED") {
            Ok(seed) => seed.parse()?,
            Err(_) => RandomState::new().hash_one(0),
        };
        eprintln!("TRANSCRIPTS_SEED={seed}");
        Ok(Self { seed, state: seed })
    }

    fn below(&mut self, limit: usize) -> usize {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % limit.max(1) as u64).unwrap_or_default()
    }

    fn mangle(&mut self, original: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = original.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (at % 8)),
                1 => drop(bytes.drain(at..(at + 1 + at % 7).min(bytes.len()))),
                2 => {
                    let words: [&[u8]; 6] = [b"null", b"NaN", b"\"", b"{", b"\\u", b"-Infinity"];
                    let word = words.get(self.below(words.len())).copied().unwrap_or_default();
                    bytes.splice(at..at, word.iter().copied());
                }
                3 => {
                    let Some(other) = others.get(self.below(others.len())) else { continue };
                    let from = self.below(other.len());
                    bytes.truncate(at);
                    bytes.extend(other.iter().skip(from));
                }
                _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = (at * 31 % 256) as u8),
            }
            if bytes.is_empty() {
                break;
            }
        }
        bytes
    }
}
