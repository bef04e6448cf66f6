"""scripts/audit.sh: what it reports, and that it admits when nothing was checked."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# `other` is for another Python; its advisories count, because the image may have it.
LOCK = f"""\
good==1.0 --hash=sha256:{"0" * 64}
other==2.0 ; python_version < '3' \\
    --hash=sha256:{"1" * 64}
"""
NOTHING_CHECKED = 75


@contextmanager
def database(*against: str) -> Iterator[str]:
    """An OSV server that knows an advisory for each of these (name==version)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = asked["package"]["name"]
            known = f"{name}=={asked['version']}" in against
            affected = [{"package": {"name": name, "ecosystem": "PyPI"}}]
            vulns = [{"id": f"PYSEC-{name}", "summary": "a hole", "affected": affected}]
            answer = json.dumps({"vulns": vulns} if known else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def audit(folder: Path, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    lock = folder / "lock"
    lock.write_text(LOCK)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [ROOT / "scripts" / "audit.sh", lock, *options],
        env={**os.environ, "PATH": path, "OSV_URL": url},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_no_advisory_is_known(tmp_path: Path) -> None:
    """Options, such as a file for the result, apply to the lock alone."""
    with database("pyyaml==5.3") as url:
        done = audit(tmp_path, url, "-f", "json", "-o", str(tmp_path / "found.json"))

    assert (done.returncode, done.stdout) == (0, "")
    assert "good" in (tmp_path / "found.json").read_text()


def test_an_advisory_fails_the_audit_and_may_be_accepted(tmp_path: Path) -> None:
    with database("pyyaml==5.3", "other==2.0") as url:
        found = audit(tmp_path, url)
        accepted = audit(tmp_path, url, "--ignore-vuln", "PYSEC-other")

    assert found.returncode == 1
    assert "other" in found.stdout and "PYSEC-other" in found.stdout
    assert accepted.returncode == 0


def test_without_a_database_the_result_says_so(tmp_path: Path) -> None:
    """A mirror without any advisory is not mistaken for a database that found none."""
    with database() as url:
        ignorant = audit(tmp_path, url)
    closed = audit(tmp_path, url)

    for done in (ignorant, closed):
        assert done.returncode == NOTHING_CHECKED
        assert "NOTHING WAS CHECKED" in done.stdout


def test_a_failed_audit_is_not_reported_as_an_outage(tmp_path: Path) -> None:
    """An option that pip-audit does not know is not mistaken for an unreachable
    database."""
    with database("pyyaml==5.3") as url:
        wrong = audit(tmp_path, url, "--no-such-option")

    assert wrong.returncode not in (0, NOTHING_CHECKED)
