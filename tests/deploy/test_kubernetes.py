"""The Kubernetes manifests, without a cluster: their schemas, and what fits what."""

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from bridge.app.settings import NAMES, load, serving_mistakes
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
SECRETS = {it["metadata"]["name"]: it["stringData"] for it in documents(EXAMPLE)}
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
    """The pods start once the placeholder is filled in: every variable is one of ours,
    and none is wrong or missing."""
    given = {**LITERALS, **SECRETS["bridge"], "TWILIO_AUTH_TOKEN": "0" * 32}
    for it in CONTAINER["env"]:
        given[it["name"]] = it.get("value") or of_a_secret(it)

    assert set(given) <= NAMES
    assert serving_mistakes(load(given, env_file=None)) == []


def of_a_secret(variable: dict[str, Any]) -> str:
    asked = variable["valueFrom"]["secretKeyRef"]
    found: str = SECRETS[asked["name"]][asked["key"]]
    return found


def test_redis_asks_for_the_password_that_the_bridges_have() -> None:
    """What people said is not read by whoever else finds it in the cluster."""
    redis = one("StatefulSet", "redis")["spec"]["template"]["spec"]["containers"][0]
    (asked,) = redis["env"]
    (used,) = (it for it in CONTAINER["env"] if it["name"] == "BRIDGE_REDIS_URL")

    required = redis["args"][redis["args"].index("--requirepass") + 1]
    assert required == f"$({asked['name']})"
    assert asked["name"] == "REDISCLI_AUTH", "or its own health check is refused"
    assert f":{of_a_secret(asked)}@redis:6379" in of_a_secret(used)


def test_secrets_go_to_the_bridges_alone() -> None:
    """Whoever breaks into the balancer finds no key and no token; none stands where
    everybody who may list things can read it."""
    for pod in PODS:
        container = pod["containers"][0]
        given = yaml.safe_dump([container.get("envFrom"), pod.get("volumes")])
        assert ("secretRef" in given) == (container["name"] == "bridge")
        named = yaml.safe_dump(container.get("env"))
        if container["name"] == "haproxy":
            assert "secretKeyRef" not in named
    assert not set(LITERALS) & {*SECRETS["bridge"], "BRIDGE_REDIS_URL"}
    assert all(it["kind"] != "Secret" for it in EVERYTHING)


def test_what_may_be_secret_is_offered() -> None:
    """Who rotates the token finds the name where the others stand."""
    text = (DEPLOY / EXAMPLE).read_text("utf-8")

    for name in ("TWILIO_AUTH_TOKEN_SECONDARY", "TWILIO_SHARED_KEYS"):
        assert name in NAMES and f"# {name}: " in text


# --- who speaks to whom ---


def policy(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = one("NetworkPolicy", name)["spec"]
    assert sorted(spec["policyTypes"]) == ["Egress", "Ingress"]
    return spec


def let_in(name: str) -> set[tuple[str, str]]:
    """Who (pods, or a namespace), to which port."""
    found = set()
    for rule in policy(name)["ingress"]:
        for source in rule["from"]:
            (kind, chosen), *more = source.items()
            assert not more and kind in ("podSelector", "namespaceSelector")
            (who,) = chosen["matchLabels"].values()
            found |= {(who, str(it["port"])) for it in rule["ports"]}
    return found


def test_nobody_speaks_to_a_pod_who_need_not() -> None:
    """A neighbour in the cluster reaches neither Redis nor an unguarded bridge."""
    nobody = policy("nobody")

    assert nobody["podSelector"] == {} and not {"ingress", "egress"} & set(nobody)
    assert let_in("balancer") == {("ingress-nginx", "http"), ("monitoring", "stats")}
    assert let_in("bridge") == {("balancer", "http"), ("monitoring", "http")}
    assert let_in("redis") == {("bridge", "redis")}


def test_a_pod_that_was_taken_over_gets_no_further() -> None:
    """Redis calls nobody, the balancer only bridges, and a bridge that was talked into
    asking for the cloud's keys gets no answer."""
    assert "egress" not in policy("redis")
    to_bridges, names = policy("balancer")["egress"]
    (bridges,) = to_bridges["to"]
    assert bridges["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "bridge"}
    assert {it["port"] for it in names["ports"]} == {53}
    outside = policy("bridge")["egress"][-1]["to"]
    excepted = [it for each in outside for it in each["ipBlock"]["except"]]
    assert excepted == ["169.254.169.254/32", "fd00:ec2::254/128"]


def test_the_balancers_are_believed() -> None:
    """Limits for an address are those of who calls, not of the balancer."""
    settings = load(LITERALS, env_file=None)
    pod = one("Deployment", "balancer")["spec"]["template"]["spec"]
    env = {it["name"]: it.get("value") for it in pod["containers"][0]["env"]}

    assert [str(it) for it in settings.trusted_proxies] == [env["BALANCER_PROXIES"]]
    assert ("balancer", "http") in let_in("bridge"), "and who else is behind it?"


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
    assert int(env["BALANCER_SLOTS"]) >= 2 * most, "old pods drain beside new ones"


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
    assert pod["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert not [it for it in pod.get("volumes", []) if "hostPath" in it]
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"] and container["resources"]["limits"]
