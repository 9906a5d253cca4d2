"""The manifests in deploy/kubernetes are what Kubernetes takes, and name what the service has.

`kubernetes/schemas.json` is Kubernetes' own, bundled; its `$comment` says from where.
"""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.contract.test_gate import OPEN
from zopilot_gpu.api import metrics
from zopilot_gpu.process.worker import LAST_WORDS_S
from zopilot_gpu.settings import Settings, variable_name

yaml: Any = importlib.import_module("yaml")
ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "deploy" / "kubernetes"
SCHEMAS = json.loads((Path(__file__).parent / "kubernetes" / "schemas.json").read_text())
KINDS = {
    "Deployment": "deployment-apps-v1",
    "HorizontalPodAutoscaler": "horizontalpodautoscaler-autoscaling-v2",
    "Job": "job-batch-v1",
    "PersistentVolumeClaim": "persistentvolumeclaim-v1",
    "PodDisruptionBudget": "poddisruptionbudget-policy-v1",
    "Service": "service-v1",
}


def rendered() -> dict[str, dict[str, Any]]:
    """What `kubectl kustomize` gives, by kind: the listed files with the namespace and labels that all get."""
    layout = yaml.safe_load((DIRECTORY / "kustomization.yaml").read_text())
    found = {}
    for name in layout["resources"]:
        (manifest,) = yaml.safe_load_all((DIRECTORY / name).read_text())
        manifest["metadata"]["namespace"] = layout["namespace"]
        for labels in layout["labels"]:
            manifest["metadata"]["labels"] = manifest["metadata"].get("labels", {}) | labels["pairs"]
        found[manifest["kind"]] = manifest
    return found


MANIFESTS = rendered()


def problems(manifest: dict[str, Any]) -> list[str]:
    schema = {"$ref": f"#/$defs/{KINDS[manifest['kind']]}", "$defs": SCHEMAS["$defs"]}
    return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest)]


def pod(kind: str) -> dict[str, Any]:
    spec: dict[str, Any] = MANIFESTS[kind]["spec"]["template"]["spec"]
    return spec


def container(kind: str = "Deployment") -> dict[str, Any]:
    (only,) = pod(kind)["containers"]
    return dict(only)


def environment(kind: str) -> dict[str, str | None]:
    return {entry["name"]: entry.get("value") for entry in container(kind)["env"]}


@pytest.mark.parametrize("kind", KINDS)
def test_kubernetes_takes_it(kind: str) -> None:
    assert problems(MANIFESTS[kind]) == []


def test_a_planted_mistake_is_seen() -> None:
    planted = json.loads(json.dumps(MANIFESTS["Deployment"]))
    planted["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    planted["spec"]["replicas"] = "two"
    assert len(problems(planted)) == 2


def test_every_file_is_listed_and_none_holds_a_secret() -> None:
    listed = set(yaml.safe_load((DIRECTORY / "kustomization.yaml").read_text())["resources"])
    assert {file.name for file in DIRECTORY.glob("*.yaml")} == listed | {"kustomization.yaml"}
    assert len(listed) == len(MANIFESTS) == len(KINDS)
    readme = (DIRECTORY / "README.md").read_text()
    assert not [name for name in listed if f"`{name}`" not in readme]


def test_variables_are_settings_with_valid_values() -> None:
    names = {variable_name(field): field for field in Settings.model_fields}
    for kind in ("Deployment", "Job"):
        given = environment(kind)
        assert set(given) <= set(names)
        values = {names[name]: value for name, value in given.items() if value is not None}
        Settings.model_validate(values | {"allow_anonymous": True})


def test_secrets_come_by_reference_only() -> None:
    for kind in ("Deployment", "Job"):
        for entry in container(kind)["env"]:
            if re.search("KEY|TOKEN|SECRET", entry["name"]):
                assert entry["valueFrom"]["secretKeyRef"]["name"] == "zopilot-gpu"


def test_probes_ask_open_routes_on_the_port_that_is_served() -> None:
    served = container()
    (port,) = served["ports"]
    assert str(port["containerPort"]) == environment("Deployment")["PORT"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = served[name]["httpGet"]
        assert asked["path"] in OPEN
        assert asked["port"] == port["name"] == MANIFESTS["Service"]["spec"]["ports"][0]["targetPort"]


def test_the_grace_period_is_longer_than_a_drain() -> None:
    drain_s = float(environment("Deployment")["ZOPILOT_GPU_DRAIN_S"] or 0)
    wait_s = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod("Deployment")["terminationGracePeriodSeconds"] >= wait_s + drain_s + LAST_WORDS_S
    assert Settings.model_fields["drain_s"].default + LAST_WORDS_S / 2 <= 30  # Kubernetes' own, unless a reader doesn't read


def test_one_claim_that_only_the_job_writes() -> None:
    claim = MANIFESTS["PersistentVolumeClaim"]["metadata"]["name"]
    for kind, read_only in (("Deployment", True), ("Job", False)):
        (mount,), (volume,) = container(kind)["volumeMounts"], pod(kind)["volumes"]
        assert mount["mountPath"] == environment(kind)["ZOPILOT_GPU_VOLUME"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim
        assert bool(mount.get("readOnly")) is bool(volume["persistentVolumeClaim"].get("readOnly")) is read_only


def test_labels_and_names_meet() -> None:
    labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    assert MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Job"]["spec"]["template"]["metadata"]["labels"] != labels  # or the Service would send it requests
    assert MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == MANIFESTS["Deployment"]["metadata"]["name"]


def test_the_autoscaler_reads_a_series_that_there_is() -> None:
    asked = {one["pods"]["metric"]["name"] for one in MANIFESTS["HorizontalPodAutoscaler"]["spec"]["metrics"]}
    assert asked <= set(series())


def series() -> Iterator[str]:
    for one in metrics.REGISTRY.collect():
        yield one.name


def test_pods_run_as_the_images_user_without_more_rights() -> None:
    (uid,) = set(re.findall(r"(?:--uid |USER )(\d+)", (ROOT / "Dockerfile").read_text()))
    for kind in ("Deployment", "Job"):
        assert pod(kind)["securityContext"]["runAsUser"] == int(uid)
        assert pod(kind)["securityContext"]["runAsNonRoot"] is True
        assert container(kind)["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
