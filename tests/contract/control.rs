//! Queue, interrupt, delete, history: what cancelling and cleaning up rely on.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use testbed::{wait_for, wait_for_value};
use uuid::Uuid;

use super::{
    bed::{Bed, LIMIT, on_comfyui},
    frames::{Ears, Heard, story},
    prompts::{busy, saved},
    runs::{messages, verdict},
};

/// Posts a long prompt and waits until one of its nodes runs.
async fn start_busy(bed: &Bed, ears: &mut Ears) -> Result<String> {
    let id = bed.prompt(ears, &busy()).await?;
    ears.until(|heard| heard.kind() == "executing").await?;
    Ok(id)
}

/// Since 2026 `extra_data` has the time of the post.
pub(crate) fn without_time(extra_data: &mut Value) {
    extra_data.as_object_mut().and_then(|extra| extra.remove("create_time"));
}

async fn interrupt(bed: &Bed, body: Value) -> Result<()> {
    assert_eq!(bed.post("interrupt", &body).await?.0, 200);
    Ok(())
}

#[test]
fn an_interrupt_ends_the_prompt_that_it_names() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let id = start_busy(bed, &mut ears).await?;
        interrupt(bed, json!({"prompt_id": "another"})).await?;
        let another = ears.until(|heard| heard.kind() == "executing").await?;
        assert!(!another.iter().any(|heard| heard.ends(&id)), "another prompt's id interrupts nothing");

        interrupt(bed, json!({"prompt_id": id})).await?;
        let heard = ears.until_end(&id).await?;
        let story = story(&heard);
        assert!(story.ends_with(&["execution_interrupted".into(), "executing null".into()]), "{story:?}");
        let told = heard.iter().find(|heard| heard.kind() == "execution_interrupted").map(Heard::data);
        let told = told.context("not told")?;
        assert!(
            told["node_id"].is_string() && told["node_type"].is_string() && told["executed"].is_array(),
            "{told}"
        );

        let history = bed.history(&id).await?;
        assert_eq!(verdict(&history), ("error", false));
        assert_eq!(messages(&history), ["execution_start", "execution_cached", "execution_interrupted"]);
        assert_eq!(history["outputs"], json!({}));
        Ok(())
    })
}

#[test]
fn an_interrupt_too_early_or_too_late_is_lost() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        // With nothing running, and no prompt named: the flag is cleared by the next start.
        interrupt(bed, json!({})).await?;
        let first = bed.prompt(&ears, &saved()).await?;
        ears.until_end(&first).await?;
        assert_eq!(verdict(&bed.history(&first).await?), ("success", true));

        let running = start_busy(bed, &mut ears).await?;
        let waiting = bed.prompt(&ears, &saved()).await?;
        interrupt(bed, json!({"prompt_id": waiting})).await?;
        interrupt(bed, json!({"prompt_id": first})).await?;
        interrupt(bed, json!({"prompt_id": running})).await?;
        ears.until_end(&running).await?;
        ears.until_end(&waiting).await?;
        let waited = bed.history(&waiting).await?;
        assert_eq!(verdict(&waited), ("success", true), "{waited}");

        interrupt(bed, json!({"prompt_id": waiting})).await?;
        assert_eq!(bed.history(&waiting).await?, waited, "an end stays");
        Ok(())
    })
}

#[test]
fn a_deleted_prompt_leaves_no_trace() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let running = start_busy(bed, &mut ears).await?;
        let (prompt, key) = (saved(), "secret");
        let pending = Uuid::new_v4().to_string();
        let body = json!({"prompt": prompt, "client_id": ears.client_id, "prompt_id": pending,
                          "extra_data": {"api_key_comfy_org": key}});
        assert_eq!(bed.post("prompt", &body).await?.0, 200);

        let queue = bed.get("queue").await?;
        assert_eq!(queue["queue_running"][0][1], running.as_str());
        let mut item = queue["queue_pending"][0].as_array().context("no item")?.clone();
        without_time(&mut item[3]);
        let extra = if bed.is_of_2026() {
            json!({"client_id": ears.client_id})
        } else {
            json!({"api_key_comfy_org": key, "client_id": ears.client_id})
        };
        assert_eq!(
            Value::Array(item[1..].to_vec()),
            json!([pending, prompt, extra, ["2"]]),
            "keys are visible"
        );
        let remaining = bed.get("prompt").await?;
        assert_eq!(remaining, json!({"exec_info": {"queue_remaining": 2}}));

        // Neither one that runs nor one that is unknown is deleted.
        let delete = json!({"delete": [running, "another", pending]});
        assert_eq!(bed.post("queue", &delete).await?.0, 200);
        let queue = bed.get("queue").await?;
        assert_eq!((&queue["queue_running"][0][1], &queue["queue_pending"]), (&json!(running), &json!([])));

        interrupt(bed, json!({"prompt_id": running})).await?;
        let mut heard = ears.until_end(&running).await?;
        heard.extend(ears.so_far().await?);
        assert!(
            !heard.iter().any(|heard| heard.data()["prompt_id"] == pending.as_str()),
            "{:?}",
            story(&heard)
        );
        assert_eq!(bed.history(&pending).await?, Value::Null);
        Ok(())
    })
}

