"""The Kubernetes manifests, without a cluster: they are valid and fit each other."""

import ipaddress
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from bridge.app.settings import NAMES, load
from bridge.app.settings_report import serving_mistakes
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
def test_the_manifests_are_valid(version: str) -> None:
    """`kubectl apply -k deploy` reports no unknown field."""
    for document in [*EVERYTHING, *documents(EXAMPLE)]:
        kubernetes_validate.validate(document, version, strict=True)


def test_the_kustomization_names_all_files() -> None:
    """No manifest is missing in it, and it names no file that does not exist."""
    there = {str(it.relative_to(DEPLOY)) for it in DEPLOY.glob("kubernetes/*.yaml")}
    named = set(KUSTOMIZATION["resources"])
    generated = KUSTOMIZATION["configMapGenerator"]

    assert there == named | {it for it in there if it.endswith(".example.yaml")}
    assert all((DEPLOY / f).exists() for it in generated for f in it.get("files", []))


def test_the_settings_exist_and_serve_twilio() -> None:
    """The pods start when the placeholder is filled in: every variable is a setting of
    the bridge, and none is wrong or missing."""
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
    """Other pods in the cluster cannot read the conversations in Redis."""
    redis = one("StatefulSet", "redis")["spec"]["template"]["spec"]["containers"][0]
    (asked,) = redis["env"]
    (used,) = (it for it in CONTAINER["env"] if it["name"] == "BRIDGE_REDIS_URL")

    required = redis["args"][redis["args"].index("--requirepass") + 1]
    assert required == f"$({asked['name']})"
    assert asked["name"] == "REDISCLI_AUTH", "or its own health check is refused"
    assert f":{of_a_secret(asked)}@redis:6379" in of_a_secret(used)


def test_secrets_go_to_the_bridges_alone() -> None:
    """An attacker in the balancer finds no key and no token, and no secret is in a
    ConfigMap."""
    for pod in PODS:
        container = pod["containers"][0]
        given = yaml.safe_dump([container.get("envFrom"), pod.get("volumes")])
        assert ("secretRef" in given) == (container["name"] == "bridge")
        named = yaml.safe_dump(container.get("env"))
        if container["name"] == "haproxy":
            assert "secretKeyRef" not in named
    assert not set(LITERALS) & {*SECRETS["bridge"], "BRIDGE_REDIS_URL"}
    assert all(it["kind"] != "Secret" for it in EVERYTHING)


def test_the_example_secret_offers_all_secret_settings() -> None:
    """An operator who rotates the token finds the setting next to the others."""
    text = (DEPLOY / EXAMPLE).read_text("utf-8")

    accounts = ("TWILIO_AUTH_TOKEN_SECONDARY", "TWILIO_SHARED_KEYS", "TWILIO_ACCOUNTS")
    for name in accounts:
        assert name in NAMES and f"# {name}: " in text


# --- network policies ---


