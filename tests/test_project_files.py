"""The files around the code: what a new machine, a container and CI start from."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bridge.app.settings import NAMES, SECRET_NAMES, Settings, file_name, load
from tests.support.locks import locked
from tests.support.not_run import NEEDS

ROOT = Path(__file__).resolve().parents[1]
PROJECT_FILES = [
    "Makefile",
    "Dockerfile",
    ".dockerignore",
    "docker-compose.yml",
    ".env.example",
    ".ci/run",
    "requirements.lock",
    "requirements-dev.lock",
    "requirements-bootstrap.lock",
    "pyproject.toml",
]
LOCKS = [name for name in PROJECT_FILES if name.endswith(".lock")]
PYTHONS = ("3.11", "3.12", "3.13")
# Examples, this machine, and services of the same network: nothing is downloaded.
HARMLESS_URLS = (
    "https://bridge.example.com",
    "http://127.0.0.1",
    "redis://127.0.0.1",
    "redis://redis:6379",
    "http://balancer:8080",
)


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def declared(lock: str) -> list[Requirement]:
    """The requirements of pyproject.toml that this lock must contain."""
    whole = tomllib.loads(text("pyproject.toml"))
    groups = whole["dependency-groups"]
    lines = groups["bootstrap"]
    if lock != "requirements-bootstrap.lock":
        lines = whole["project"]["dependencies"]
    if lock == "requirements-dev.lock":
        extras = whole["project"]["optional-dependencies"]
        extra = [*extras["voice"], *extras["reload"]]
        dev = [it for it in groups["dev"] if isinstance(it, str)]
        lines = [*lines, *extra, *groups["bootstrap"], *dev]
    return [Requirement(line) for line in lines]


def holds(requirement: Requirement, python: str) -> bool:
    environment = {"python_version": python, "python_full_version": f"{python}.9"}
    return requirement.marker is None or requirement.marker.evaluate(environment)


# -------------------------------------------------------------------------- the locks


@pytest.mark.parametrize("name", LOCKS)
def test_each_line_of_a_lock_is_a_pin_with_hashes(name: str) -> None:
    """Every machine installs the same bytes, whichever index they come from."""
    lines = [line for line in text(name).splitlines() if line[0] != "#"]
    pin = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [^;#@\\]+)? \\")
    digest = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
    odd = [it for it in lines if not pin.fullmatch(it) and not digest.fullmatch(it)]

    assert not odd
    pins = [it for it in lines if pin.fullmatch(it)]
    assert len(locked(name)) == len(pins), "a name twice"
    followed = [lines[lines.index(it) + 1] for it in pins]
    assert all(digest.fullmatch(it) for it in followed)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_all_that_is_declared(name: str, python: str) -> None:
    """A new machine gets a bridge that starts, on each supported Python."""
    lock = locked(name)
    for requirement in declared(name):
        if not holds(requirement, python):
            continue
        pin = lock.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not locked: make lock"
        assert holds(pin, python), f"{pin} is not installed on {python}"
        (version,) = pin.specifier
        assert requirement.specifier.contains(version.version), f"{pin}: make lock"


def test_the_locks_are_one_resolution() -> None:
    """The image runs the versions, and the bytes, that were tested."""
    tested = blocks("requirements-dev.lock")
    for name in LOCKS:
        assert blocks(name) <= tested, name


def blocks(name: str) -> set[str]:
    """Each version with its hashes, as one text without the marker."""
    found = re.findall(r"(?m)^(\S+==\S+).*\n((?: .*\n)+)", text(name))
    return {version + hashes for version, hashes in found}


def test_the_lock_knows_where_audioop_is_missing() -> None:
    """Python 3.13 has no audioop; there, and only there, a package replaces it."""
    pin = locked("requirements.lock")["audioop-lts"]

    assert [holds(pin, python) for python in PYTHONS] == [False, False, True]


# ----------------------------------------------------------------------- the version


def test_the_changelog_tells_operators_what_to_do_for_each_version() -> None:
    """An operator who upgrades reads one list of steps, under the installed version's
    number."""
    project = tomllib.loads(text("pyproject.toml"))["project"]
    heads = re.split(r"(?m)^## ", text("CHANGELOG.md"))[1:]
    heads = [head for head in heads if not head.startswith("Unreleased\n")]
    form = re.compile(r"(\d+)\.(\d+)\.(\d+) - \d{4}-\d\d-\d\d\n")
    found = [form.match(head) for head in heads]
    assert all(found), [head.splitlines()[0] for head in heads]
    versions = [tuple(map(int, it.groups())) for it in found if it]

    assert versions == sorted(versions, reverse=True)
    assert project["version"] == ".".join(map(str, versions[0]))
    for head in heads:
        assert re.search(r"(?m)^### For operators\n\n\S", head), head.splitlines()[0]


# ------------------------------------------------------- what `make test` leaves out


def test_each_marker_names_a_command_that_ci_runs() -> None:
    """Tests that `make test` leaves out are run by .ci/run, with the command that the
    marker names."""
    options = tomllib.loads(text("pyproject.toml"))["tool"]["pytest"]["ini_options"]
    needs = [it for it in options["markers"] if it.partition(": ")[2].startswith(NEEDS)]
    assert needs
    for marker in needs:
        (target,) = re.findall(r"\(make ([\w-]+)\)$", marker)
        assert re.search(rf"(?m)^{target}: ", text("Makefile"))
        assert re.search(rf"(?m)^step .*\b{target}\b", text(".ci/run")), marker


# --------------------------------------------------------- no machine-specific files


@pytest.mark.parametrize("name", PROJECT_FILES)
def test_no_file_names_a_host_or_a_machine(name: str) -> None:
    """A clone works in other networks, with other mirrors."""
    content = text(name)
    urls = re.findall(r"\b[a-z+]+://[^\s'\"`)]+", content)
    strange = [url for url in urls if not url.startswith(HARMLESS_URLS)]
    options = re.findall(r"--(?:extra-)?index-url|--find-links|--trusted-host", content)
    paths = re.findall(r"(?<![\w.$}])/(?:root|home|work|opt|Users|mnt)\b\S*", content)

    assert not strange + options + paths


def test_the_base_image_is_named_without_a_registry() -> None:
    """The base image comes from the registry that docker is configured for, and its
    digest determines the bytes."""
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", text("Dockerfile"), re.MULTILINE)

    assert re.fullmatch(r"python:3\.13-slim@sha256:[0-9a-f]{64}", base)


# -------------------------------------- container (compose: deploy/test_compose.py)


def test_the_image_runs_the_bridge_without_root() -> None:
    """The process that strangers connect to is not root, and is stopped with
    SIGTERM."""
    lines = text("Dockerfile").splitlines()

    assert lines[-2:] == ['ENTRYPOINT ["bridge"]', 'CMD ["serve"]']
    assert "USER 10001" in lines and "EXPOSE 8080" in lines
    assert "STOPSIGNAL SIGTERM" in lines
    assert lines.index("USER 10001") > max(
        number for number, line in enumerate(lines) if line.startswith("COPY")
    )


def test_the_image_has_what_it_copies_and_no_secret() -> None:
    """The build finds its files; .env, .git and recordings do not get into the
    image."""
    included = [
        line[1:] for line in text(".dockerignore").splitlines() if line.startswith("!")
    ]
    copied = [
        word
        for words in re.findall(r"^COPY (?!--from)(.*) \S+$", text("Dockerfile"), re.M)
        for word in words.split()
    ]

    assert "\n*\n" in text(".dockerignore")
    assert sorted(set(copied)) == sorted(included)
    assert all((ROOT / name).exists() for name in copied)


# ----------------------------------------------------------------------- .env.example


def examples() -> dict[str, str]:
    found = re.findall(r"^# ([A-Z][A-Z_]+)=(.*)$", text(".env.example"), re.MULTILINE)
    assert len(found) == len(dict(found)), "a variable twice"
    return dict(found)


def test_every_variable_is_explained() -> None:
    """An operator finds each setting with a sentence that explains it."""
    lines = text(".env.example").splitlines()
    of_compose = set(re.findall(r"\$\{([A-Z_]+):[-+]", text("docker-compose.yml")))
    of_compose -= {file_name(name) for name in SECRET_NAMES}  # explained at the top

    assert set(examples()) == NAMES | of_compose
    for number, line in enumerate(lines):
        if re.match(r"# [A-Z_]+=", line):
            assert re.match(r"# \S.*[.]$", lines[number - 1]), line


def test_a_copied_example_changes_nothing(tmp_path: Path) -> None:
    """`cp .env.example .env` is safe: every line is commented out."""
    shutil.copy(ROOT / ".env.example", tmp_path / ".env")

    assert load({}, tmp_path / ".env") == Settings()


# For these the example shows the form of a value, for all others the default.
FORMS = frozenset(
    {
        "BRIDGE_PUBLIC_URL",
        "BRIDGE_MODEL_URL",
        "BRIDGE_MODEL_HEADERS",
        "BRIDGE_RECORD_DIR",
        "BRIDGE_FALLBACK_NUMBER",
        "TWILIO_AUTH_TOKEN",
        "TWILIO_ACCOUNT_SID",
        "OPENAI_API_KEY",
        "OPENAI_WEBHOOK_SECRET",
        "BRIDGE_ROUTES",
        "BRIDGE_API_TOKEN",
        "BRIDGE_ADVERTISE_URL",
        "BRIDGE_MODEL_CONNECT",
        "BRIDGE_REPORT_URL",
        "BRIDGE_REPORT_SECRET",
        "BRIDGE_OUTBOUND_PREFIXES",
        "BRIDGE_OUTBOUND_NUMBER",
        "BRIDGE_TWILIO_API_URL",
        "BRIDGE_REDIS_URL",
        "BRIDGE_TRUSTED_PROXIES",
        "BRIDGE_PRICES",
        "BRIDGE_TRANSFER_PREFIXES",
        "TWILIO_AUTH_TOKEN_SECONDARY",
        "TWILIO_SHARED_KEYS",
        "TWILIO_ACCOUNTS",
        "TWILIO_API_KEY",
        "TWILIO_API_SECRET",
        "TWILIO_REGION",
        "TWILIO_EDGE",
    }
)


def test_every_example_is_valid_and_shows_the_default(tmp_path: Path) -> None:
    """A line works when it is uncommented, and the shown default is the real one."""
    uncommented = re.sub(
        r"^# ([A-Z][A-Z_]+=)", r"\1", text(".env.example"), flags=re.MULTILINE
    )
    (tmp_path / ".env").write_text(uncommented)
    found, default = load({}, tmp_path / ".env"), Settings()

    for name, field in Settings.model_fields.items():
        shown, own = getattr(found, name), getattr(default, name)
        assert (shown != own) == (field.validation_alias in FORMS), name


# --------------------------------------------------------------------- make and .ci/run


def run_make(
    folder: Path, *words: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Runs make as from a terminal: without the variables of the make that runs the
    tests."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in NAMES and not name.startswith("MAKE")
    }
    return subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=folder,
        env=kept | environ,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose `bridge` only prints how it was started."""
    for name in ("Makefile", "pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, tmp_path / name)
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    bridge = bin_folder / "bridge"
    bridge.write_text('#!/bin/sh\necho "$@ insecure=$BRIDGE_INSECURE"\n')
    bridge.chmod(0o755)
    (bin_folder / "uv").touch()
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def test_make_lists_its_commands() -> None:
    """A developer who types `make` gets the list of commands."""
    listed = re.findall(r"^  make ([\w-]+) +\S", run_make(ROOT).stdout, re.MULTILINE)

    assert sorted(listed) == sorted(
        re.findall(r"^\.PHONY: (.*)$", text("Makefile"), re.MULTILINE)[0].split()
    )


@pytest.mark.parametrize(
    ("env_file", "environ", "insecure"),
    [
        ("", {}, "1"),
        ("# BRIDGE_PUBLIC_URL=https://a.example\n", {}, "1"),
        ("BRIDGE_PUBLIC_URL=\n", {}, "1"),
        ("MY_BRIDGE_PUBLIC_URL=https://a.example\n", {}, "1"),
        ("BRIDGE_PUBLIC_URL=https://a.example\n", {}, ""),
        (' export BRIDGE_PUBLIC_URL = "https://a.example"\n', {}, ""),
        ("TWILIO_AUTH_TOKEN=0123456789abcdef\n", {}, ""),
        ("TWILIO_AUTH_TOKEN_FILE=/run/secrets/token\n", {}, ""),
        ("BRIDGE_INSECURE=0\n", {}, ""),
        ("", {"BRIDGE_PUBLIC_URL": "https://a.example"}, ""),
        ("", {"BRIDGE_INSECURE": "0"}, "0"),
    ],
)
def test_make_serve_is_insecure_only_without_a_public_url(
    clone: Path, env_file: str, environ: dict[str, str], insecure: str
) -> None:
    """A developer can start at once. An operator who has begun to configure a number is
    told what is missing, and a real deployment never runs without the checks."""
    (clone / ".env").write_text(env_file)

    done = run_make(clone, "serve", **environ)

    assert (done.stdout, done.stderr) == (f"serve insecure={insecure}\n", "")


def test_make_demo_fails_if_the_demo_fails(clone: Path) -> None:
    """The exit status of the demo is that of `make`."""
    (clone / ".venv" / "bin" / "bridge").write_text("#!/bin/sh\nexit 3\n")

    assert run_make(clone, "demo").returncode != 0


def _python(folder: Path, body: str) -> str:
    python = folder / "some-python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    return f"PYTHON={python}"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("exit 1", "older than Python 3.11"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "apt install python3-venv"),
    ],
)
def test_setup_says_what_the_machine_lacks(clone: Path, body: str, told: str) -> None:
    """On a machine with an old or incomplete Python the first command says so."""
    (clone / ".venv" / ".installed").unlink()
    (clone / ".venv" / "bin" / "uv").unlink()

    done = run_make(clone, "setup", _python(clone, body))

    assert done.returncode != 0
    assert told in done.stderr
    assert not (clone / ".venv" / ".installed").exists()