#[test]
fn clear_empties_the_queue_and_front_goes_first() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let running = start_busy(bed, &mut ears).await?;
        let cleared = bed.prompt(&ears, &saved()).await?;
        assert_eq!(bed.post("queue", &json!({"clear": true})).await?.0, 200);
        assert_eq!(bed.get("queue").await?["queue_pending"], json!([]));

        let normal = bed.prompt(&ears, &saved()).await?;
        let first = Uuid::new_v4().to_string();
        let body = json!({"prompt": saved(), "client_id": ears.client_id, "prompt_id": first, "front": true});
        assert_eq!(bed.post("prompt", &body).await?.0, 200);
        interrupt(bed, json!({"prompt_id": running})).await?;
        ears.until_end(&running).await?;
        let before = ears.until_end(&normal).await?;
        assert!(before.iter().any(|heard| heard.ends(&first)), "{:?}", story(&before));
        assert_eq!(bed.history(&cleared).await?, Value::Null);
        Ok(())
    })
}

#[test]
fn history_is_by_id_and_can_be_deleted() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let unknown = Uuid::new_v4().to_string();
        assert_eq!(bed.get(&format!("history/{unknown}")).await?, json!({}));
        let mut ids = Vec::new();
        for _ in 0..3 {
            let id = bed.prompt(&ears, &saved()).await?;
            ears.until_end(&id).await?;
            ids.push(id);
        }
        let newest = bed.get("history?max_items=2").await?;
        let keys = newest.as_object().context("no object")?.keys().collect::<Vec<_>>();
        assert_eq!(keys, ids[1..].iter().collect::<Vec<_>>());

        assert_eq!(bed.post("history", &json!({"delete": [ids[0], unknown]})).await?.0, 200);
        assert_eq!(bed.history(&ids[0]).await?, Value::Null);
        assert!(bed.history(&ids[1]).await?.is_object());
        assert_eq!(bed.post("history", &json!({"clear": true})).await?.0, 200);
        assert_eq!(bed.get("history").await?, json!({}));
        Ok(())
    })
}

#[test]
fn history_hides_the_keys_that_the_queue_shows() -> Result<()> {
    on_comfyui(async |bed| {
        let id = Uuid::new_v4().to_string();
        let body = json!({"prompt": saved(), "prompt_id": id,
            "extra_data": {"api_key_comfy_org": "a", "auth_token_comfy_org": "b", "mine": 1}});
        assert_eq!(bed.post("prompt", &body).await?.0, 200);
        let history = wait_for_value("the history", LIMIT, || async {
            bed.history(&id).await.ok().filter(Value::is_object)
        });
        let mut extra = history.await?["prompt"][3].take();
        without_time(&mut extra);
        assert_eq!(extra, json!({"mine": 1}));
        Ok(())
    })
}

#[test]
fn our_client_finds_a_prompt_wherever_it_is() -> Result<()> {
    use connector::comfy::{PromptId, PromptPost};
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let running = start_busy(bed, &mut ears).await?;
        let (client, prompt_id) = (bed.client(), PromptId::random());
        let prompt = contract::prompt::prompt_from_value(saved())?;
        let post =
            PromptPost { prompt: &prompt, prompt_id, client_id: &ears.client_id, extra_data: json!({}) };
        assert_eq!(client.post_prompt(&post).await?.node_errors, None);
        let place =
            || async { client.queue_place(prompt_id).await.ok().flatten().map(|place| format!("{place:?}")) };
        assert_eq!(place().await.as_deref(), Some("Pending"));
        assert!(client.history(prompt_id).await?.is_none());
        interrupt(bed, json!({"prompt_id": running})).await?;
        ears.until_end(&running).await?;
        ears.until_end(&prompt_id.to_string()).await?;
        assert_eq!(place().await, None);
        assert!(client.history(prompt_id).await?.is_some());
        client.delete_history(prompt_id).await?;
        assert!(client.history(prompt_id).await?.is_none());
        // Deleting and interrupting what is gone is no error.
        client.delete_pending(prompt_id).await?;
        client.interrupt(prompt_id).await?;
        client.delete_history(prompt_id).await?;
        wait_for("an idle queue", LIMIT, || async {
            bed.get("prompt").await.is_ok_and(|left| left["exec_info"]["queue_remaining"] == 0)
        })
        .await
    })
}
