"""Everything that can be known of the chart without a cluster. Run by scripts/check-helm."""

import argparse
import difflib
import json
import os
import pathlib
import re
import subprocess
import sys

import yaml

import manifests
import monitoring
import sources

CI = pathlib.Path(__file__).parent
CHART = CI.parent
ROOT = CHART.parent.parent
EMBEDDED = re.compile(r"(\n  comfy-worker\.json: )\|-\n(?:    .*\n?|\n)+")


class Checks:
    """Counts what was looked at and keeps what is wrong."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def step(self, name, problems):
        problems = list(problems)
        if problems:
            self.failed += 1
            print(f"FAILED {name}")
            for problem in problems:
                print("    " + str(problem).rstrip().replace("\n", "\n    "))
        else:
            self.passed += 1
            print(f"ok     {name}")


class Helm:
    def __init__(self, program):
        self.program = program

    def run(self, *arguments):
        return subprocess.run([self.program, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)

    def template(self, values):
        return self.run("template", "comfy-worker", str(CHART), "--namespace", "comfy", "--values", str(values))


def without_dashboard(text):
    """A golden file need not hold the dashboard a second time."""
    return EMBEDDED.sub(r"\1(dashboards/comfy-worker.json)\n", text)


def objects_of(text):
    return [item for item in yaml.safe_load_all(text) if item]


def golden_problems(name, text, update):
    path = CI / "golden" / name
    text = without_dashboard(text)
    if update:
        path.write_text(text)
        return []
    if not path.exists():
        return [f"{path.relative_to(ROOT)} is missing: scripts/check-helm --update writes it"]
    golden = path.read_text()
    # Helm's versions fold long lines each in their own way: what counts is what the YAML says.
    if objects_of(golden) == objects_of(text):
        return []
    lines = difflib.unified_diff(golden.splitlines(), text.splitlines(), "golden", "rendered", lineterm="", n=2)
    return [*lines, "If this is what you want: scripts/check-helm --update, and look at the difference."]


def check_value_sets(checks, helm, metrics, update):
    for values in sorted(CI.glob("*.yaml")):
        lint = helm.run("lint", "--strict", str(CHART), "--values", str(values))
        checks.step(f"{values.name}: helm lint", [] if lint.returncode == 0 else [lint.stdout + lint.stderr])
        rendered = helm.template(values)
        if rendered.returncode:
            checks.step(f"{values.name}: renders", [rendered.stderr])
            continue
        objects = objects_of(rendered.stdout)
        checks.step(f"{values.name}: {len(objects)} objects are valid", manifests.problems(objects))
        checks.step(f"{values.name}: alerts", monitoring.rule_problems(objects, metrics))
        checks.step(f"{values.name}: as in ci/golden", golden_problems(values.name, rendered.stdout, update))
        for item in objects:
            embedded = item.get("data", {}).get("comfy-worker.json")
            if embedded is not None:
                same = json.loads(embedded) == json.loads((CHART / "dashboards/comfy-worker.json").read_text())
                checks.step(
                    f"{values.name}: the dashboard is whole", [] if same else ["the ConfigMap holds something else"]
                )
    names = {path.name for path in CI.glob("*.yaml")}
    left = [path.name for path in (CI / "golden").glob("*.yaml") if path.name not in names]
    checks.step("golden files", [f"ci/golden/{name} has no value set" for name in left])


def check_bad_values(checks, helm):
    for values in sorted((CI / "bad").glob("*.yaml")):
        # Helm's versions say it differently where the schema refuses: one line for each.
        expected = re.findall(r"^# expect: (.+)", values.read_text(), re.M)
        if not expected:
            checks.step(f"bad/{values.name}", ["its first line is not '# expect: MESSAGE'"])
            continue
        rendered = helm.template(values)
        problems = []
        if rendered.returncode == 0:
            problems = ["was accepted"]
        elif not any(text in rendered.stderr for text in expected):
            problems = [*(f"expected: {text}" for text in expected), f"found: {rendered.stderr}"]
        checks.step(f"bad/{values.name} is refused", problems)


def check_sources(checks, update):
    settings = (ROOT / "src/config/settings.rs").read_text()
    path = CHART / "values.schema.json"
    schema = json.loads(path.read_text())
    if update:
        schema["properties"]["config"] = sources.config_schema(settings)
        path.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n")
    checks.step("config holds the worker's settings", sources.setting_problems(settings, schema))
    topology = (ROOT / "src/queue/topology.rs").read_text()
    definitions = json.loads((CHART / "files/rabbitmq-definitions.json").read_text())
    checks.step(
        "rabbitmq-definitions.json is what the worker declares",
        sources.topology_problems((topology, settings), definitions),
    )


def check_readme(checks, helm, update):
    path = CHART / "README.md"
    readme, values = path.read_text(), (CHART / "values.yaml").read_text()
    checks.step("every value has a comment", sources.undocumented(values))
    table = sources.values_table(values)
    before, rest = readme.split(sources.BEGIN, 1)
    after = rest.split(sources.END, 1)[1]
    wanted = f"{before}{sources.BEGIN}\n{table}{sources.END}{after}"
    if update:
        path.write_text(wanted)
    elif readme != wanted:
        checks.step(
            "README.md: the table of values", ["is not what values.yaml says: scripts/check-helm --update writes it"]
        )
    command = sources.first_command(readme)
    # The program by its plain name, as a reader would call it.
    folder = ROOT / "target/check-helm"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "helm"
    link.unlink(missing_ok=True)
    link.symlink_to(pathlib.Path(helm.program).resolve())
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    problems = [ran.stderr] if ran.returncode else manifests.problems(objects_of(ran.stdout))
    checks.step(f"README.md: {command!r} renders valid manifests", problems)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--helm", required=True)
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()
    helm, checks = Helm(options.helm), Checks()

    documentation = ROOT / "docs/metrics.md"
    metrics = monitoring.documented(documentation.read_text()) if documentation.exists() else {}
    missing = ["docs/metrics.md names none, or is missing: no name in the dashboard and the alerts can be checked"]
    checks.step("docs/metrics.md names the worker's metrics", [] if metrics else missing)
    dashboard = (CHART / "dashboards/comfy-worker.json").read_text()
    checks.step("dashboards/comfy-worker.json", monitoring.dashboard_problems(dashboard, metrics))
    check_sources(checks, options.update)
    check_value_sets(checks, helm, metrics, options.update)
    check_bad_values(checks, helm)
    check_readme(checks, helm, options.update)
    print(f"{checks.passed} passed, {checks.failed} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
