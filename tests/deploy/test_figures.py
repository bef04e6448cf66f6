"""Dashboards and alarms: they ask for what there is, and say what to do."""

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

# Of the exporter in HAProxy; tests/deploy/test_fleet.py sees that it tells them.
BALANCER_FIGURES = {
    "haproxy_backend_active_servers",
    "haproxy_backend_redispatch_warnings_total",
    "haproxy_backend_retry_warnings_total",
    "haproxy_frontend_http_responses_total",
}


def expressions() -> list[str]:
    panels = [it["expr"] for panel in PANELS for it in panel["targets"]]
    return panels + [rule["expr"] for rule in ALERTS]


def test_every_figure_that_is_asked_for_is_told() -> None:
    """No panel stays empty, and no alarm silent, because of a name."""
    asked = {name for text in expressions() for name in named(text)}

    assert asked - bridge_figures() - BALANCER_FIGURES == set()


def test_every_label_that_is_asked_for_is_told() -> None:
    """No alarm is silent, or loud, because of the name of a reason."""
    asked = re.findall(r'(?:why|side|limit)[!=~]+"([^"]*)"', " ".join(expressions()))
    patterns = {value for text in asked for value in text.split("|")}

    for pattern in patterns:
        assert any(re.fullmatch(pattern, it) for it in label_values()), pattern


def test_every_figure_of_ours_is_shown() -> None:
    """What the bridge measures can be seen without writing a query."""
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
    """It is there when Grafana starts, with its figures."""
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
def test_an_alarm_says_what_to_do(rule: dict[str, Any]) -> None:
    """Whoever is woken knows what is wrong for callers, and the first thing to try."""
    handbook = (ROOT / "docs" / "operations.md").read_text("utf-8")

    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"] and rule["annotations"]["do"]
    assert f"### {rule['alert']}" in handbook
    assert rule["annotations"]["runbook_url"].endswith(f"#{rule['alert'].lower()}")


@pytest.mark.parametrize("name", [*HITS, *REFUSALS])
def test_the_handbook_knows_who_is_kept_out(name: str) -> None:
    """Whoever sees a label on the dashboard can look up what it means."""
    handbook = (ROOT / "docs" / "operations.md").read_text("utf-8")
    (section,) = re.findall(r"^## Kept out$(.*?)^## ", handbook, re.M | re.S)

    assert f"`{name}`" in section
