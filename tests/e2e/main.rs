//! A job's life from its publisher's side: real AMQP, the S3 protocol, a real Chromium with the real
//! frontend, and `comfy-worker` as a real process.
//!
//! Three workers are shared. `any` runs the ComfyUI of the environment (the real one at `COMFYUI_DIR`,
//! else the stand-in); `standin` always runs the stand-in, for what a real one cannot be told to do; so does
//! `web`, which reads from a web server too.
//! A test has its worker for itself while it runs. After the last test all are drained: they must
//! end well, leave no process and no file, and empty queues.

mod answer;
mod bench;
mod commands;
mod contract;
mod errors;
mod faults;
mod hostile;
mod inputs;
mod jobs;
mod misdeeds;
mod models;
mod outputs;
mod picture;
mod prompts;
mod publisher;
mod refusals;
mod repeat;
mod suite;
mod web;
mod website;

use std::{process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Failed, Trial};

use suite::Suite;

/// One trial for each `module::function`; each gets the suite.
macro_rules! trials {
    ($suite:expr; $($module:ident: $($test:ident),+;)+) => {
        vec![$($({
            let suite = Arc::clone(&$suite);
            Trial::test(concat!(stringify!($module), "::", stringify!($test)), move || {
                suite.run($module::$test(&suite)).map_err(|error| Failed::from(told(&error)))
            })
        }),+),+]
    };
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let suite = match Suite::new() {
        Ok(suite) => Arc::new(suite),
        Err(error) => {
            eprintln!("{}", told(&error));
            return ExitCode::FAILURE;
        }
    };
    let trials = trials![suite;
        jobs: ui_workflow_with_an_s3_picture, prompt_with_a_data_uri, workflow_by_its_address,
            outputs_elsewhere, runpod_body, nobody_waits, progress_and_previews;
        inputs: literals, named_objects, two_files_of_one_name, nodes_inside_a_subgraph, placed_files;
        repeat: same_prompt_again, linked_prefix_again, one_job_published_twice, a_finished_job_again,
            another_body_under_the_same_id;
        outputs: a_batch_in_a_subfolder, temp_files_when_asked_for, texts, animations, video_and_latent,
            websocket_pictures, remembered_websocket_pictures, presigned_links, any_key;
        refusals: malformed_bodies, malformed_and_nobody_to_tell, fields, addresses, missing_objects,
            foreign_places, others_places, checksums, sizes, schemes;
        errors: refused_prompts, dropped_outputs, node_exceptions, unknown_nodes, deadlines;
        faults: out_of_memory, hanging_nodes, nodes_that_ignore_an_interrupt, crashes, lost_devices,
            failures_of_two_kinds;
        hostile: names, places, bodies, urls;
        misdeeds: files_that_are_not_there, files_that_lead_out, strange_names;
        web: allowed_hosts, broken_transfers, other_hosts, refusals;
        models: fetched_once, gone_on_with, a_killed_worker, least_recently_used;
        commands: submit_and_wait, submit_a_job_that_fails, run_without_services, pictures_open_again, convert_many, check_all;
    ];
    let conclusion = libtest_mimic::run(&arguments, trials);
    match suite.close(conclusion.has_failed()) {
        Ok(()) => conclusion.exit_code(),
        Err(error) => {
            eprintln!("after the last test: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and what led to it, a line each; no backtrace.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
}
