"""The Kubernetes manifests, without a cluster: their schemas, and what fits what."""

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from bridge.settings import NAMES, load, serving_mistakes
from tests.deploy.figures import bridge_figures

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
VERSIONS = ("1.30", "1.34")
EXAMPLE = "kubernetes/secret.example.yaml"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text("utf-8")))


KUSTOMIZATION = documents("kustomization.yaml")[0]
EVERYTHING = [it for name in KUSTOMIZATION["resources"] for it in documents(name)]


def one(kind: str, name: str = "bridge") -> dict[str, Any]:
    (found,) = (
        it for it in EVERYTHING if it["kind"] == kind and it["metadata"]["name"] == name
    )
    return found


POD = one("Deployment")["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
PODS = [
    it["spec"]["template"]["spec"]
    for it in EVERYTHING
    if it["kind"] in ("Deployment", "StatefulSet")
]
LITERALS = dict(
    line.split("=", 1)
    for each in KUSTOMIZATION["configMapGenerator"]
    for line in each.get("literals", [])
)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_cluster_takes_the_manifests(version: str) -> None:
    """`kubectl apply -k deploy` is not answered with an unknown field."""
    for document in [*EVERYTHING, *documents(EXAMPLE)]:
        kubernetes_validate.validate(document, version, strict=True)


def test_all_files_are_part_of_it() -> None:
    """No manifest is forgotten, and none names a file that is not there."""
    there = {str(it.relative_to(DEPLOY)) for it in DEPLOY.glob("kubernetes/*.yaml")}
    named = set(KUSTOMIZATION["resources"])
    generated = KUSTOMIZATION["configMapGenerator"]

    assert there == named | {it for it in there if it.endswith(".example.yaml")}
    assert all((DEPLOY / f).exists() for it in generated for f in it.get("files", []))


def test_the_settings_exist_and_serve_twilio() -> None:
    """The pods start: every variable is one of ours, and none is wrong or missing."""
    own = {it["name"]: it["value"] for it in CONTAINER["env"]}
    given = {**LITERALS, **documents(EXAMPLE)[0]["stringData"], **own}

    assert set(given) <= NAMES
    assert serving_mistakes(load(given, env_file=None)) == []


def test_a_deploy_lets_calls_finish() -> None:
    """Kubernetes kills no pod that still has callers whom it may keep."""
    wait = float(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = float(LITERALS["BRIDGE_DRAIN_SECONDS"])
    rolling = one("Deployment")["spec"]["strategy"]["rollingUpdate"]

    assert POD["terminationGracePeriodSeconds"] >= wait + drain + 30
    assert rolling == {"maxSurge": 1, "maxUnavailable": 0}


def test_probes_ask_what_is_answered() -> None:
    """A full instance gets no new calls, but is not restarted for it."""
    paths = {
        name: CONTAINER[name]["httpGet"]["path"]
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }

    assert paths == {
        "startupProbe": "/healthz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/healthz",
    }
    assert one("Service")["spec"]["publishNotReadyAddresses"] is True


def test_everything_finds_its_pods() -> None:
    """No Service, budget or policy is about nothing."""
    labels = [
        it["spec"]["template"]["metadata"]["labels"]
        for it in EVERYTHING
        if it["kind"] in ("Deployment", "StatefulSet")
    ]
    for document in EVERYTHING:
        spec = document.get("spec", {})
        for key in ("selector", "podSelector"):
            wanted = spec.get(key)
            if wanted is not None:
                wanted = wanted.get("matchLabels", wanted)
                assert any(wanted.items() <= it.items() for it in labels), document
        for mount in spec.get("rules", []):
            for path in mount["http"]["paths"]:
                service = one("Service", path["backend"]["service"]["name"])
                port = path["backend"]["service"]["port"]["name"]
                assert port in {it["name"] for it in service["spec"]["ports"]}


def test_the_balancer_finds_the_bridges() -> None:
    """All replicas, also those of a deploy in the middle of the rush hour."""
    pod = one("Deployment", "balancer")["spec"]["template"]["spec"]
    env = {it["name"]: it.get("value") for it in pod["containers"][0]["env"]}
    most = one("HorizontalPodAutoscaler")["spec"]["maxReplicas"]
    service = one("Service")

    assert env["BALANCER_BRIDGES"] == "bridge.$(NAMESPACE).svc.cluster.local:8080"
    assert service["spec"]["clusterIP"] == "None"
    assert int(env["BALANCER_SLOTS"]) > most


def test_instances_come_before_they_are_needed() -> None:
    """It scales on calls, at less than an instance may take."""
    scaler = one("HorizontalPodAutoscaler")["spec"]
    (metric,) = scaler["metrics"]
    target = metric["pods"]["target"]["averageValue"]

    assert metric["pods"]["metric"]["name"] in bridge_figures()
    assert int(target) <= 0.75 * int(LITERALS["BRIDGE_MAX_CALLS"])
    assert scaler["minReplicas"] >= 2


@pytest.mark.parametrize("pod", PODS, ids=lambda it: it["containers"][0]["name"])
def test_pods_are_locked_down(pod: dict[str, Any]) -> None:
    """They run where the restricted standard is enforced, as here."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"] and container["resources"]["limits"]