def test_setup_says_that_no_python_was_found(clone: Path) -> None:
    """If no Python is new enough, the message says which version is needed."""
    (clone / ".venv" / ".installed").unlink()
    (clone / ".venv" / "bin" / "uv").unlink()

    done = run_make(clone, "setup", "PYTHON=")

    assert done.returncode != 0 and "needs Python 3.11 or newer" in done.stderr


def test_setup_is_done_once_and_again_after_a_change(clone: Path) -> None:
    """An installation is not repeated without need, and a changed lock is installed."""
    log = clone / "log"
    for name in ("python", "uv"):
        program = clone / ".venv" / "bin" / name
        program.write_text(f'#!/bin/sh\necho "{name} $@" >> {log}\n')
        program.chmod(0o755)
    (clone / ".venv" / ".installed").touch()
    python = _python(clone, "exit 0")

    run_make(clone, "setup", python)
    assert not log.exists()
    past = (clone / ".venv" / ".installed").stat().st_mtime + 10
    for name in ("requirements-bootstrap.lock", "requirements-dev.lock"):
        os.utime(clone / name, (past, past))
    run_make(clone, "setup", python)

    installs = [it for it in log.read_text().splitlines() if "install" in it.split()]
    for told, lock in zip(installs, ("bootstrap", "dev"), strict=False):
        assert told.endswith(
            f"--require-hashes --only-binary :all: -r requirements-{lock}.lock"
        )
    assert [it.split()[0] for it in installs] == ["python", "uv", "uv"]
    assert installs[2].endswith("--no-deps --no-build-isolation -e .")


