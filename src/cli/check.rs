//! `comfy-worker check`: a line for each part, what is wrong and how to fix it.

use serde_json::json;

use super::{Context, Failed, display::Display, print};
use crate::{
    app::store_uri,
    queue::{Broker, ConsumerTimeout, QueueError},
    store::{ObjectStore, Stores},
};
use connector::{ComfyConnector, ConnectorError};

struct CheckLine {
    part: &'static str,
    outcome: Result<String, Wrong>,
    /// What works today and may not tomorrow.
    warnings: Vec<String>,
}

impl CheckLine {
    fn new(part: &'static str, outcome: Outcome) -> Self {
        Self { part, outcome, warnings: Vec::new() }
    }
}

struct Wrong {
    reason: String,
    misconfigured: bool,
}

impl Wrong {
    fn environment(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), misconfigured: false }
    }

    fn configuration(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), misconfigured: true }
    }
}

pub(super) async fn check(context: Context) -> Result<(), Failed> {
    let Context { config, json } = context;
    let display = Display::new("checking broker, bucket, ComfyUI and browser");
    let broker = async {
        match Broker::connect(&config.amqp, &config.worker.id).await {
            Ok(broker) => {
                let findings = broker.compatibility(config.job.timeout).await;
                broker.close().await;
                let well = format!("{}, queue {}", config.amqp.address(), config.amqp.queue);
                let (outcome, warning) = match findings.consumer_timeout {
                    ConsumerTimeout::Fits => (Ok(well), None),
                    ConsumerTimeout::TooShort(reason) => (Err(Wrong::configuration(reason)), None),
                    ConsumerTimeout::Unknown(warning) => (Ok(well), warning),
                };
                let warnings = warning.into_iter().chain(findings.slow_returns).collect();
                CheckLine { warnings, ..CheckLine::new("broker", outcome) }
            }
            Err(error @ QueueError::Misconfigured(_)) => {
                CheckLine::new("broker", Err(Wrong::configuration(error)))
            }
            Err(error) => {
                let wrong = Wrong::environment(format!("{error}; is the broker up, is amqp.url right?"));
                CheckLine::new("broker", Err(wrong))
            }
        }
    };
    let store = async {
        let uri = store_uri(&config).map_err(Wrong::configuration)?;
        let stores = Stores::new(&config.store).await;
        match stores.probe(&uri).await {
            Ok(()) => Ok(format!("{uri}: written, read, create-once honoured, removed")),
            Err(crate::store::StoreError::Unavailable { reason, .. }) => {
                Err(Wrong::environment(format!("{uri}: {reason}; is store.endpoint right?")))
            }
            Err(error) => Err(Wrong::configuration(error)),
        }
    };
    let parts = async {
        let created = ComfyConnector::create(config.connector().await).await;
        let lines = comfyui_and_browser(created).await;
        ComfyConnector::shutdown_live().await;
        lines
    };
    let interrupted = tokio::signal::ctrl_c();
    let (broker, store, (comfyui, browser)) = tokio::select! {
        all = async { tokio::join!(broker, store, parts) } => all,
        _ = interrupted => {
            ComfyConnector::shutdown_live().await;
            return Err(Failed::Environment("interrupted".to_owned()));
        }
    };
    display.finish();
    report(
        &[
            CheckLine::new("configuration", Ok("every value is valid".to_owned())),
            CheckLine::new("comfyui", comfyui),
            CheckLine::new("browser", browser),
            broker,
            CheckLine::new("bucket", store),
        ],
        json,
    )
}

type Outcome = Result<String, Wrong>;

async fn comfyui_and_browser(created: Result<ComfyConnector, ConnectorError>) -> (Outcome, Outcome) {
    let unknown = || Err(Wrong::environment("not checked: ComfyUI is not running"));
    let connector = match created {
        Ok(connector) => connector,
        Err(error @ ConnectorError::Convert(_)) => {
            let unknown = Err(Wrong::environment("not checked: the browser failed beside it"));
            return (unknown, Err(Wrong::environment(error)));
        }
        Err(error) if error.is_misconfiguration() => return (Err(Wrong::configuration(error)), unknown()),
        Err(error) => return (Err(Wrong::environment(error)), unknown()),
    };
    match connector.engine().await {
        Ok(engine) => {
            let version = engine.server().version().to_owned();
            (Ok(format!("{version}, self-test passed")), Ok(engine.browser().version().await))
        }
        Err(error) => (Err(Wrong::environment(error)), unknown()),
    }
}

fn report(lines: &[CheckLine], as_json: bool) -> Result<(), Failed> {
    for CheckLine { part, outcome, warnings } in lines {
        let (ok, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(wrong) => (false, &wrong.reason),
        };
        if as_json {
            let mut line = json!({"part": part, "ok": ok, "detail": detail});
            if !warnings.is_empty() {
                line["warning"] = json!(warnings.join("; "));
            }
            print::result(line);
        } else {
            print::result(format!("{:<4} {part:<14} {detail}", if ok { "ok" } else { "FAIL" }));
            for warning in warnings {
                print::result(format!("warn {part:<14} {warning}"));
            }
        }
    }
    let wrong: Vec<&Wrong> = lines.iter().filter_map(|line| line.outcome.as_ref().err()).collect();
    match wrong.len() {
        0 => Ok(()),
        count if wrong.iter().any(|wrong| wrong.misconfigured) => {
            Err(Failed::Usage(format!("{count} of {} parts are not well", lines.len())))
        }
        count => Err(Failed::Environment(format!("{count} of {} parts are not well", lines.len()))),
    }
}
