"""The Helm chart as tests see it: rendered by the real helm, checked against the real schemas.

``make deploytools`` fetches both. Knows the shapes of Kubernetes' objects, nothing of Feedloom's.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator, Draft202012Validator

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "infra" / "deploy" / "helm" / "feedloom"
TOOLS = ROOT / ".feedloom" / "deploy"
RELEASE = "feedloom"
NAMESPACE = "feedloom"
KUBERNETES = ("1.30.0", "1.37.0")
"""The oldest that the chart takes, and the newest there is."""

Object = dict[str, Any]
WORKLOADS = ("Deployment", "Job", "CronJob", "TrainingRuntime")


class ChartRefused(Exception):
    """helm would not render; the message is helm's."""


def _tool(path: Path) -> Path:
    assert path.exists(), f"{path} is missing: run `make deploytools`"
    return path


def values_of(profile: str) -> dict[str, Any]:
    """A profile's values, as they are in its file."""
    loaded: dict[str, Any] = yaml.safe_load((CHART / f"values-{profile}.yaml").read_text())
    return loaded


def render(profile: str | None = None, **values: Any) -> tuple[Object, ...]:
    """Every object of a release of ``profile``, ``values`` above it. Raises ChartRefused."""
    return _render(profile, json.dumps(values, sort_keys=True))


