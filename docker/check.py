"""What linters do not see in this folder: names, paths, pins, ports and times that must agree.

Run by scripts/check-docker. Says everything that is wrong, a line each, and exits with 1.
"""

import fnmatch
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
# src/lifecycle.rs, STUCK_AFTER: from the interrupt of what runs to the end of a drain that is stuck.
STUCK_AFTER_S = 20
problems: list[str] = []


def wrong(where: str, what: str) -> None:
    problems.append(f"{where}: {what}")


def text(path: str) -> str:
    return (ROOT / path).read_text()


def seconds(duration: str) -> int:
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
    parts = re.findall(r"(\d+)\s*(ms|s|m|h|d)", duration)
    if not parts or re.sub(r"(\d+)\s*(ms|s|m|h|d)\s*", "", duration):
        raise ValueError(f"{duration!r} is no duration")
    return int(sum(int(number) * units[unit] for number, unit in parts))


def interpolated(value: str, environment: dict[str, str] | None = None) -> str:
    """As Compose and the Dockerfile do it: ${NAME}, ${NAME:-default}, $NAME, and $$ for a dollar."""
    known = environment or {}

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name = match["braced"] or match["bare"]
        return known.get(name, match["default"] or "")

    return re.sub(r"\$\$|\$\{(?P<braced>\w+)(?::?-(?P<default>[^}]*))?\}|\$(?P<bare>[A-Za-z_]\w*)", replace, value)


def everywhere(value: object) -> object:
    if isinstance(value, dict):
        return {key: everywhere(item) for key, item in value.items()}
    if isinstance(value, list):
        return [everywhere(item) for item in value]
    return interpolated(value) if isinstance(value, str) else value


def settings() -> dict[str, str]:
    """Key and default of each setting."""
    found = re.findall(r'setting\(\s*"([a-z_]+\.[a-z_]+)",\s*"((?:[^"\\]|\\.)*)"', text("src/config/settings.rs"))
    if len(found) < 20:
        wrong("src/config/settings.rs", f"only {len(found)} settings found: its form has changed, change docker/check.py")
    return dict(found)


def is_pinned(image: str) -> bool:
    name, _, tag = image.rpartition("/")[2].partition(":")
    return bool(name) and bool(re.search(r"\d+\.\d+", tag)) and "latest" not in tag


def check_variables(known: dict[str, str]) -> None:
    """A variable that is no setting would be refused by the worker, or by nobody."""
    variables = {"COMFY_WORKER_" + key.replace(".", "_").upper() for key in known} | {"COMFY_WORKER_CONFIG"}
    names = ["Dockerfile", "compose.yaml", "compose.gpu.yaml", "healthcheck.py", "README.md"]
    for name in names:
        for variable in sorted(set(re.findall(r"COMFY_WORKER_[A-Z0-9_]+", text(f"docker/{name}")))):
            if variable not in variables:
                wrong(f"docker/{name}", f"{variable} is no setting of src/config/settings.rs: fix its name")


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a path into the build's context: the last pattern that matches decides."""
    sent = True
    for line in text(".dockerignore").splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        keep, pattern = line.startswith("!"), line.lstrip("!").rstrip("/")
        parents = ["/".join(path.split("/")[: depth + 1]) for depth in range(path.count("/") + 1)]
        if any(fnmatch.fnmatch(parent, pattern.removeprefix("**/")) for parent in parents):
            sent = keep
    return sent


