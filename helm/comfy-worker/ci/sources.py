"""The chart beside the worker's source and its own README: settings, broker objects, the table of values."""

import json
import re

import yaml

BEGIN, END = "<!-- values -->", "<!-- /values -->"


def config_schema(source):
    """What values.schema.json says of config: the settings of src/config/settings.rs, and the form of each."""
    found = re.findall(
        r'\bsetting\(\s*"([a-z0-9_]+)\.([a-z0-9_]+)"(.*?)\)(?:\.holding\(Form::(\w+)\))?,\n', source, re.S
    )
    counted = len(re.findall(r'\bsetting\(\s*"', source))
    if len(found) != counted:
        raise ValueError(
            f"src/config/settings.rs is written in a way not understood here: {len(found)} settings read of {counted}"
        )
    definitions = {"List": "listSetting", "Pairs": "pairsSetting"}
    sections = {}
    for section, key, _, form in found:
        entry = sections.setdefault(section, {"type": "object", "additionalProperties": False, "properties": {}})
        entry["properties"][key] = {"$ref": f"#/definitions/{definitions.get(form, 'setting')}"}
    return {"type": "object", "additionalProperties": False, "properties": sections}


def setting_problems(source, schema):
    wanted, made = config_schema(source), schema["properties"]["config"]
    if wanted == made:
        return []
    keys = lambda config: {
        f"{name}.{key}" for name, section in config["properties"].items() for key in section["properties"]
    }
    known, offered = keys(wanted), keys(made)
    found = [f"config.{key} is no setting of src/config/settings.rs" for key in sorted(offered - known)]
    found += [f"the setting {key} is missing under config" for key in sorted(known - offered)]
    return (found or ["the form of a setting differs"]) + ["scripts/check-helm --update writes values.schema.json"]


def topology_problems(source, definitions):
    """files/rabbitmq-definitions.json beside src/queue/topology.rs and the defaults of the settings."""
    code, defaults = source
    default = lambda key: re.search(rf'"{re.escape(key)}",\s*"([^"]*)"', defaults)[1]
    dead_exchange = re.search(r'const DEAD_EXCHANGE: &str = "([^"]+)"', code)[1]
    jobs = default("amqp.queue")
    consumer_timeout = int(re.search(r"const CONSUMER_TIMEOUT_MS: i64 = ([\d_]+);", code)[1].replace("_", ""))
    names = {
        name: re.search(rf'fn {name}_queue.*?format!\("\{{queue\}}([^"]*)"\)', code, re.S)[1]
        for name in ("dead", "notices", "later")
    }
    dead, notices, later = (jobs + names[name] for name in ("dead", "notices", "later"))

    def arguments(text):
        table = dict(re.findall(r'\("(x-[a-z-]+)", text\(([^)]+)\)\)', text))
        table.update(re.findall(r'\("(x-[a-z-]+)", AMQPValue::LongLongInt\(([\w.]+(?:\(\))?)\)', text))
        read = {
            "DEAD_EXCHANGE": dead_exchange,
            "&config.queue": jobs,
            "config.delivery_limit.into()": int(default("amqp.delivery_limit")),
        }
        return {
            key: (
                read[value]
                if value in read
                else int(value.replace("_", "")) if value[0].isdigit() else value.strip('"')
            )
            for key, value in table.items()
        }

    body = lambda name: re.search(rf"fn {name}\(.*?\n}}\n", code, re.S)[0]
    expected_queues = {
        jobs: arguments(body("job_queue_arguments")) | {"x-consumer-timeout": consumer_timeout},
        dead: arguments(re.search(r"topology\.queue\(&dead,.*?;", code)[0]),
        notices: arguments(body("notices_queue_arguments")),
        later: arguments(body("later_queue_arguments")),
    }
    events, control = default("amqp.events_exchange"), default("amqp.control_exchange")
    kind = lambda what: re.search(rf"topology\.exchange\({what}, ExchangeKind::(\w+)", code)[1].lower()
    expected_exchanges = {
        dead_exchange: kind("DEAD_EXCHANGE"),
        events: kind("&config.events_exchange"),
        control: kind("&config.control_exchange"),
    }
    bound = {
        {"dead": dead, "notices": notices}[queue]
        for queue in re.findall(r"topology\.bind\(&(\w+), DEAD_EXCHANGE, &config.queue\)", code)
    }
    expected_bindings = {(dead_exchange, queue, jobs) for queue in bound}

    made_queues = {queue["name"]: queue["arguments"] for queue in definitions["queues"]}
    made_exchanges = {exchange["name"]: exchange["type"] for exchange in definitions["exchanges"]}
    made_bindings = {(b["source"], b["destination"], b["routing_key"]) for b in definitions["bindings"]}
    pairs = (
        ("queues", expected_queues, made_queues),
        ("exchanges", expected_exchanges, made_exchanges),
        ("bindings", expected_bindings, made_bindings),
    )
    found = [
        f"{what}: the worker declares {wanted}, the file has {made}" for what, wanted, made in pairs if wanted != made
    ]
    durable = all(
        item["durable"] and not item["auto_delete"] for item in definitions["queues"] + definitions["exchanges"]
    )
    if not durable:
        found.append("a queue or exchange is not durable")
    policy = definitions["policies"][0]
    if not re.fullmatch(policy["pattern"], jobs) or policy["definition"].get("consumer-timeout", 0) <= 3_600_000:
        found.append(
            "the policy does not give the queue of jobs a consumer timeout above job.timeout's default, one hour"
        )
    return found


def values_table(text):
    """The rows of README.md, from the comments of values.yaml."""
    rows, path, comment = [], [], None
    lines = text.splitlines()
    for line in lines:
        stripped = line.strip()
        if stripped.startswith("# -- "):
            comment = stripped[5:]
            continue
        match = re.match(r"( *)([A-Za-z]+):", line)
        if not match:
            continue
        depth = len(match[1]) // 2
        path = path[:depth] + [match[2]]
        if comment:
            value = yaml.safe_load(text)
            for key in path:
                value = value[key]
            shown = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
            shown = "see values.yaml" if len(shown) > 60 else f"`{shown}`" if shown else ""
            rows.append((".".join(path), shown.replace("|", "\\|"), comment.replace("|", "\\|")))
            comment = None
    return "| value | default | what it does |\n|---|---|---|\n" + "".join(
        f"| `{key}` | {shown} | {says} |\n" for key, shown, says in rows
    )


def undocumented(text):
    """Values without a comment, and above them none."""
    documented = set(re.findall(r"^\| `([^`]+)` ", values_table(text), re.M))
    found = []

    def walk(value, path):
        if ".".join(path) in documented:
            return
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, [*path, key])
        else:
            found.append(f"values.yaml: {'.'.join(path)} has no comment that starts with '# -- '")

    walk(yaml.safe_load(text), [])
    return found


def first_command(readme):
    """The README's first shell block, without comments."""
    block = re.search(r"```sh\n(.*?)```", readme, re.S)
    return "\n".join(line for line in block[1].splitlines() if not line.startswith("#")) if block else ""
