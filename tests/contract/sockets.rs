//! The websocket: greeting, negotiation, pictures, and who gets what.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use connector::comfy::events::{Event, binary_frame};
use serde_json::{Value, json};
use testbed::{wait_for, wait_for_value};
use uuid::Uuid;

use super::{
    bed::{Bed, LIMIT, on_comfyui},
    frames::{Ears, Heard, story},
    prompts::{busy, image, saved},
};

#[test]
fn the_greeting_names_the_client_and_the_queue() -> Result<()> {
    on_comfyui(async |bed| {
        for path in ["ws", "api/ws"] {
            let id = Uuid::new_v4().to_string();
            let mut ears = Ears::connect(bed, &id, path).await?;
            let first = ears.next().await?;
            let status = json!({"status": {"exec_info": {"queue_remaining": 0}}, "sid": id});
            assert_eq!((first.kind(), first.data()), ("status", &status), "{path}");
            ears.say(r#"{"type":"feature_flags","data":{"supports_preview_metadata":true}}"#).await?;
            let answer = ears.next().await?;
            assert_eq!(answer.kind(), "feature_flags");
            assert_eq!(answer.data()["supports_preview_metadata"], true);
            assert_eq!(answer.data()["max_upload_size"].as_f64(), Some(104_857_600.0));
        }
        let mut nameless = Ears::connect(bed, "", "ws").await?;
        let sid = nameless.next().await?.data()["sid"].clone();
        assert!(sid.as_str().is_some_and(|sid| sid.len() == 32), "{sid}");
        Ok(())
    })
}

#[test]
fn features_count_only_as_the_first_message() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::connect(bed, &Uuid::new_v4().to_string(), "ws").await?;
        ears.next().await?;
        ears.say(r#"{"type":"hello"}"#).await?;
        ears.say(r#"{"type":"feature_flags","data":{"supports_preview_metadata":true}}"#).await?;
        let pictures = pictures(bed, &mut ears).await?;
        assert_eq!(pictures.iter().map(event).collect::<Vec<_>>(), [Some(1), Some(1)]);
        Ok(())
    })
}

#[test]
fn pictures_carry_their_node_once_negotiated() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let id = bed.prompt(&ears, &socket_output()).await?;
        let heard = ears.until_end(&id).await?;
        let tail = story(&heard).into_iter().skip_while(|label| label != "executing \"2\"");
        let expected = [
            "executing \"2\"",
            "progress_state 1=finished 2=running",
            "binary 4",
            "progress \"2\" 0/2",
            "progress_state 1=finished 2=running",
            "binary 4",
            "progress \"2\" 1/2",
            "progress_state 1=finished 2=finished",
            "execution_success",
            "executing null",
        ];
        assert_eq!(tail.collect::<Vec<_>>(), expected);
        assert_eq!(bed.history(&id).await?["outputs"], json!({}), "they are nowhere else");
        let binary = heard.iter().find_map(|heard| match heard {
            Heard::Binary(bytes) => Some(bytes.clone()),
            Heard::Text(_) => None,
        });
        let frame = binary_frame(&binary.context("no picture")?).context("not understood")?;
        assert_eq!(frame.prompt.as_deref(), Some(id.as_str()));
        let Event::Image(image) = frame.event else { panic!("{frame:?}") };
        assert_eq!((image.node.as_deref(), image.content_type), (Some("2"), "image/png"));
        assert!(image.bytes.starts_with(b"\x89PNG\r\n\x1a\n"));
        Ok(())
    })
}

#[test]
fn pictures_come_bare_to_who_said_nothing() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::connect(bed, &Uuid::new_v4().to_string(), "ws").await?;
        for picture in pictures(bed, &mut ears).await? {
            assert_eq!(picture.get(..8), Some(&[0, 0, 0, 1, 0, 0, 0, 2][..]), "event 1, format PNG");
            assert!(picture.slice(8..).starts_with(b"\x89PNG\r\n\x1a\n"));
        }
        Ok(())
    })
}

#[test]
fn events_go_to_the_client_that_posted() -> Result<()> {
    on_comfyui(async |bed| {
        let (mut ears, mut others) = (Ears::open(bed).await?, Ears::open(bed).await?);
        let id = bed.prompt(&ears, &saved()).await?;
        ears.until_end(&id).await?;
        let heard = others.so_far().await?;
        assert!(heard.iter().all(|heard| heard.kind() == "status"), "{:?}", story(&heard));

        // Without a client: nobody gets its events, and it runs all the same.
        let id = Uuid::new_v4().to_string();
        assert_eq!(bed.post("prompt", &json!({"prompt": saved(), "prompt_id": id})).await?.0, 200);
        wait_for("its history", LIMIT, || async {
            bed.history(&id).await.is_ok_and(|entry| entry.is_object())
        })
        .await?;
        // But for one kind of frame, which then goes to everybody.
        for ears in [&mut ears, &mut others] {
            for heard in ears.so_far().await? {
                assert!(["status", "progress_state"].contains(&heard.kind()), "{}", heard.label());
            }
        }
        Ok(())
    })
}

#[test]
fn a_client_that_comes_back_hears_which_node_runs() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let id = bed.prompt(&ears, &busy()).await?;
        ears.until(|heard| heard.kind() == "executing").await?;
        let mut again = Ears::connect(bed, &ears.client_id, "ws").await?;
        assert_eq!(again.next().await?.data()["sid"], ears.client_id.as_str());
        let running = again.next().await?;
        assert_eq!(running.kind(), "executing");
        let data = running.data().as_object().context("no data")?;
        assert_eq!(data.keys().collect::<Vec<_>>(), ["node"], "no prompt_id");
        assert!(running.data()["node"].is_string());
        // The newest socket of an id gets the events.
        bed.post("interrupt", &json!({"prompt_id": id})).await?;
        again.until_end(&id).await?;
        Ok(())
    })
}

#[test]
fn the_end_of_an_old_socket_silences_the_new_one() -> Result<()> {
    on_comfyui(async |bed| {
        let old = Ears::open(bed).await?;
        let mut new = Ears::connect(bed, &old.client_id, "ws").await?;
        assert_eq!(new.next().await?.kind(), "status");
        old.close().await?;
        let id = bed.prompt(&new, &saved()).await?;
        let history = wait_for_value("its history", LIMIT, || async {
            bed.history(&id).await.ok().filter(Value::is_object)
        });
        history.await?;
        let heard = new.so_far().await?;
        assert!(
            !heard.iter().any(|heard| heard.data()["prompt_id"] == id.as_str()),
            "this race is why every connection takes a new id: {:?}",
            story(&heard)
        );
        Ok(())
    })
}

fn socket_output() -> Value {
    json!({"1": image(2), "2": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}})
}

/// The binary frames of a prompt that sends its two pictures over the websocket.
async fn pictures(bed: &Bed, ears: &mut Ears) -> Result<Vec<Bytes>> {
    let id = bed.prompt(ears, &socket_output()).await?;
    let heard = ears.until_end(&id).await?;
    let pictures = heard.into_iter().filter_map(|heard| match heard {
        Heard::Binary(bytes) => Some(bytes),
        Heard::Text(_) => None,
    });
    let pictures = pictures.collect::<Vec<_>>();
    assert_eq!(pictures.len(), 2);
    Ok(pictures)
}

fn event(picture: &Bytes) -> Option<u8> {
    picture.get(3).copied()
}