def check_dockerfile() -> dict[str, str]:
    where = "docker/Dockerfile"
    joined = re.sub(r"\\\n\s*(?:#.*\n\s*)*", " ", text(where))
    arguments: dict[str, str] = {}
    stages: set[str] = set()
    for line in joined.splitlines():
        words = [word for word in line.split() if not word.startswith("--")]
        copied_from = re.search(r"--from=(\S+)", line)
        match words:
            case ["ARG", argument] if "=" in argument:
                name, _, default = argument.partition("=")
                if arguments.setdefault(name, default) != default:
                    wrong(where, f"ARG {name} has two defaults: give it one")
            case ["FROM", image, *rest]:
                image = interpolated(image, arguments)
                if image not in stages | {"scratch"} and not is_pinned(image):
                    wrong(where, f"FROM {image}: name a version")
                stages.update(rest[1:])
            case ["COPY", *paths] if copied_from:
                if copied_from[1] not in stages:
                    wrong(where, f"{line.strip()}: there is no stage {copied_from[1]} above")
            case ["COPY", *sources, _]:
                for source in (interpolated(source, arguments) for source in sources):
                    if not (ROOT / source).exists():
                        wrong(where, f"COPY {source}: there is no such path")
                    elif not is_sent(source):
                        wrong(where, f"COPY {source}: .dockerignore leaves it out")
    for package in re.findall(r"pip install (?:--\S+ )*\"?([^\s\"]+)", joined):
        if "==" not in package:
            wrong(where, f"pip install {package}: name a version")
    if "worker" not in stages or "comfyui" not in stages:
        wrong(where, "the targets worker and comfyui must be there")
    rust = re.search(r'^rust-version = "(.*)"', text("Cargo.toml"), re.M)[1]
    if f":{rust}" not in arguments["RUST_IMAGE"]:
        wrong(where, f"RUST_IMAGE is {arguments['RUST_IMAGE']}, Cargo.toml says rust-version {rust}")
    return arguments


