//! Our own socket and `execute` against the same server.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use contract::prompt::{Prompt, prompt_from_value};

use connector::comfy::{
    ExecuteError, Executed, Execution, Observer, PromptId, Server, Socket, events::Image, execute,
    history::ExecutionOutcome, tracker::Progress,
};
use serde_json::{Value, json};
use testbed::wait_for;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

use super::{
    bed::{LIMIT, on_comfyui},
    frames::Ears,
    prompts::{busy, image, inverted, prefix, save, saved},
};

/// What an observer was told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Note {
    Queued(PromptId),
    Started,
    Progress(Progress),
    Preview(Option<String>),
}

pub(crate) struct Notes(UnboundedSender<Note>);

impl Observer for Notes {
    fn queued(&mut self, prompt_id: PromptId) {
        let _ = self.0.send(Note::Queued(prompt_id));
    }

    fn started(&mut self) {
        let _ = self.0.send(Note::Started);
    }

    fn progress(&mut self, progress: &Progress) {
        let _ = self.0.send(Note::Progress(progress.clone()));
    }

    fn preview(&mut self, image: &Image) {
        let _ = self.0.send(Note::Preview(image.node.clone()));
    }

    fn executed(&mut self, _: &str, _: &Value) {}
}

/// One execution, with everything set to what most tests want.
pub(crate) struct Try {
    pub(crate) prompt: Prompt,
    pub(crate) extra_data: Value,
    pub(crate) limit: Duration,
    pub(crate) allow_partial: bool,
    pub(crate) abort: CancellationToken,
}

impl Try {
    pub(crate) fn new(prompt: Value) -> Result<Self> {
        let (extra_data, abort) = (json!({}), CancellationToken::new());
        Ok(Self { prompt: prompt_from_value(prompt)?, extra_data, limit: LIMIT, allow_partial: false, abort })
    }

    pub(crate) async fn run(&self, server: &Server, socket: &Socket) -> Result<Executed, ExecuteError> {
        self.run_with(server, socket, async |_| ()).await
    }

    /// Runs it, and `meddle` beside it with what the observer is told.
    pub(crate) async fn run_with(
        &self,
        server: &Server,
        socket: &Socket,
        meddle: impl AsyncFnOnce(&mut UnboundedReceiver<Note>),
    ) -> Result<Executed, ExecuteError> {
        let (sender, mut notes) = unbounded_channel();
        let execution = Execution {
            prompt: &self.prompt,
            extra_data: self.extra_data.clone(),
            limit: self.limit,
            allow_partial: self.allow_partial,
            abort: &self.abort,
            cancel: &CancellationToken::new(),
            behind: None,
            known: Arc::default(),
        };
        let mut observer = Notes(sender);
        let execution = execute(server, socket, execution, &mut observer);
        let (outcome, ()) = tokio::join!(Box::pin(execution), meddle(&mut notes));
        outcome
    }
}

/// Waits until the observer is told that the prompt is queued, and answers its id.
pub(crate) async fn queued(notes: &mut UnboundedReceiver<Note>) -> String {
    while let Some(note) = notes.recv().await {
        if let Note::Queued(id) = note {
            return id.to_string();
        }
    }
    String::new()
}

/// Waits until a node runs.
pub(crate) async fn running(notes: &mut UnboundedReceiver<Note>) {
    while !matches!(notes.recv().await, Some(Note::Progress(_)) | None) {}
}

#[test]
fn a_run_from_post_to_history() -> Result<()> {
    on_comfyui(async |bed| {
        let socket = Socket::connect(bed.base()).await?;
        let task = Try::new(inverted(&prefix()))?;
        let mut told = Vec::new();
        let executed = task.run_with(&bed.server, &socket, async |notes| {
            while let Some(note) = notes.recv().await {
                let last = matches!(&note, Note::Progress(progress) if progress.node == "3");
                told.push(note);
                if last {
                    return;
                }
            }
        });
        let executed = executed.await?;
        assert_eq!(executed.history.outcome(), ExecutionOutcome::Succeeded);
        assert_eq!(
            (told.first(), told.get(1)),
            (Some(&Note::Queued(executed.prompt_id)), Some(&Note::Started))
        );
        let progress = told.iter().filter_map(|note| match note {
            Note::Progress(progress) => Some((progress.title.as_str(), progress.fraction)),
            _ => None,
        });
        let expected = [("EmptyImage", 0.0), ("ImageInvert", 1.0 / 3.0), ("SaveImage", 2.0 / 3.0)];
        assert_eq!(progress.collect::<Vec<_>>(), expected);
        assert_eq!(executed.nodes.keys().collect::<Vec<_>>(), ["1", "2", "3"]);
        assert_eq!(executed.history.outputs().len(), 1);
        assert!(
            executed.images.is_empty() && executed.images_lost.is_empty() && executed.node_errors.is_none()
        );
        wait_for("the end of what was read", LIMIT, || async {
            bed.history(&executed.prompt_id.to_string()).await.is_ok_and(|left| left.is_null())
        })
        .await?;

        // A repeat can be over before the answer to its post is.
        for _ in 0..5 {
            let executed = task.run(&bed.server, &socket).await?;
            assert!(executed.nodes.values().all(|node| node.cached), "{:?}", executed.nodes);
            assert_eq!(executed.nodes.len(), 3);
        }
        Ok(())
    })
}

