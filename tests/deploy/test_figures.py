"""Dashboards and alerts: they use existing metrics, and alerts say what to do."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.core.limits import HITS
from bridge.telemetry.metrics import REFUSALS
from tests.deploy.figures import bridge_figures, label_values, named

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/bridge.json").read_text("utf-8"))
HANDBOOK = (ROOT / "docs" / "operations.md").read_text("utf-8")
AFTER_A_DEPLOY = "Calls end after a deploy"
"""A symptom for which there is no alert."""
PANELS = [it for it in DASHBOARD["panels"] if it["type"] != "row"]

# Of HAProxy's exporter; tests/deploy/test_fleet.py checks that they exist.
BALANCER_FIGURES = {
    "haproxy_backend_active_servers",
    "haproxy_backend_redispatch_warnings_total",
    "haproxy_backend_retry_warnings_total",
    "haproxy_frontend_http_responses_total",
}


def expressions() -> list[str]:
    panels = [it["expr"] for panel in PANELS for it in panel["targets"]]
    return panels + [rule["expr"] for rule in ALERTS]


def sections() -> dict[str, str]:
    """The sections of docs/operations.md with a heading of level 3, by heading."""
    found = re.findall(r"(?m)^### (.*)\n((?:(?!##).*\n?)*)", HANDBOOK)
    return {heading: text for heading, text in found}


def test_every_metric_that_is_used_exists() -> None:
    """No panel stays empty and no alert stays silent because of a wrong metric name."""
    asked = {name for text in expressions() for name in named(text)}

    assert asked - bridge_figures() - BALANCER_FIGURES == set()


def test_every_label_value_that_is_used_exists() -> None:
    """No alert is silent, or fires, because of a wrong label value."""
    asked = re.findall(r'(?:why|side|limit)[!=~]+"([^"]*)"', " ".join(expressions()))
    patterns = {value for text in asked for value in text.split("|")}

    for pattern in patterns:
        assert any(re.fullmatch(pattern, it) for it in label_values()), pattern


def test_every_metric_of_the_bridge_is_on_the_dashboard() -> None:
    """An operator sees every metric of the bridge without writing a query."""
    shown = {
        name
        for panel in PANELS
        for it in panel["targets"]
        for name in named(it["expr"])
    }
    families = {
        re.sub(r"_(bucket|sum|count|created)$", "", it) for it in bridge_figures()
    }

    assert {it for it in families if it.startswith("bridge_")} - {
        re.sub(r"_bucket$", "", it) for it in shown
    } == set()


def test_the_dashboard_is_provisioned() -> None:
    """Grafana starts with the dashboard and its data source."""
    folder = DEPLOY / "grafana/provisioning"
    sources = yaml.safe_load((folder / "datasources/prometheus.yml").read_text("utf-8"))
    (source,) = sources["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards/bridge.yml").read_text("utf-8"))[
        "providers"
    ]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))

    assert all(panel["datasource"]["uid"] == source["uid"] for panel in PANELS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(
        DASHBOARD["panels"]
    )
    assert provider["options"]["path"] == "/deploy/grafana/dashboards"
    assert "./deploy:/deploy:ro" in compose["services"]["grafana"]["volumes"]
    assert all(panel["description"] or panel["title"] == "Memory" for panel in PANELS)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    """The operator on call learns from the alert what callers notice and the first
    command, and finds the same command in the alert's section of the runbook."""
    name, told = rule["alert"], rule["annotations"]
    section = sections()[name]

    assert rule["labels"]["severity"] in ("page", "ticket")
    assert told["summary"] and told["do"]
    assert told["runbook_url"].endswith(f"#{name.lower()}")
    for command in re.findall(r"`([^`]+)`", told["do"]):
        assert command.replace("bridge=N", "bridge=4") in section


@pytest.mark.parametrize("name", [*(rule["alert"] for rule in ALERTS), AFTER_A_DEPLOY])
def test_a_section_of_the_runbook_has_four_parts(name: str) -> None:
    """An operator finds at the same place in each section: what callers notice, the
    first command (compose and Kubernetes), what to do then, and the sign that the
    problem is solved."""
    parts = re.findall(r"(?m)^- \*\*(\w+)\*\*((?:.*\n)(?:  .*\n)*)", sections()[name])
    assert [part for part, _ in parts] == ["Callers", "First", "Then", "Solved"]

    commands = re.findall(r"(?m)^  `([^`]+)`$", dict(parts)["First"])
    assert [command.split()[0] for command in commands][1:] == ["kubectl"]
    assert commands[0].startswith(("docker compose", "docker stats", "df "))


def test_the_runbook_names_existing_panels_and_sections() -> None:
    """No operator looks for a panel or a section that does not exist."""
    panels = {panel["title"] for panel in PANELS}
    sentences = re.findall(r"panels? (\*[^.;:]*?\*)(?=[ ,;.:)])", HANDBOOK)
    named_panels = {it for text in sentences for it in re.findall(r"\*([^*]+)\*", text)}
    linked = set(re.findall(r"(?<![!\w`])\[([A-Z]\w+)\](?![(:\w])", HANDBOOK))

    assert len(named_panels) > 5
    assert {re.sub(r"\s+", " ", it) for it in named_panels} <= panels
    assert linked and linked <= sections().keys()
    for name in sections():
        if re.fullmatch(r"[A-Z]\w+", name) and name in linked:
            assert f"\n[{name}]: #{name.lower()}\n" in HANDBOOK


@pytest.mark.parametrize("name", [*HITS, *REFUSALS])
def test_operations_md_explains_each_limit_and_refusal(name: str) -> None:
    """An operator who sees a label on the dashboard can look up its meaning."""
    (section,) = re.findall(r"^## Refusals and limits$(.*?)^## ", HANDBOOK, re.M | re.S)

    assert f"`{name}`" in section
