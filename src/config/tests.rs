#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "values_tests.rs"]
mod values;

use std::time::Duration;

use super::{settings::Form, *};
use settings::{SETTINGS, find};

fn sources(file: Option<(&str, &str)>, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
    let owned = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
    };
    Sources {
        file: file.map(|(name, text)| (name.to_owned(), text.to_owned())),
        environment: owned(environment).into_iter().collect(),
        flags: owned(flags),
    }
}

fn flags(flags: &[(&str, &str)]) -> Result<Config, Mistakes> {
    Config::load(&sources(None, &[], flags))
}

fn file(name: &str, text: &str) -> Result<Config, Mistakes> {
    Config::load(&sources(Some((name, text)), &[], &[]))
}

/// The only mistake that this value of this key makes.
fn mistake(key: &str, value: &str) -> String {
    let mistakes = flags(&[(key, value)]).expect_err(&format!("{key}={value}")).0;
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert_eq!(mistakes[0].at, key);
    mistakes[0].problem.clone()
}

fn absolute(path: &str) -> std::path::PathBuf {
    std::path::absolute(path).unwrap()
}

#[test]
fn nothing_given_is_the_defaults() {
    let config = flags(&[]).unwrap();
    assert_eq!(config.comfyui.command, ["python3", "main.py"]);
    assert_eq!((config.comfyui.host.as_str(), config.comfyui.port), ("127.0.0.1", 8188));
    assert_eq!((&config.comfyui.workdir, &config.comfyui.path), (&absolute("./"), &absolute("./")));
    assert_eq!(
        (config.comfyui.boot_timeout, &config.comfyui.test_workflow),
        (Duration::from_secs(900), &None)
    );
    assert_eq!(config.browser.convert_timeout, Duration::from_secs(30));
    assert_eq!(config.amqp.address(), "amqp://127.0.0.1:5672/%2f");
    assert_eq!((config.amqp.queue.as_str(), config.amqp.declare), ("comfy.jobs", true));
    assert_eq!((config.amqp.delivery_limit, &config.amqp.results_exchange), (20, &None));
    assert_eq!(config.amqp.lookahead, Lookahead::Auto);
    assert_eq!(config.amqp.reply_to_allow, ["*"]);
    assert_eq!((&config.store.uri, config.store.path_style), (&None, false));
    assert_eq!(
        (config.inputs.allow.as_slice(), config.inputs.max_bytes),
        (["s3://".to_owned()].as_slice(), 2 << 30)
    );
    assert!(config.outputs.allow.is_empty());
    assert_eq!((config.job.timeout, config.job.max_attempts), (Duration::from_secs(3600), 3));
    assert_eq!(config.job.max_message_bytes, 16 << 20);
    assert_eq!(config.worker.grace, Duration::from_secs(25));
    let WorkerConfig { idle_exit, max_jobs, max_rss, .. } = config.worker;
    assert_eq!((idle_exit, max_jobs, max_rss), (None, None, None));
    assert_eq!(config.admin.listen, "127.0.0.1:9188".parse().ok());
    assert!(config.admin.token.is_none());
    assert_eq!((config.metrics.tenant_key, config.traces.endpoint), (None, None));
    assert_eq!((config.log.level.as_str(), config.log.format), ("", LogFormat::Auto));
}

#[test]
fn each_worker_has_a_name_of_its_own() {
    let (one, other) = (flags(&[]).unwrap().worker.id, flags(&[]).unwrap().worker.id);
    assert_ne!(one, other);
    assert!(flags(&[("worker.id", &one)]).is_ok(), "{one}");
}

#[test]
fn flags_beat_the_environment_beats_the_file_beats_the_defaults() {
    let toml = "[amqp]\nqueue = 'file'\nevents_exchange = 'file'\nresults_exchange = 'file'";
    let environment =
        [("COMFY_WORKER_AMQP_QUEUE", "environment"), ("COMFY_WORKER_AMQP_EVENTS_EXCHANGE", "environment")];
    let all = sources(Some(("c.toml", toml)), &environment, &[("amqp.queue", "flag")]);
    let amqp = Config::load(&all).unwrap().amqp;
    assert_eq!(amqp.queue, "flag");
    assert_eq!(amqp.events_exchange, "environment");
    assert_eq!(amqp.results_exchange.as_deref(), Some("file"));
    assert_eq!(amqp.delivery_limit, 20);
}

