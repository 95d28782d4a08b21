"""Dashboard and alerts: metrics that exist, queries that parse, a dashboard that file provisioning takes."""

import json
import re

import promql_parser

# Metrics of others, by who exports them.
FOREIGN = re.compile(
    r"""
    rabbitmq(_detailed)?_queue_messages_(ready|unacked)  # RabbitMQ's Prometheus plugin, by queue
    | kube_(pod|job)_\w+                                 # kube-state-metrics
    | kubelet_volume_stats_(available|capacity)_bytes    # the kubelet
    """,
    re.VERBOSE,
)
NAME = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*\{|__name__=~\"([^\"]+)\"")
# A name in matcher patterns such as rabbitmq(_detailed)?_queue_messages_ready.
OPTIONAL = re.compile(r"\((\w+)\)\?")


# Labels that the scrape gives, and the histograms' own.
SCRAPED = {"job", "instance", "pod", "namespace", "le"}
MATCHER = re.compile(r'(\w+)\s*(!~|=~|!=|=)\s*"((?:[^"\\]|\\.)*)"')


def documented(text):
    """The metrics of docs/metrics.md: each name with its labels, and each label with its values, or None where they are free."""
    metrics = {}
    for name, labels in re.findall(r"^\| `(comfy_worker_[a-z0-9_]+)` \| \w+ \| ([^|]*)\|", text, re.M):
        metrics[name] = {}
        for label, values in re.findall(r"`(\w+)`: ((?:[^;`]|`\w+`)*)", labels):
            words = values.strip().split(", ")
            metrics[name][label] = set(words) if all(re.fullmatch(r"[a-z_]+", word) for word in words) else None
    return metrics


def query_problems(query, metrics):
    for variable, value in (("$__rate_interval", "5m"), ("$__range", "3h"), ("${queue}", "q"), ("$queue", "q")):
        query = query.replace(variable, value)
    query = re.sub(r"\$\w+", ".*", query)
    try:
        promql_parser.parse(query)
    except ValueError as error:
        return [f"is no PromQL: {error}: {query}"]
    found = []
    names = {plain or OPTIONAL.sub(r"\1", pattern) for plain, pattern in NAME.findall(query)}
    if not names:
        found.append(f"names no metric: {query}")
    for name in sorted(names):
        if metrics and not (_base(name, metrics) or FOREIGN.fullmatch(name)):
            found.append(f"{name} is no metric of docs/metrics.md, nor of those that others export")
    return found + _label_problems(query, metrics)


def _base(name, metrics):
    """The documented metric that a series belongs to."""
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    return name if name in metrics else base if base in metrics else None


def _label_problems(query, metrics):
    found = []
    for name, matchers in re.findall(r"(comfy_worker_\w+)\{([^}]*)\}", query):
        labels = metrics.get(_base(name, metrics), {})
        for label, _, values in MATCHER.findall(matchers):
            if label in SCRAPED or not labels and not metrics:
                continue
            if label not in labels:
                found.append(f"{name} has no label {label}")
            elif labels[label] is not None:
                found += [
                    f"{name}: {label} is never {value}" for value in values.split("|") if value not in labels[label]
                ]
    return found


def dashboard_problems(text, metrics):
    try:
        dashboard = json.loads(text)
    except ValueError as error:
        return [f"is no JSON: {error}"]
    found = []
    if dashboard.get("uid") != "comfy-worker" or dashboard.get("id") is not None or "__inputs" in dashboard:
        found.append("for file provisioning: uid comfy-worker, id null, no __inputs")
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    if variables.get("datasource", {}).get("type") != "datasource":
        found.append("has no variable datasource")
    for variable in variables.values():
        if variable["type"] == "query":
            inner = re.fullmatch(r"label_values\((.*), \w+\)", variable["definition"])
            problems = (
                query_problems(inner[1] if "{" in inner[1] else inner[1] + "{}", metrics)
                if inner
                else ["not understood"]
            )
            found += [f"variable {variable['name']}: {problem}" for problem in problems]
    ids, cells = set(), set()
    for panel in dashboard["panels"]:
        title = f"panel {panel['title']!r}"
        if panel["id"] in ids:
            found.append(f"{title}: its id is there twice")
        ids.add(panel["id"])
        grid = panel["gridPos"]
        covered = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        if covered & cells or grid["x"] + grid["w"] > 24:
            found.append(f"{title}: lies on another one, or beyond the edge")
        cells |= covered
        if panel["type"] == "row":
            continue
        if not panel.get("targets") or not panel.get("description"):
            found.append(f"{title}: has no query, or no description")
        if panel["datasource"].get("uid") != "${datasource}":
            found.append(f"{title}: does not use the variable datasource")
        references = [target["refId"] for target in panel["targets"]]
        if len(set(references)) != len(references):
            found.append(f"{title}: two queries of one refId")
        for target in panel["targets"]:
            found += [f"{title}: {problem}" for problem in query_problems(target["expr"], metrics)]
    return found


def rule_problems(objects, metrics):
    found, names = [], set()
    for item in objects:
        if item["kind"] != "PrometheusRule":
            continue
        for rule in (rule for group in item["spec"]["groups"] for rule in group["rules"]):
            if rule["alert"] in names:
                found.append(f"alert {rule['alert']}: there twice")
            names.add(rule["alert"])
            found += [f"alert {rule['alert']}: {problem}" for problem in query_problems(rule["expr"], metrics)]
    return found