def test_setup_knows_two_installers(clone: Path) -> None:
    """A misspelt installer name installs nothing and is not mistaken for an
    installation."""
    (clone / ".venv" / ".installed").unlink()

    done = run_make(clone, "setup", "INSTALLER=PIP")

    assert done.returncode != 0 and 'INSTALLER is uv or pip, not "PIP"' in done.stderr
    assert not (clone / ".venv" / ".installed").exists()


def test_ci_runs_by_itself() -> None:
    """CI starts from a new clone: the script is executable and can be parsed."""
    script = ROOT / ".ci" / "run"

    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in text(".ci/run")


# ------------------------------------------------------------------------- documents


def tracked_documents() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout.split()


@pytest.mark.parametrize("name", tracked_documents())
def test_no_line_of_a_document_is_long(name: str) -> None:
    """Documents are readable in a terminal and in a diff, tables and code included.
    Only a line that is one URL may be longer, because a URL cannot be broken."""
    long = {
        number: line
        for number, line in enumerate(text(name).splitlines(), start=1)
        if len(line) > 120 and not re.fullmatch(r"\s*<?\w+://\S+", line)
    }

    assert not long


@pytest.mark.parametrize("name", tracked_documents())
def test_each_link_of_a_document_leads_to_a_file_and_a_heading(name: str) -> None:
    """A reader who follows a link inside the project arrives."""
    prose = re.sub(r"(?ms)^ *```.*?^ *```$", "", text(name))
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), target
        if anchor:
            titles = re.findall(r"(?m)^#+ (.*)$", page.read_text("utf-8"))
            slugs = {
                re.sub(r"[^\w -]", "", it).lower().replace(" ", "-") for it in titles
            }
            assert anchor in slugs, target