/// Every setting can be given in every way.
#[test]
fn every_setting_is_taken_from_every_layer() {
    let program = std::env::current_exe().unwrap();
    let authority = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config/authority.pem");
    for setting in SETTINGS {
        let example = match setting.key {
            "browser.executable" => program.to_str().unwrap(),
            "amqp.ca_file" => authority.to_str().unwrap(),
            _ => setting.example,
        };
        let (section, key) = setting.key.split_once('.').unwrap();
        let json = serde_json::json!({section: {key: example}}).to_string();
        let toml = format!("[{section}]\n{key} = {}", serde_json::Value::from(example));
        let layers = [
            flags(&[(setting.key, example)]),
            Config::load(&sources(None, &[(&setting.variable(), example)], &[])),
            file("c.json", &json),
            file("c.toml", &toml),
        ];
        let shown = layers.map(|config| {
            let mut config = config.unwrap_or_else(|mistakes| panic!("{}: {mistakes}", setting.key));
            if setting.key != "worker.id" {
                config.worker.id.clear();
            }
            format!("{config:?}")
        });
        assert!(shown.windows(2).all(|pair| pair[0] == pair[1]), "{}: {shown:#?}", setting.key);
    }
}

#[test]
fn the_list_of_settings_is_what_the_sections_read() {
    let files = [include_str!("sections.rs"), include_str!("connector.rs")];
    let sections: String = files.iter().flat_map(|file| file.split_whitespace()).collect();
    let calls = [".required(\"", ".optional(\""].into_iter().flat_map(|call| sections.split(call).skip(1));
    let mut read: Vec<&str> = calls.filter_map(|call| call.split('"').next()).collect();
    let mut listed: Vec<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
    read.sort_unstable();
    listed.sort_unstable();
    assert_eq!(read, listed);
}

#[test]
fn settings_are_well_described() {
    for setting in SETTINGS {
        assert!(!setting.help.is_empty() && !setting.example.is_empty(), "{}", setting.key);
        let of_that_key = SETTINGS.iter().filter(|other| other.key == setting.key).count();
        assert_eq!(of_that_key, 1, "{}", setting.key);
    }
    let url = find("amqp.reply_to_allow").unwrap();
    assert_eq!(url.variable(), "COMFY_WORKER_AMQP_REPLY_TO_ALLOW");
    assert_eq!(url.flag(), "amqp-reply-to-allow");
    assert_eq!(url.form, Form::List);
}

#[test]
fn the_originals_files_load_unchanged() {
    let load = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config").join(name);
        Config::load(&Sources::of_file(&path).unwrap()).unwrap().comfyui
    };
    let basic = load("connector-basic.json");
    assert_eq!(basic.command, ["python3", "main.py"]);
    assert_eq!((&basic.workdir, &basic.path), (&absolute("./"), &absolute("./")));
    assert_eq!((basic.host.as_str(), basic.port), ("127.0.0.1", 8188));
    assert_eq!(basic.test_workflow, Some(absolute("./").join("test_server.json")));
    assert_eq!(basic.boot_timeout, Duration::from_secs(10));

    let advanced = load("connector-advanced.json");
    assert_eq!(
        advanced.command,
        ["python3", "main.py", "--extra-model-paths-config", "extra_model_paths.yaml"]
    );
    assert_eq!(
        (&advanced.workdir, &advanced.path),
        (&absolute("/path/to/ComfyUI"), &absolute("/path/to/ComfyUI"))
    );
    // 0.0.0.0 is where ComfyUI listens, not where a client finds it.
    assert_eq!((advanced.host.as_str(), advanced.port), ("127.0.0.1", 8189));
    assert_eq!(advanced.boot_timeout, Duration::from_secs(40));
    assert_eq!(advanced.test_workflow, Some("/path/to/ComfyUI/custom_test.json".into()));

    let docker = load("connector-docker.json");
    assert_eq!(docker.command, ["python3", "main.py", "--listen", "0.0.0.0"]);
    assert_eq!(docker.host, "localhost");
    assert_eq!((docker.boot_timeout, docker.test_workflow), (Duration::from_secs(900), None));
}

