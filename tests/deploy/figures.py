"""The names of the metrics and labels that dashboards and alerts may use."""

import re

from bridge.telemetry.metrics import Metrics

_NAME = re.compile(r"\b(?:bridge|haproxy|process)_[a-z0-9_]+\b")


def bridge_figures() -> set[str]:
    """Every series that a bridge exports, by its name in Prometheus."""
    found = set()
    for family in Metrics().registry.collect():
        if family.type == "counter":
            found.add(f"{family.name}_total")
        elif family.type == "histogram":
            found |= {f"{family.name}_{it}" for it in ("bucket", "sum", "count")}
        else:
            found.add(family.name)
    return found


def label_values() -> set[str]:
    """The values of the labels `why`, `side` and `limit`; all are exported from the
    start."""
    families = Metrics().registry.collect()
    return {
        value
        for family in families
        for sample in family.samples
        for name, value in sample.labels.items()
        if name in ("why", "side", "limit")
    }


def named(expression: str) -> set[str]:
    """The series that an expression names; label values are ignored."""
    return set(_NAME.findall(re.sub(r'"[^"]*"', '""', expression)))
