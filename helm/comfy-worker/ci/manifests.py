"""Rendered manifests: each object against a schema, and what objects say of one another."""

import copy
import json
import pathlib

import jsonschema
import kubernetes_validate

# The oldest Kubernetes that Chart.yaml allows, and the newest that there are schemas of.
VERSIONS = ("1.28", kubernetes_validate.latest_version())
SCHEMAS = pathlib.Path(__file__).parent / "schemas"


def problems(objects):
    """What is wrong with the objects of one release, a line each."""
    found = []
    seen = set()
    for item in objects:
        name = f"{item.get('kind')} {item.get('metadata', {}).get('name')}"
        if name in seen:
            found.append(f"{name}: there twice")
        seen.add(name)
        found += [f"{name}: {problem}" for problem in _against_schemas(item)]
    return found + _references(objects)


def _against_schemas(item):
    own = SCHEMAS / f"{item['kind']}.json"
    if not own.exists():
        return _kubernetes(item)
    validator = jsonschema.Draft7Validator(json.loads(own.read_text()))
    found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(item)]
    # What KEDA's objects hold of Kubernetes' own kinds is checked as those.
    if item["kind"] == "ScaledJob":
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": item["spec"]["jobTargetRef"]}
        found += _kubernetes(job)
    behavior = item["spec"].get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior")
    if behavior is not None:
        target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}
        spec = {"scaleTargetRef": target, "maxReplicas": 1, "behavior": behavior}
        found += _kubernetes(
            {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "x"}, "spec": spec}
        )
    return found


def _kubernetes(item):
    found = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(copy.deepcopy(item), version, strict=True)
        except kubernetes_validate.ValidationError as error:
            path = ".".join(str(part) for part in error.path)
            found.append(f"Kubernetes {version}: {path}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError:
            found.append(f"Kubernetes {version} knows no such kind, and ci/schemas neither")
    return found


def pod_template(item):
    """The pod template of a Deployment or ScaledJob, else None."""
    return {
        "Deployment": lambda spec: spec["template"],
        "ScaledJob": lambda spec: spec["jobTargetRef"]["template"],
    }.get(item["kind"], lambda spec: None)(item.get("spec"))


def _references(objects):
    found = []
    names = {(item["kind"], item["metadata"]["name"]) for item in objects}
    templates = [template for template in map(pod_template, objects) if template]
    if len(templates) != 1:
        return [f"{len(templates)} objects with pods instead of one"]
    template = templates[0]
    labels, spec = template["metadata"]["labels"], template["spec"]
    container = next(container for container in spec["containers"] if container["name"] == "worker")
    volumes = {volume["name"] for volume in spec["volumes"]}
    for each in spec["containers"] + spec.get("initContainers", []):
        for mount in each.get("volumeMounts", []):
            if mount["name"] not in volumes:
                found.append(f"container {each['name']}: no volume {mount['name']} to mount at {mount['mountPath']}")
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    found += [f"two mounts at {path}" for path in {path for path in paths if paths.count(path) > 1}]
    for volume in spec["volumes"]:
        if "configMap" in volume and ("ConfigMap", volume["configMap"]["name"]) not in names:
            found.append(f"volume {volume['name']}: the chart makes no ConfigMap {volume['configMap']['name']}")

    config = next(
        item for item in objects if item["kind"] == "ConfigMap" and "COMFY_WORKER_WORKER_GRACE" in item["data"]
    )
    if ("ConfigMap", container["envFrom"][0]["configMapRef"]["name"]) != ("ConfigMap", config["metadata"]["name"]):
        found.append("the pod does not read the ConfigMap of settings")
    grace = int(config["data"]["COMFY_WORKER_WORKER_GRACE"].removesuffix("s"))
    if spec["terminationGracePeriodSeconds"] <= grace:
        found.append(
            f"terminationGracePeriodSeconds {spec['terminationGracePeriodSeconds']} is not above worker.grace {grace}s"
        )
    port = config["data"]["COMFY_WORKER_ADMIN_LISTEN"].rsplit(":", 1)[1]
    if str(container["ports"][0]["containerPort"]) != port:
        found.append(f"admin.listen has port {port}, the container {container['ports'][0]['containerPort']}")

    for item in objects:
        kind, body = item["kind"], item.get("spec", {})
        selector = body.get("podSelector" if kind == "NetworkPolicy" else "selector", {}).get("matchLabels")
        if selector and not selector.items() <= labels.items():
            found.append(f"{kind}: its selector does not match the pods")
        if kind == "ScaledObject" and ("Deployment", body["scaleTargetRef"]["name"]) not in names:
            found.append("ScaledObject: there is no such Deployment")
        for trigger in body.get("triggers", []):
            reference = trigger["authenticationRef"]
            if "kind" not in reference and ("TriggerAuthentication", reference["name"]) not in names:
                found.append(f"{kind}: there is no TriggerAuthentication {reference['name']}")
        if kind == "Secret":
            found.append("the chart makes a Secret: credentials belong to the operator")
    return found
