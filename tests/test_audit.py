"""The audit of what is installed: what it lets pass, and what it refuses."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, ClassVar

import pytest
from packaging.requirements import Requirement

from scripts import audit

PINS = audit.pins_of("good==1.0\nother==2.0\n")
DIRECT = [Requirement("good>=1.0"), Requirement("Other>=1.5")]


def installed(site: Path, name: str, version: str) -> Path:
    """As pip leaves a package; the path of its only module."""
    module, info = site / f"{name}.py", site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    module.write_text("answer = 42\n")
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )
    digest = hashlib.sha256(module.read_bytes()).digest()
    coded = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    (info / "RECORD").write_text(
        f"{module.name},sha256={coded},12\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n"
    )
    return module


@pytest.fixture
def site(tmp_path: Path) -> Path:
    installed(tmp_path, "good", "1.0")
    installed(tmp_path, "other", "2.0")
    return tmp_path


def packages(site: Path) -> list[str]:
    found = list(distributions(path=[str(site)]))
    return list(audit.other_packages(PINS, found, "own"))


def files(site: Path) -> list[str]:
    return list(audit.other_files(list(distributions(path=[str(site)])), site))


def test_what_was_chosen_passes(site: Path) -> None:
    """No false alarm: it is run on each change."""
    installed(site, "own", "0.1")
    cached = site / "__pycache__" / "good.pyc"
    cached.parent.mkdir()
    cached.touch()

    assert packages(site) == files(site) == []


def test_our_own_lock_is_one() -> None:
    """`make lock` was not forgotten."""
    text = (audit.ROOT / "requirements.lock").read_text("utf-8")

    assert list(audit.lock_mistakes(text, audit.direct_requirements())) == []


@pytest.mark.parametrize(
    "line",
    [
        "good>=1.0",
        "good",
        "good @ https://example.com/good-1.0.whl",
        "good==1.0 ; no marker",
        "--index-url https://example.com/simple",
        "-e git+https://example.com/good.git",
        "git+https://example.com/good.git",
        "./good-1.0.whl",
        "good==1.0 --hash=sha256:00",
        "good==1.*",
    ],
)
def test_a_line_that_is_no_pin_is_refused(line: str) -> None:
    """Nothing comes from another place, or in another version tomorrow."""
    mistakes = list(audit.lock_mistakes(f"# why\n{line}\n", []))

    assert mistakes == [f"requirements.lock: no plain pin (name==version): {line}"]


def test_a_lock_that_is_not_of_pyproject_is_refused() -> None:
    """A dependency that was added or raised without `make lock` is noticed."""
    stale = list(audit.lock_mistakes("good==0.9\ngood==0.9\n", DIRECT))

    assert stale == [
        "requirements.lock: good is there twice",
        "requirements.lock: 0.9 is not good>=1.0: make lock",
        "requirements.lock: lacks Other of pyproject.toml: make lock",
    ]


def test_packages_that_nobody_chose_are_refused(tmp_path: Path) -> None:
    """What runs here is what runs there."""
    installed(tmp_path, "good", "1.1")
    installed(tmp_path, "stranger", "6.6")

    assert packages(tmp_path) == [
        "stranger 6.6 is installed, and in no line of requirements.lock",
        "good is installed as 1.1, and locked as 1.0",
        "other 2.0 is locked, and not installed",
    ]


def test_a_pin_of_another_python_is_not_missed(site: Path) -> None:
    """3.11 lacks what the lock has for 3.13 alone."""
    pins = [*PINS, *audit.pins_of('late==1.0 ; python_version >= "4.0"\n')]
    found = list(distributions(path=[str(site)]))

    assert list(audit.other_packages(pins, found, "own")) == []


def test_files_that_were_changed_are_refused(site: Path) -> None:
    """Somebody's edit in the site-packages, a half installation, a planted module."""
    (site / "good.py").write_text("answer = 43\n")
    (site / "other.py").unlink()
    (site / "zzz.pth").write_text("import os")

    assert sorted(files(site)) == [
        "good: good.py is not as it was installed",
        "other: other.py is gone",
        "zzz.pth belongs to no package",
    ]


