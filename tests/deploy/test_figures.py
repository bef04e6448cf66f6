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
    """The operator on call learns what callers notice, and what to do first."""
    handbook = (ROOT / "docs" / "operations.md").read_text("utf-8")

    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"] and rule["annotations"]["do"]
    assert f"### {rule['alert']}" in handbook
    assert rule["annotations"]["runbook_url"].endswith(f"#{rule['alert'].lower()}")


@pytest.mark.parametrize("name", [*HITS, *REFUSALS])
def test_operations_md_explains_each_limit_and_refusal(name: str) -> None:
    """An operator who sees a label on the dashboard can look up its meaning."""
    handbook = (ROOT / "docs" / "operations.md").read_text("utf-8")
    (section,) = re.findall(r"^## Refusals and limits$(.*?)^## ", handbook, re.M | re.S)

    assert f"`{name}`" in section
