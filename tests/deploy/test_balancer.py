"""deploy/haproxy.cfg: HAProxy takes it, and keeps what calls rely on."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from scripts import fleet

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "haproxy.cfg"
SECTIONS = {
    section.split()[1]: section
    for section in re.split(
        r"^(?=defaults |frontend |backend )", CONFIG.read_text(), flags=re.M
    )[1:]
}

SERVERS = "".join(
    f"backend {it} from for-{it}\n    server bridge1 127.0.0.1:1\n"
    for it in fleet.BACKENDS
)

needs_haproxy = pytest.mark.skipif(
    "haproxy" in fleet.missing(), reason="no haproxy here"
)


@needs_haproxy
@pytest.mark.parametrize("by", ["dns", "list"])
def test_haproxy_takes_the_file(by: str, tmp_path: Path) -> None:
    """It starts in a container, in a cluster and on a bare machine, with no warning."""
    (tmp_path / "servers.cfg").write_text(SERVERS)
    kept = {it: os.environ[it] for it in os.environ if not it.startswith("BALANCER_")}
    more = {"BALANCER_BRIDGES": "bridge:8080"} if by == "dns" else {}
    files = [] if by == "dns" else ["-f", str(tmp_path / "servers.cfg")]
    done = subprocess.run(
        [fleet.program("haproxy") or "", "-c", "-f", str(CONFIG), *files],
        env={**kept, **more},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_a_full_house_still_answers() -> None:
    """Webhooks reach every instance that lives, streams those that do not drain."""
    assert "uri /healthz" in SECTIONS["for-webhooks"]
    assert "uri /readyz" in SECTIONS["streams"]
    assert "(ready|full)" in SECTIONS["streams"]
    assert "balance leastconn" in SECTIONS["for-media"]


def test_streams_last() -> None:
    """A long call is not cut, nor one on an instance that drains."""
    lines = [line.strip() for line in CONFIG.read_text().splitlines()]
    hours = re.search(r"timeout tunnel (\d+)h", SECTIONS["streams"])

    assert hours is not None and int(hours[1]) >= 4
    assert not [it for it in lines if it[:1] != "#" and "on-marked-down" in it]


def test_webhooks_are_answered_before_twilio_gives_up() -> None:
    """One instance that hangs costs a caller some seconds, not the call."""
    seconds = re.search(r"timeout server (\d+)s", SECTIONS["for-webhooks"])

    assert seconds is not None and 2 * int(seconds[1]) < 15


def test_calls_are_not_placed_twice() -> None:
    """What is no webhook of Twilio's is never asked again somewhere else."""
    assert "disable-l7-retry if { path_beg /api/ /openai/ }" in SECTIONS["for-webhooks"]