def check_readme(arguments: dict[str, str]) -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| `([^`]*)` \|", text("docker/README.md"), re.M))
    arguments = {name: default for name, default in arguments.items() if name != "TARGETPLATFORM"}
    for name in sorted(rows.keys() | arguments.keys()):
        if rows.get(name) != arguments.get(name):
            wrong("docker/README.md", f"build argument {name}: the table has {rows.get(name)}, the Dockerfile {arguments.get(name)}")


def check_compose(known: dict[str, str]) -> None:
    where = "docker/compose.yaml"
    compose = everywhere(yaml.safe_load(text(where)))
    services = compose["services"]
    version = re.search(r'^version = "(.*)"', text("Cargo.toml"), re.M)[1]
    for name, service in services.items():
        image = service["image"]
        if not is_pinned(image):
            wrong(where, f"{name}: image {image}: name a version")
        if image.startswith("comfy-worker:") and not image.startswith(f"comfy-worker:{version}-"):
            wrong(where, f"{name}: image {image}, but Cargo.toml says {version}")
        for port in service.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                wrong(where, f"{name}: port {port}: write 127.0.0.1: before it")
        for volume in service.get("volumes", []):
            if isinstance(volume, dict):
                if volume["type"] == "bind" and not (DOCKER / volume["source"]).exists():
                    wrong(where, f"{name}: {volume['source']} is mounted, and is not there")
            elif ":" in volume and volume.split(":")[0] not in compose["volumes"]:
                wrong(where, f"{name}: volume {volume}: declare it under volumes, or write a bind mount in its long form")
        for option in service.get("security_opt", []):
            kind, _, value = option.partition(":")
            if kind == "seccomp" and value != "unconfined" and not (DOCKER / value).is_file():
                wrong(where, f"{name}: seccomp profile {value}: there is no such file")
        for needed, condition in service.get("depends_on", {}).items():
            if condition.get("condition") == "service_healthy" and "healthcheck" not in services[needed]:
                wrong(where, f"{name} waits until {needed} is healthy, which has no health check")
        if "build" in service:
            dockerfile = DOCKER / service["build"]["context"] / service["build"]["dockerfile"]
            if not dockerfile.is_file():
                wrong(where, f"{name}: {dockerfile} is not there")
        grace = service.get("environment", {}).get("COMFY_WORKER_WORKER_GRACE")
        if grace and seconds(service.get("stop_grace_period", "10s")) < seconds(grace) + STUCK_AFTER_S:
            wrong(where, f"{name}: stop_grace_period must be at least {STUCK_AFTER_S} s more than worker.grace, {grace}")

    added = everywhere(yaml.safe_load(text("docker/compose.gpu.yaml")))["services"]
    for name in added.keys() - services.keys():
        wrong("docker/compose.gpu.yaml", f"{name} is no service of compose.yaml")

    check_broker(where, compose["configs"]["rabbitmq-definitions"]["content"], known)
    check_scraping(services)


def check_broker(where: str, content: str, known: dict[str, str]) -> None:
    policies = json.loads(content)["policies"]
    timeouts = [
        policy["definition"]["consumer-timeout"] / 1000
        for policy in policies
        if re.search(policy["pattern"], known["amqp.queue"])
    ]
    server = re.search(r"^consumer_timeout = (\d+)$", text("docker/rabbitmq.conf"), re.M)
    timeouts.append(int(server[1]) / 1000 if server else 0)
    if len(timeouts) < 2 or min(timeouts) <= seconds(known["job.timeout"]):
        wrong(where, f"the consumer timeout of {known['amqp.queue']} must be set, and longer than job.timeout, {known['job.timeout']}")


def check_scraping(services: dict) -> None:
    where = "docker/prometheus.yml"
    scraped: set[str] = set()
    for job in yaml.safe_load(text(where))["scrape_configs"]:
        for target in (target for group in job["static_configs"] for target in group["targets"]):
            host, _, port = target.rpartition(":")
            scraped.add(host)
            if host not in services and host != "127.0.0.1":
                wrong(where, f"{target}: {host} is no service of compose.yaml")
            listen = services.get(host, {}).get("environment", {}).get("COMFY_WORKER_ADMIN_LISTEN")
            if listen and listen.rpartition(":")[2] != port:
                wrong(where, f"{target}: that worker listens on {listen}")
    for name, service in services.items():
        if "COMFY_WORKER_ADMIN_LISTEN" in service.get("environment", {}) and name not in scraped:
            wrong(where, f"{name} is not scraped")

    [source] = yaml.safe_load(text("docker/grafana/datasource.yaml"))["datasources"]
    [provider] = yaml.safe_load(text("docker/grafana/dashboards.yaml"))["providers"]
    mounts = {volume["target"]: DOCKER / volume["source"] for volume in services["grafana"]["volumes"] if isinstance(volume, dict)}
    folder = mounts.get(provider["options"]["path"])
    if folder is None:
        wrong("docker/grafana/dashboards.yaml", f"nothing is mounted at {provider['options']['path']}")
        return
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    if not (folder / Path(home).name).is_file():
        wrong("docker/compose.yaml", f"Grafana's home, {home}, is not in {os.path.relpath(folder, ROOT)}")
    for dashboard in folder.glob("*.json"):
        named = set(re.findall(r'"datasource":\s*\{[^}]*"uid":\s*"([^"$-][^"]*)"', dashboard.read_text()))
        for uid in named - {source["uid"], "grafana"}:
            wrong(os.path.relpath(dashboard, ROOT), f"data source {uid}: docker/grafana/datasource.yaml has {source['uid']}")


def check_healthcheck() -> None:
    """The health check tells a worker that answers from one that does not."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/livez" else 503)
            self.end_headers()
            self.wfile.write(b"said\n")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"0.0.0.0:{server.server_port}"

    def status(listen: str, *path: str) -> int:
        environment = os.environ | {"COMFY_WORKER_ADMIN_LISTEN": listen, "http_proxy": "http://127.0.0.1:9"}
        return subprocess.run(
            [sys.executable, DOCKER / "healthcheck.py", *path], env=environment, capture_output=True, timeout=30, check=False
        ).returncode

    found = [status(here), status(here, "/readyz"), status("off"), status("no address")]
    server.shutdown()
    server.server_close()
    found.append(status(here))
    if found != [0, 1, 1, 1, 1]:
        wrong("docker/healthcheck.py", f"exit codes for 200, 503, off, nonsense, nobody: {found}, not 0 and four times 1")


def main() -> int:
    known = settings()
    check_variables(known)
    check_readme(check_dockerfile())
    check_compose(known)
    json.loads(text("docker/seccomp.json"))
    check_healthcheck()
    for problem in dict.fromkeys(problems):
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