@cache
def _render(profile: str | None, values: str) -> tuple[Object, ...]:
    command = [str(_tool(TOOLS / "helm")), "template", RELEASE, str(CHART)]
    command += ["--namespace", NAMESPACE, "--kube-version", KUBERNETES[0]]
    if profile is not None:
        command += ["--values", str(CHART / f"values-{profile}.yaml")]
    ended = subprocess.run(
        [*command, "--values", "-"], input=values, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        raise ChartRefused(ended.stderr)
    loaded = yaml.load_all(ended.stdout, Loader=yaml.CSafeLoader)
    return tuple(one for one in loaded if one is not None)


def of_kind(objects: tuple[Object, ...], *kinds: str) -> list[Object]:
    """Those of some kinds."""
    return [one for one in objects if one["kind"] in kinds]


def named(objects: tuple[Object, ...], kind: str, name: str) -> Object:
    """The one of a kind and a name, without the release's before it."""
    (found,) = (
        one
        for one in objects
        if one["kind"] == kind and one["metadata"]["name"] == f"{RELEASE}-{name}"
    )
    return found


def component_of(one: Object) -> str:
    """Which part of the platform an object belongs to."""
    return str(one["metadata"]["labels"]["app.kubernetes.io/component"])


def pod_template(workload: Object) -> Object:
    """The template of its pods: their metadata and spec."""
    spec = workload["spec"]
    if workload["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    elif workload["kind"] == "TrainingRuntime":
        (job,) = spec["template"]["spec"]["replicatedJobs"]
        spec = job["template"]["spec"]
    template: Object = spec["template"]
    return template


def pods(objects: tuple[Object, ...]) -> list[tuple[Object, Object]]:
    """Each workload with the template of its pods."""
    return [(one, pod_template(one)) for one in of_kind(objects, *WORKLOADS)]


def labels_of(template: Object) -> dict[str, str]:
    """Of a pod."""
    found: dict[str, str] = template["metadata"]["labels"]
    return found


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector takes a pod."""
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def containers(template: Object) -> list[Object]:
    """All of a pod's, those that come before the others too."""
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def variables(container: Object) -> dict[str, str]:
    """What the environment of a container is, where the chart can know it."""
    known = {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}
    dynamic = {one["name"]: "pod-7" for one in container.get("env", []) if "value" not in one}
    expanded = {}
    for name, value in known.items():
        for other, meant in dynamic.items():
            value = value.replace(f"$({other})", meant)
        expanded[name] = value
    return {**dict.fromkeys(dynamic, "4"), **expanded}


def faults(one: Object) -> list[str]:
    """Where an object is not what its schema says, for every version of Kubernetes it is for."""
    schemas = _schemas(one["apiVersion"], one["kind"])
    return [
        f"{one['kind']} {one['metadata']['name']}: "
        f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        for schema in schemas
        for error in schema.iter_errors(one)
    ]


@cache
def _schemas(version: str, kind: str) -> tuple[Draft7Validator | Draft202012Validator, ...]:
    group, _, _ = version.rpartition("/")
    if "." not in group or (group.endswith(".k8s.io") and not group.startswith("gateway.")):
        return tuple(_built_in(kubernetes, version, kind) for kubernetes in KUBERNETES)
    return (_custom(group, version.rpartition("/")[2], kind),)


def _built_in(kubernetes: str, version: str, kind: str) -> Draft202012Validator:
    folder = f"kubernetes_validate/kubernetes-json-schema/v{kubernetes}-local-strict"
    path = _tool(TOOLS / "kubernetes" / folder / "_definitions.json")
    definitions = _loaded(path)["$defs"]
    group, _, number = version.rpartition("/")
    (name,) = (
        name
        for name, schema in definitions.items()
        for meant in schema.get("x-kubernetes-group-version-kind", [])
        if (meant["group"], meant["version"], meant["kind"]) == (group, number, kind)
    )
    text = json.dumps(definitions).replace("_definitions.json#", "#")
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": json.loads(text)})


@cache
def _loaded(path: Path) -> Any:
    return json.loads(path.read_text())


def _custom(group: str, version: str, kind: str) -> Draft7Validator:
    for definition in _definitions(kind):
        spec = definition["spec"]
        if (spec["group"], spec["names"]["kind"]) != (group, kind):
            continue
        for one in spec["versions"]:
            if one["name"] == version:
                assert one["served"], f"{group}/{version} {kind} is not served"
                return Draft7Validator(_strict(one["schema"]["openAPIV3Schema"], root=True))
    raise AssertionError(f"no definition of {kind} {group}/{version}")


def _definitions(kind: str) -> Iterator[Object]:
    for path in sorted(_tool(TOOLS / "definitions").glob("*.yaml")):
        for text in re.split(r"^---$", path.read_text(), flags=re.MULTILINE):
            if re.search(rf"^    kind: {kind}$", text, flags=re.MULTILINE):
                yield yaml.load(text, Loader=yaml.CSafeLoader)


def _strict(schema: Mapping[str, Any], *, root: bool = False) -> Object:
    """A definition's schema as JSON schema that also refuses what it does not name.

    As the API server does: what has a default need not be given.
    """
    made: Object = {}
    for word, value in schema.items():
        if word in ("properties", "patternProperties"):
            made[word] = {name: _strict(inner) for name, inner in value.items()}
        elif word in ("items", "not") or (word == "additionalProperties" and value is not True):
            made[word] = _strict(value) if isinstance(value, dict) else value
        elif word in ("allOf", "anyOf", "oneOf"):
            made[word] = [_only_narrowing(inner) for inner in value]
        elif word in ("description", "default", "format") or word.startswith("x-"):
            continue
        else:
            made[word] = value
    properties = made.get("properties", {})
    if root:
        properties |= {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}}
    given = schema.get("properties", {})
    if "required" in made:
        made["required"] = [
            name for name in made["required"] if "default" not in given.get(name, {})
        ]
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
    if properties and "additionalProperties" not in made and not open_ended:
        made["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        made = {"type": ["integer", "string"], **{k: v for k, v in made.items() if k == "pattern"}}
    if schema.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    return made


def _only_narrowing(schema: Mapping[str, Any]) -> Object:
    """A part of a choice says more of fields that are named elsewhere, and names no new ones."""
    made = {k: v for k, v in schema.items() if not k.startswith("x-") and k != "description"}
    for word in ("allOf", "anyOf", "oneOf"):
        if word in made:
            made[word] = [_only_narrowing(inner) for inner in made[word]]
    return made