def test_a_package_without_a_record_is_refused(site: Path) -> None:
    """Nobody can say whether its files are those that were brought."""
    (site / "good-1.0.dist-info" / "RECORD").unlink()

    assert "good has no RECORD of its files" in files(site)


# --- what is known against it ---


class Database(BaseHTTPRequestHandler):
    """Answers as OSV does (https://google.github.io/osv.dev/post-v1-querybatch/)."""

    against: ClassVar[dict[str, list[str]]] = {}
    told: ClassVar[dict[str, dict[str, Any]]] = {}
    mistaken: ClassVar[bytes | None] = None

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        queries = json.loads(self.rfile.read(length))["queries"]
        assert all(it["package"]["ecosystem"] == "PyPI" for it in queries)
        names = [f"{it['package']['name']}=={it['version']}" for it in queries]
        results = [
            {"vulns": [{"id": it} for it in ids]}
            if (ids := self.against.get(name))
            else {}
            for name in names
        ]
        self._say({"results": results})

    def do_GET(self) -> None:
        self._say(self.told[self.path.rpartition("/")[2]])

    def _say(self, answer: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.mistaken or json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Nothing on the screen."""


@contextmanager
def database(
    against: dict[str, list[str]],
    told: dict[str, dict[str, Any]] | None = None,
    mistaken: bytes | None = None,
) -> Iterator[str]:
    named = {"against": against, "told": told or {}, "mistaken": mistaken}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("It", (Database,), named))
    serving = threading.Thread(target=server.serve_forever, args=(0.02,))
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        serving.join()


def test_an_advisory_against_a_pin_is_told() -> None:
    """With its name and what it is about; not one that was withdrawn."""
    against = {
        audit.KNOWN_BAD: ["PYSEC-0"],
        "other==2.0": ["GHSA-1", "GHSA-2"],
    }
    told = {
        "GHSA-1": {"id": "GHSA-1", "summary": "It gives everything away"},
        "GHSA-2": {"id": "GHSA-2", "withdrawn": "2026-01-01T00:00:00Z"},
    }
    with database(against, told) as url:
        found = list(audit.advisories(PINS, url))

    assert found == ["other 2.0: GHSA-1: It gives everything away"]


def test_an_accepted_advisory_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """By whatever of its names it was accepted."""
    monkeypatch.setitem(audit.ACCEPTED, "CVE-1", "a server's, we are none")
    against = {audit.KNOWN_BAD: ["PYSEC-0"], "good==1.0": ["GHSA-1"]}
    with database(against, {"GHSA-1": {"aliases": ["CVE-1"]}}) as url:
        assert list(audit.advisories(PINS, url)) == []


@pytest.mark.parametrize(
    "mistaken", [None, b"<html>sign in</html>", b"[]", b"{}", b'{"results": [1]}']
)
def test_a_database_that_is_none_is_not_believed(mistaken: bytes | None) -> None:
    """A proxy that answers everything is not taken for "nothing is known"."""
    with database({}, mistaken=mistaken) as url, pytest.raises(audit.NotAnsweredError):
        list(audit.advisories(PINS, url))


def test_without_a_database_it_is_not_ok(capsys: pytest.CaptureFixture[str]) -> None:
    """CI says that nobody has looked; and what is wrong without it is told all the
    same."""
    nobody = "http://127.0.0.1:9/v1"

    assert audit.verdict([], PINS, nobody) == audit.NOT_CHECKED
    assert "no advisory was looked up" in capsys.readouterr().out
    assert audit.verdict(["good.py is gone"], PINS, nobody) == 1
    assert "good.py is gone" in capsys.readouterr().out


def test_with_one_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """All is well: said, and 0."""
    with database({audit.KNOWN_BAD: ["PYSEC-0"]}) as url:
        assert audit.verdict([], PINS, url) == 0

    assert capsys.readouterr().out.count("ok:") == 2