#[test]
fn websocket_pictures_are_collected() -> Result<()> {
    on_comfyui(async |bed| {
        let socket = Socket::connect(bed.base()).await?;
        let prompt =
            json!({"1": image(3), "2": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}});
        let executed = Try::new(prompt)?.run(&bed.server, &socket).await?;
        let found = executed.images.iter().map(|image| (image.node.as_str(), image.index));
        assert_eq!(found.collect::<Vec<_>>(), [("2", 0), ("2", 1), ("2", 2)]);
        assert!(executed.images_lost.is_empty());
        Ok(())
    })
}

#[test]
fn a_dropped_output_is_a_refusal_unless_it_may_miss() -> Result<()> {
    on_comfyui(async |bed| {
        let socket = Socket::connect(bed.base()).await?;
        let prompt = json!({"1": image(1), "2": save("1", &prefix()),
            "3": {"class_type": "LoadImage", "inputs": {"image": "nope.png"}}, "4": save("3", "other")});
        let mut task = Try::new(prompt)?;
        let Err(ExecuteError::Refused { message, node_errors, stuck: false }) =
            task.run(&bed.server, &socket).await
        else {
            panic!("not refused");
        };
        assert!(message.contains("node 3 (LoadImage)") && message.contains("nope.png"), "{message}");
        assert!(node_errors["3"].is_object());
        let idle = json!({"queue_running": [], "queue_pending": []});
        assert_eq!(bed.get("queue").await?, idle, "what was left of it does not run on");

        task.allow_partial = true;
        let executed = task.run(&bed.server, &socket).await?;
        assert_eq!(executed.node_errors, Some(node_errors));
        assert_eq!(executed.history.outputs().len(), 1);
        Ok(())
    })
}

#[test]
fn a_prompt_that_breaks_the_handler_is_refused() -> Result<()> {
    on_comfyui(async |bed| {
        let socket = Socket::connect(bed.base()).await?;
        let mut task = Try::new(saved())?;
        task.extra_data = json!([]);
        let outcome = task.run(&bed.server, &socket).await;
        let Err(ExecuteError::Refused { message, .. }) = outcome else { panic!("{outcome:?}") };
        assert!(message.contains("500"), "{message}");
        Ok(())
    })
}

#[test]
fn limit_and_abort_make_comfyui_let_go() -> Result<()> {
    on_comfyui(async |bed| {
        let socket = Socket::connect(bed.base()).await?;
        let mut task = Try::new(busy())?;
        task.limit = Duration::from_millis(200);
        let outcome = task.run(&bed.server, &socket).await;
        assert_eq!(outcome.err(), Some(ExecuteError::TimedOut { limit: task.limit, stuck: false }));

        let task = Try::new(busy())?;
        let outcome = task.run_with(&bed.server, &socket, async |notes| {
            running(notes).await;
            task.abort.cancel();
        });
        assert_eq!(outcome.await.err(), Some(ExecuteError::Aborted { stuck: false }));
        assert_eq!(bed.get("queue").await?, json!({"queue_running": [], "queue_pending": []}));
        Ok(())
    })
}

#[test]
fn others_that_interrupt_or_delete_are_noticed() -> Result<()> {
    on_comfyui(async |bed| {
        let socket = Socket::connect(bed.base()).await?;
        let task = Try::new(busy())?;
        let outcome = task.run_with(&bed.server, &socket, async |notes| {
            running(notes).await;
            let _ = bed.post("interrupt", &json!({})).await;
        });
        assert_eq!(outcome.await?.history.outcome(), ExecutionOutcome::Interrupted);

        let mut ears = Ears::open(bed).await?;
        let other = bed.prompt(&ears, &busy()).await?;
        ears.until(|heard| heard.kind() == "executing").await?;
        let task = Try::new(saved())?;
        let outcome = task.run_with(&bed.server, &socket, async |notes| {
            let id = queued(notes).await;
            let _ = bed.post("queue", &json!({"delete": [id]})).await;
            let _ = bed.post("interrupt", &json!({"prompt_id": other})).await;
        });
        assert_eq!(outcome.await.err(), Some(ExecuteError::Vanished));
        ears.until_end(&other).await?;
        Ok(())
    })
}

#[test]
fn an_error_is_an_outcome() -> Result<()> {
    on_comfyui(async |bed| {
        let socket = Socket::connect(bed.base()).await?;
        let prompt = json!({"1": image(1), "2": save("1", "../../evil")});
        let executed = Try::new(prompt)?.run(&bed.server, &socket).await?;
        let ExecutionOutcome::Failed(failure) = executed.history.outcome() else { panic!("{executed:?}") };
        assert_eq!((failure.node_id.as_str(), failure.node_type.as_str()), ("2", "SaveImage"));
        assert!(executed.nodes.contains_key("2"));
        executed.history.outcome().failure().context("a failure")?;
        Ok(())
    })
}
