"""SECURITY.md: what it names is there."""

import re
from pathlib import Path

import pytest

from bridge.app.settings import NAMES
from tests.deploy.figures import bridge_figures

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`([^`\s]+)`", PAGE)))


@pytest.mark.parametrize("path", [it for it in NAMED if re.match(r"\w+/", it)])
def test_what_it_points_to_is_there(path: str) -> None:
    """Whoever checks a claim finds the file that keeps it."""
    assert (ROOT / path).exists()


def test_what_it_has_set_can_be_set() -> None:
    """An operator who goes through the list finds each setting."""
    found = {it for it in NAMED if re.fullmatch(r"(BRIDGE|TWILIO|OPENAI)_[A-Z_]+", it)}

    assert found and found <= NAMES


def test_what_it_counts_is_counted() -> None:
    """No alarm is built on a figure that does not exist."""
    found = {it.partition("{")[0] for it in NAMED if it.startswith("bridge_")}

    assert found and found <= bridge_figures()


def test_its_links_lead_somewhere() -> None:
    """Also into the handbook."""
    for target, heading in re.findall(r"\]\(([^)#]+)#?([^)]*)\)", PAGE):
        text = (ROOT / target).read_text("utf-8")
        titles = re.findall(r"^#+ (.*)$", text, re.M)
        assert not heading or heading in {
            re.sub(r"[^\w -]", "", it).lower().replace(" ", "-") for it in titles
        }