#[test]
fn the_originals_file_is_checked_too() {
    let text = r#"{"API_COMMAND_LINE": null, "INITIAL_PORT": 99999, "MAX_COMFY_START_ATTEMPTS": -1,
                   "COMFY_START_ATTEMPTS_SLEEP": "x", "COMFYUI_PTH": "./"}"#;
    let mistakes = file("old.json", text).unwrap_err().to_string();
    for expected in [
        "API_COMMAND_LINE: must be a text or a number (old.json); for example: \"python3 main.py\"",
        "MAX_COMFY_START_ATTEMPTS: must be a positive number (old.json); for example: 10",
        "COMFY_START_ATTEMPTS_SLEEP: must be a positive number (old.json); for example: 1.0",
        "COMFYUI_PTH: no such setting (old.json); did you mean COMFYUI_PATH?",
        "comfyui.port: \"99999\" is no port (1-65535) (INITIAL_PORT in old.json); for example: 8188",
    ] {
        assert!(mistakes.contains(expected), "{expected}\n{mistakes}");
    }
    assert_eq!(mistakes.lines().count(), 5, "{mistakes}");
    // Half of the pair stands with the other half's default.
    let limit = |text| file("old.json", text).unwrap().comfyui.boot_timeout;
    assert_eq!(limit(r#"{"MAX_COMFY_START_ATTEMPTS": 3}"#), Duration::from_secs(3));
    assert_eq!(limit(r#"{"COMFY_START_ATTEMPTS_SLEEP": 0.25}"#), Duration::from_millis(2500));
}

#[test]
fn all_mistakes_are_told_at_once_with_key_origin_and_example() {
    let toml = "[amqp]\nqeue = 'x'\ndeclare = 'maybe'\n[store]\npath_style = [true]\n[comfyui]\nport = 70000";
    let environment = [("COMFY_WORKER_JOB_TIMEOUT", "15"), ("COMFY_WORKER_JOB_TIMEOT", "15m")];
    let flags = [("worker.grace", "soon"), ("worker.grce", "1s")];
    let mistakes = Config::load(&sources(Some(("c.toml", toml)), &environment, &flags)).unwrap_err();
    let lines: Vec<String> = mistakes.to_string().lines().map(str::to_owned).collect();
    for expected in [
        "configuration: amqp.qeue: no such setting (c.toml); did you mean amqp.queue",
        "configuration: amqp.declare: \"maybe\" is neither true nor false (c.toml); for example: false",
        "configuration: store.path_style: must be a single value (c.toml); for example: true",
        "configuration: comfyui.port: \"70000\" is no port (1-65535) (c.toml); for example: 8188",
        "configuration: job.timeout: \"15\" is no duration with a unit (variable COMFY_WORKER_JOB_TIMEOUT); for example: 15m",
        "configuration: COMFY_WORKER_JOB_TIMEOT: no such setting (variable); did you mean COMFY_WORKER_JOB_TIMEOUT",
        "configuration: worker.grace: \"soon\" is no duration with a unit (flag --worker-grace); for example: 110s",
        "configuration: worker.grce: no such setting (flag); did you mean worker.grace",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(expected)), "{expected}\n{mistakes}");
    }
    assert_eq!(lines.len(), 8, "{mistakes}");
}

#[test]
fn broken_files_are_named_with_the_line_and_without_their_content() {
    let one = |name: &str, text: &str| file(name, text).unwrap_err().to_string();
    let broken = one("c.toml", "[amqp]\nurl = 'amqp://u:hunter2@h'\nqueue = = 'hunter2'");
    assert!(
        broken.starts_with("configuration: c.toml: no TOML: ") && broken.ends_with("at line 3"),
        "{broken}"
    );
    assert!(!broken.contains("hunter2"), "{broken}");
    assert!(one("c.json", "{\"a\": }").contains("line 1 column 7"));
    assert!(one("c.json", "[amqp]\nqueue = 'x'").contains("TOML files end in .toml"));
    assert!(one("c.json", "[]").contains("must be a table of sections"));
    assert!(one("c.json", "{\"amqp\": 3}").contains("amqp: must be a section"));
    let deep = "[".repeat(100_000);
    assert!(one("c.json", &deep).contains("recursion limit"));
    assert!(file("c.toml", &format!("a = {deep}")).is_err());
    assert!(one("c.toml", "[worker]\ngrace = 1979-05-27").contains("worker.grace: must be a single value"));
}

#[test]
fn a_missing_file_is_named() {
    let error = Sources::of_process(Some(Path::new("no/such.toml")), Vec::new()).err().unwrap().to_string();
    assert!(error.starts_with("configuration: --config: cannot read no/such.toml: No such file"), "{error}");
}

#[test]
fn an_empty_file_and_nulls_change_nothing() {
    assert!(file("c.toml", "").is_ok());
    assert!(file("c.json", "{}").is_ok());
    assert_eq!(file("c.json", r#"{"amqp": {"queue": null}}"#).unwrap().amqp.queue, "comfy.jobs");
}

#[test]
fn files_hold_numbers_lists_and_tables() {
    let toml = r#"
        [comfyui]
        command = ["python3", "main.py", "--note", "two words"]
        port = 9000
        env = { CUDA_VISIBLE_DEVICES = "0,1", N = 3, WIN = 'a\b', EQ = "a=b" }
        [browser]
        args = ["--a=b c", "--d"]
        [inputs]
        allow = ["s3://inputs/", "s3://odd,name-is-refused/"]
    "#;
    let refused = file("c.toml", toml).unwrap_err().to_string();
    assert!(refused.contains("inputs.allow") && refused.contains("odd,name-is-refused"), "{refused}");
    let config = file("c.toml", &toml.replace("s3://odd,name-is-refused/", "s3://inputs/a,b/")).unwrap();
    assert_eq!(config.comfyui.command, ["python3", "main.py", "--note", "two words"]);
    assert_eq!(config.comfyui.port, 9000);
    let env = &config.comfyui.env.0;
    assert_eq!(env["CUDA_VISIBLE_DEVICES"], "0,1");
    assert_eq!((env["N"].as_str(), env["WIN"].as_str(), env["EQ"].as_str()), ("3", r"a\b", "a=b"));
    assert_eq!(config.browser.args, ["--a=b c", "--d"]);
    assert_eq!(config.inputs.allow, ["s3://inputs/", "s3://inputs/a,b/"]);
    // In a variable the same comma is written with a backslash.
    let config = flags(&[("comfyui.env", r"CUDA_VISIBLE_DEVICES=0\,1, B=a\b,C=a\\b")]).unwrap();
    let env = &config.comfyui.env.0;
    assert_eq!(
        (env["CUDA_VISIBLE_DEVICES"].as_str(), env["B"].as_str(), env["C"].as_str()),
        ("0,1", r"a\b", r"a\b")
    );
    let list_for_text = file("c.toml", "[amqp]\nqueue = ['a', 'b']").unwrap_err().to_string();
    assert!(list_for_text.contains("amqp.queue: must be a single value"), "{list_for_text}");
}

#[test]
fn empty_means_none_where_there_can_be_none() {
    let config = flags(&[("store.uri", ""), ("amqp.results_exchange", " "), ("inputs.allow", "")]).unwrap();
    assert_eq!((config.store.uri, config.amqp.results_exchange), (None, None));
    assert!(config.inputs.allow.is_empty());
    for key in ["amqp.queue", "amqp.url", "comfyui.port", "job.timeout", "admin.listen", "inputs.max_bytes"] {
        assert!(mistake(key, "").starts_with("must not be empty (flag --"), "{key}");
    }
    assert!(mistake("comfyui.command", "").starts_with("must name a program"));
}

#[test]
fn secrets_are_in_no_message_and_no_debug_text() {
    let config = flags(&[
        ("amqp.url", "amqps://worker:hunter2@broker.example:5671/prod"),
        ("amqp.management_url", "https://worker:hunter2@broker.example:15671"),
        ("comfyui.env", "HF_TOKEN=hunter2"),
    ])
    .unwrap();
    assert_eq!(config.amqp.address(), "amqps://broker.example:5671/prod");
    assert!(!format!("{config:?} {:?} {:?}", config.amqp, config.comfyui).contains("hunter2"));
    assert!(format!("{config:?}").contains("HF_TOKEN"));
    for (key, value) in [
        ("amqp.url", "http://worker:hunter2@broker"),
        ("amqp.url", "hunter2"),
        ("amqp.url", "amqp:///hunter2"),
        ("amqp.management_url", "amqp://worker:hunter2@broker"),
        ("comfyui.env", "HF_TOKEN=x,hunter2"),
        ("store.endpoint", "http://key:hunter2@host"),
    ] {
        assert!(!mistake(key, value).contains("hunter2"), "{key} {value}");
    }
}

#[test]
fn kubernetes_service_links_are_no_settings() {
    let links = [
        ("COMFY_WORKER_SERVICE_HOST", "10.0.0.1"),
        ("COMFY_WORKER_SERVICE_PORT", "9188"),
        ("COMFY_WORKER_SERVICE_PORT_METRICS", "9188"),
        ("COMFY_WORKER_PORT", "tcp://10.0.0.1:9188"),
        ("COMFY_WORKER_PORT_9188_TCP", "tcp://10.0.0.1:9188"),
        ("COMFY_WORKER_PORT_9188_TCP_PROTO", "tcp"),
        ("COMFY_WORKER_METRICS_PORT_9188_TCP_ADDR", "10.0.0.1"),
        ("COMFY_WORKER_CONFIG", "/etc/comfy-worker.toml"),
        ("COMFY_WORKERS", "other program"),
    ];
    assert!(Config::load(&sources(None, &links, &[])).is_ok());
    for (variable, value) in [("COMFY_WORKER_PORT", "8188"), ("COMFY_WORKER_COMFYUI_PORTS", "8188")] {
        assert!(Config::load(&sources(None, &[(variable, value)], &[])).is_err(), "{variable}");
    }
}
