"""SECURITY.md: every file, setting, metric and link that it names exists."""

import re
from pathlib import Path

import pytest

from bridge.app.settings import NAMES
from tests.deploy.figures import bridge_figures

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`([^`\s]+)`", PAGE)))


@pytest.mark.parametrize("path", [it for it in NAMED if re.match(r"\w+/", it)])
def test_the_files_that_it_names_exist(path: str) -> None:
    """A reader who checks a claim finds the file that implements it."""
    assert (ROOT / path).exists()


def test_the_settings_that_it_names_exist() -> None:
    """An operator who follows the list finds each setting."""
    found = {it for it in NAMED if re.fullmatch(r"(BRIDGE|TWILIO|OPENAI)_[A-Z_]+", it)}

    assert found and found <= NAMES


def test_the_metrics_that_it_names_exist() -> None:
    """No alert depends on a metric that does not exist."""
    found = {it.partition("{")[0] for it in NAMED if it.startswith("bridge_")}

    assert found and found <= bridge_figures()


def test_its_links_lead_to_a_heading() -> None:
    """Also the links into the documents."""
    for target, heading in re.findall(r"\]\(([^)#]+)#?([^)]*)\)", PAGE):
        text = (ROOT / target).read_text("utf-8")
        titles = re.findall(r"^#+ (.*)$", text, re.M)
        assert not heading or heading in {
            re.sub(r"[^\w -]", "", it).lower().replace(" ", "-") for it in titles
        }