def policy(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = one("NetworkPolicy", name)["spec"]
    assert sorted(spec["policyTypes"]) == ["Egress", "Ingress"]
    return spec


def allowed_to(name: str) -> set[tuple[str, str]]:
    """(pods or a namespace, port) for each allowed connection to these pods."""
    found = set()
    for rule in policy(name)["ingress"]:
        for source in rule["from"]:
            (kind, chosen), *more = source.items()
            assert not more and kind in ("podSelector", "namespaceSelector")
            (who,) = chosen["matchLabels"].values()
            found |= {(who, str(it["port"])) for it in rule["ports"]}
    return found


def test_only_needed_connections_to_pods_are_allowed() -> None:
    """Other pods in the cluster reach neither Redis nor a bridge directly."""
    nobody = policy("nobody")

    assert nobody["podSelector"] == {} and not {"ingress", "egress"} & set(nobody)
    assert allowed_to("balancer") == {
        ("ingress-nginx", "http"),
        ("monitoring", "stats"),
    }
    assert allowed_to("bridge") == {
        (source, "http") for source in ("balancer", "bridge", "monitoring")
    }
    assert allowed_to("redis") == {("bridge", "redis")}


def test_only_needed_connections_from_pods_are_allowed() -> None:
    """Redis connects to nothing, the balancer only to bridges, the bridges only to
    Redis, to each other (for events) and to the internet; both may ask the DNS of the
    cluster."""
    assert "egress" not in policy("redis")
    to_bridges, names = policy("balancer")["egress"]
    (bridges,) = to_bridges["to"]
    assert bridges["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "bridge"}
    to_redis, to_each_other, same_names, outside = policy("bridge")["egress"]
    assert to_each_other == to_bridges
    (redis,) = to_redis["to"]
    assert redis["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "redis"}
    assert [it["port"] for it in to_redis["ports"]] == ["redis"]
    assert names == same_names
    assert {it["port"] for it in names["ports"]} == {53}
    dns, cache = names["to"]
    assert dns["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
    assert dns["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "kube-system"
    }
    assert cache == {"ipBlock": {"cidr": "169.254.20.10/32"}}
    assert [list(it) for it in outside["to"]] == [["ipBlock"]] * 2


def may_reach(address: str) -> bool:
    """Whether a bridge may connect to this address on any port."""
    ip = ipaddress.ip_address(address)
    blocks = [
        it["ipBlock"]
        for rule in policy("bridge")["egress"]
        for it in rule.get("to", [{"ipBlock": {"cidr": "0.0.0.0/0"}}])
        if "ipBlock" in it and "ports" not in rule
    ]
    return any(
        ip in ipaddress.ip_network(block["cidr"])
        and not any(ip in ipaddress.ip_network(it) for it in block.get("except", []))
        for block in blocks
    )


INSIDE = {
    "a pod or node": ["10.244.1.7", "172.31.0.9", "192.168.49.2", "fd00:10:244::7"],
    "the API server": ["10.96.0.1", "172.20.0.1", "fd00:10:96::1"],
    "a shared range": ["100.64.0.1", "100.127.255.254", "198.18.0.1", "192.0.0.192"],
    "metadata": [
        "169.254.169.254",
        "fd00:ec2::254",
        "168.63.129.16",
        "100.100.100.200",
    ],
    "the pod itself": ["127.0.0.1", "0.0.0.0", "::1", "::"],
    "a neighbour": ["fe80::1", "224.0.0.1", "255.255.255.255", "ff02::1"],
}


@pytest.mark.parametrize("name", INSIDE)
def test_the_bridges_do_not_reach_the_inside_of_the_cluster(name: str) -> None:
    """If a caller talks the agent into asking for an url, its tool reaches no pod,
    service, node or metadata service, also not by another spelling of its address."""
    for address in INSIDE[name]:
        assert not may_reach(address), address
        ip = ipaddress.ip_address(address)
        if isinstance(ip, ipaddress.IPv4Address):
            assert not may_reach(f"::ffff:{ip}"), address


def test_the_bridges_reach_the_internet() -> None:
    """The model, Twilio and tools on the internet are reachable, also with NAT64."""
    for address in (
        *("162.159.140.245", "52.200.1.1", "172.64.0.1", "100.128.0.1", "11.0.0.1"),
        *("2606:4700::1", "2a06:98c1::1", "64:ff9b::a29f:8cf5"),
    ):
        assert may_reach(address), address


@pytest.mark.parametrize(
    "address",
    ["10.96.0.1", "100.64.0.1", "169.254.169.254", "172.20.0.1", "192.168.0.1"],
)
def test_nat64_does_not_lead_inside(address: str) -> None:
    """A gateway for IPv6 clusters translates 64:ff9b::<IPv4>: also to private
    addresses, at some clouds."""
    number = int(ipaddress.ip_address("64:ff9b::")) + int(
        ipaddress.IPv4Address(address)
    )

    assert not may_reach(str(ipaddress.IPv6Address(number)))


def test_the_bridges_trust_the_balancers() -> None:
    """Limits for an address apply to the client's address, not to the balancer's."""
    settings = load(LITERALS, env_file=None)
    pod = one("Deployment", "balancer")["spec"]["template"]["spec"]
    env = {it["name"]: it.get("value") for it in pod["containers"][0]["env"]}

    assert [str(it) for it in settings.trusted_proxies] == [env["BALANCER_PROXIES"]]
    assert ("balancer", "http") in allowed_to("bridge"), "and who else is behind it?"


def test_a_deploy_lets_calls_finish() -> None:
    """Kubernetes does not kill a pod before its drain has ended."""
    wait = float(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = float(LITERALS["BRIDGE_DRAIN_SECONDS"])
    rolling = one("Deployment")["spec"]["strategy"]["rollingUpdate"]

    assert POD["terminationGracePeriodSeconds"] >= wait + drain + 30
    assert rolling == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_probes_use_the_right_paths() -> None:
    """A full instance gets no new calls, but is not restarted because of that."""
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


def test_every_selector_matches_pods() -> None:
    """No Service, disruption budget or policy selects nothing."""
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
    """The balancer finds all replicas, even during a deploy at maximum scale."""
    pod = one("Deployment", "balancer")["spec"]["template"]["spec"]
    env = {it["name"]: it.get("value") for it in pod["containers"][0]["env"]}
    most = one("HorizontalPodAutoscaler")["spec"]["maxReplicas"]
    service = one("Service")

    assert env["BALANCER_BRIDGES"] == "bridge.$(NAMESPACE).svc.cluster.local:8080"
    assert service["spec"]["clusterIP"] == "None"
    assert int(env["BALANCER_SLOTS"]) >= 2 * most, "old pods drain beside new ones"


def test_the_autoscaler_adds_instances_in_time() -> None:
    """It scales by the number of calls, at less than the capacity of an instance."""
    scaler = one("HorizontalPodAutoscaler")["spec"]
    (metric,) = scaler["metrics"]
    target = metric["pods"]["target"]["averageValue"]

    assert metric["pods"]["metric"]["name"] in bridge_figures()
    assert int(target) <= 0.75 * int(LITERALS["BRIDGE_MAX_CALLS"])
    assert scaler["minReplicas"] >= 2


@pytest.mark.parametrize("pod", PODS, ids=lambda it: it["containers"][0]["name"])
def test_pods_are_locked_down(pod: dict[str, Any]) -> None:
    """The pods run in a namespace that enforces the restricted security standard."""
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
