"""`bridge show`: which call it shows, which file it writes, and its errors."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from bridge.cli.commands import app
from tests.support.traces import text_of
from tests.telemetry.test_trace import a_whole_call


def show(*options: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    done = CliRunner().invoke(app, ["show", *options])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    a_whole_call(tmp_path)
    return tmp_path


def test_the_page_of_the_newest_call(folder: Path) -> None:
    """One command after the call; the file is private and its name is printed."""
    code, said, errors = show("--last", "--folder", str(folder))

    assert (code, errors) == (0, "")
    written = folder / "CA1.MZ1.call.html"
    assert said == f"{written}\n"
    assert written.stat().st_mode & 0o777 == 0o600
    assert written.read_text().startswith("<!doctype html>")


def test_a_page_is_replaced(folder: Path) -> None:
    """A running call is shown again and again; rights of an old file do not stay."""
    written = folder / "CA1.MZ1.call.html"
    written.write_text("an earlier page")
    written.chmod(0o644)

    assert show("CA1", "--folder", str(folder))[0] == 0
    assert written.stat().st_mode & 0o777 == 0o600
    assert "an earlier page" not in written.read_text()
    assert {it.name for it in folder.iterdir()} == {
        "CA1.MZ1.call.html",
        "CA1.MZ1.trace.jsonl.zst",
    }


def test_the_recording(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "heard.wav"
    trace = folder / "CA1.MZ1.trace.jsonl.zst"
    assert show(str(trace), "--wav", "--out", str(other))[0] == 0

    assert other.read_bytes()[:4] == b"RIFF"
    assert other.stat().st_mode & 0o777 == 0o600


def test_the_page_and_the_recording_of_one_replay(folder: Path) -> None:
    """They are the files that each option alone makes; one name is not for both."""
    assert show("CA1", "--wav", "--folder", str(folder))[0] == 0
    assert show("CA1", "--folder", str(folder))[0] == 0
    names = ("CA1.MZ1.call.wav", "CA1.MZ1.call.html")
    alone = [(folder / name).read_bytes() for name in names]
    for name in names:
        (folder / name).unlink()

    code, said, _ = show("CA1", "--wav", "--page", "--folder", str(folder))

    assert (code, said) == (0, "".join(f"{folder / name}\n" for name in names))
    assert [(folder / name).read_bytes() for name in names] == alone
    options = ("--wav", "--page", "--out", "x", "--folder", str(folder))
    code, _, told = show("CA1", *options)
    assert (code, "--out names one file" in told) == (1, True)


def test_the_text_as_a_picture(folder: Path) -> None:
    assert show("CA1", "--svg", "--folder", str(folder))[0] == 0
    written = folder / "CA1.MZ1.call.svg"

    assert written.read_text().startswith("<svg")
    assert "Call&#160;CA1" in written.read_text() or "Call CA1" in written.read_text()
    assert written.stat().st_mode & 0o777 == 0o600


def test_the_text(folder: Path) -> None:
    """For a terminal: who said what, and what was not heard."""
    code, said, _ = show("CA1", "--text", "--folder", str(folder))

    assert code == 0
    assert "Grüß Gott" in said
    assert "The call lasted 0:0" in said


def test_a_trace_of_an_earlier_version(folder: Path) -> None:
    """It is not compressed, and is shown like any other."""
    new = folder / "CA1.MZ1.trace.jsonl.zst"
    old = folder / "CA1.MZ1.trace.jsonl"
    old.write_text(text_of(new))
    new.unlink()

    assert show("--last", "--folder", str(folder))[0] == 0
    assert (folder / "CA1.MZ1.call.html").exists()


def test_errors_say_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("BRIDGE_RECORD_DIR", raising=False)
    monkeypatch.setenv("BRIDGE_INSECURE", "1")
    (folder / "no.trace.jsonl.zst").write_bytes(b"no trace\n")
    where = str(folder)

    for options, error in (
        ([], "Name a trace or a call's SID, or use --last."),
        (["CA1", "--last"], "Name a trace or a call's SID, or use --last."),
        (["CA9", "--folder", where], f"{where} has no trace of CA9."),
        (["--last", "--folder", f"{where}/x"], "/x cannot be read: No such file"),
        ([f"{where}/no.trace.jsonl.zst"], "is no trace, or it is damaged"),
        ([f"{where}/none.trace.jsonl"], "No such file or directory"),
        (["--last"], "No traces: set BRIDGE_RECORD_DIR, or use --folder."),
        (
            ["CA1", "--folder", where, "--out", f"{where}/a/b.html"],
            "cannot be written: No such file or directory",
        ),
    ):
        code, said, told = show(*options)
        assert (code, said) == (1, ""), options
        assert error in told, options
        assert "Traceback" not in told
