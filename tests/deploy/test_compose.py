"""docker-compose.yml, without Docker: its schema, and the properties users need."""

import json
import re
import tomllib
from collections.abc import Iterator
from importlib import resources
from ipaddress import ip_address, ip_network
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from jsonschema import Draft202012Validator

from bridge.app.settings import NAMES, Settings, load
from bridge.app.settings_report import serving_mistakes
from bridge.cli.commands import app

ROOT = Path(__file__).resolve().parents[2]
FILE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
BRIDGE = SERVICES["bridge"]
FAKES = ("model", "caller")

MOST_BRIDGES = 16
"""The size of the largest fleet in the documents."""
BUILD_ARGUMENTS = ["PYTHON_IMAGE", "IMAGE_VERSION", "IMAGE_REVISION"]

DEMO_ONLY_WITHOUT = (
    "BRIDGE_PUBLIC_URL",
    "TWILIO_AUTH_TOKEN",
    "TWILIO_AUTH_TOKEN_FILE",
    "OPENAI_API_KEY",
    "OPENAI_API_KEY_FILE",
    "BRIDGE_MODEL_URL",
)

each_service = pytest.mark.parametrize("name", SERVICES)


def interpolated(text: str, **environ: str) -> str:
    """Interpolates as docker compose does, for the two forms that the file uses."""

    def value(found: re.Match[str]) -> str:
        name, form, word = found.groups()
        given = environ.get(name, "")
        return (given or word) if form == ":-" else (word if given else "")

    done = re.sub(r"\$\{([A-Z_]+)(:-|:\+)([^}]*)\}", value, text)
    # `$$` is a dollar sign of the shell in the container.
    assert "$" not in done.replace("$$", ""), f"an unknown form: {text}"
    return done.replace("$$", "$")


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)


def test_the_file_is_valid() -> None:
    """`docker compose up` starts and reports no unknown key."""
    schemas = resources.files("check_jsonschema.builtin_schemas.vendor")
    schema = json.loads(schemas.joinpath("compose-spec.json").read_text("utf-8"))
    given = {key: it for key, it in FILE.items() if not key.startswith("x-")}

    assert [str(it) for it in Draft202012Validator(schema).iter_errors(given)] == []
    for text in strings(given):
        interpolated(text)


def test_the_bridge_can_be_scaled() -> None:
    """`--scale bridge=4` works: an instance has nothing that can exist only once."""
    assert not {"ports", "container_name", "hostname"} & set(BRIDGE)
    assert SERVICES["balancer"]["environment"]["BALANCER_BRIDGES"] == "bridge:8080"
    slots = interpolated(SERVICES["balancer"]["environment"]["BALANCER_SLOTS"])
    assert int(slots) >= 2 * MOST_BRIDGES, "a deploy runs old and new side by side"
    replicas = BRIDGE["deploy"]["replicas"]
    assert int(interpolated(replicas)) >= 2, "a call whose instance dies needs another"
    assert interpolated(replicas, BRIDGES="4") == "4", "the next `up` cuts callers off"


def test_the_balancer_gets_its_limits_from_env() -> None:
    """A limit that is set in .env holds; unset, haproxy.cfg's default does."""
    config = (ROOT / "deploy" / "haproxy.cfg").read_text("utf-8")
    limits = dict(re.findall(r"\$\{(BALANCER_[A-Z]+)-(\d+)\}", config))
    environ = SERVICES["balancer"]["environment"]

    assert {"BALANCER_CONNECTIONS", "BALANCER_ERRORS", "BALANCER_MAXCONN"} < set(limits)
    for name, default in limits.items():
        assert interpolated(environ[name], **{name: "7"}) == "7"
        # A fleet of compose may be twice as large during a deploy (above).
        assert name == "BALANCER_SLOTS" or interpolated(environ[name]) == default


def test_a_deploy_lets_calls_finish() -> None:
    """A deploy does not cut off a caller in the middle of a sentence."""
    grace = re.fullmatch(r"(\d+)s", BRIDGE["stop_grace_period"])

    assert grace is not None and int(grace[1]) >= Settings().drain_seconds + 10


@each_service
def test_containers_are_locked_down(name: str) -> None:
    """An attacker in a container has no tools, no privileges and no writable disk."""
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]
    assert service["user"] not in ("", "0", "root")
    assert service["pids_limit"] <= 512
    assert service["healthcheck"].get("test") or name in FAKES
    assert not {"privileged", "network_mode", "pid", "ipc", "devices"} & set(service)
    for mount in service.get("volumes", []):
        assert not mount.startswith(".") or mount.endswith(":ro"), mount
        assert "docker.sock" not in mount


@each_service
def test_only_this_machine_reaches_a_port(name: str) -> None:
    """Metrics, dashboards and unsigned ports are not public by accident."""
    for port in SERVICES[name].get("ports", []):
        assert interpolated(port).startswith("127.0.0.1:"), port
    assert "ports" not in SERVICES["redis"]


@each_service
def test_secrets_go_to_the_bridges_alone(name: str) -> None:
    """An attacker in the balancer or a dashboard finds no key and no token."""
    service = SERVICES[name]

    assert ("env_file" in service) == (name == "bridge")
    assert "secrets" not in service
    for given in service.get("environment", {}):
        assert not re.search("TOKEN|KEY|SECRET|PASSWORD", given), given


def test_each_part_reaches_what_it_needs() -> None:
    """Conversations are in Redis: only the bridges reach it. Two services share at most
    one network, or the balancer would count each instance twice."""
    on = {name: set(it["networks"]) for name, it in SERVICES.items()}

    assert [name for name in on if "registry" in on[name]] == ["bridge", "redis"]
    assert on["redis"] == {"registry"} and FILE["networks"]["registry"]["internal"]
    for one, other in combinations(on, 2):
        assert len(on[one] & on[other]) <= 1, (one, other)
    needed = ("balancer bridge", "prometheus bridge", "prometheus balancer")
    needed += ("prometheus alertmanager",)
    for one, other in map(str.split, (*needed, "grafana prometheus", "bridge model")):
        assert on[one] & on[other], (one, other)


def test_the_bridges_trust_the_balancer() -> None:
    """Limits for an address apply to the client's address, not to the balancer's."""
    (pool,) = FILE["networks"]["phone"]["ipam"]["config"]
    believed = BRIDGE["environment"]["BRIDGE_TRUSTED_PROXIES"]
    settings = load({"BRIDGE_TRUSTED_PROXIES": interpolated(believed)}, env_file=None)

    assert [str(it) for it in settings.trusted_proxies] == [pool["subnet"]]
    assert interpolated(believed, BRIDGE_TRUSTED_PROXIES="10.1.0.0/16") == "10.1.0.0/16"
    before = interpolated(SERVICES["balancer"]["environment"]["BALANCER_PROXIES"])
    assert before == pool["gateway"], "the proxy on this machine"
    assert ip_address(before) in ip_network(pool["subnet"])


def test_nobody_logs_in_to_the_dashboard() -> None:
    """There is no password that could be guessed, such as `admin`."""
    environ = SERVICES["grafana"]["environment"]

    assert environ["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environ["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environ["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environ["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert "--web.enable-lifecycle" not in SERVICES["prometheus"]["command"]


@each_service
def test_images_have_a_version(name: str) -> None:
    """The same images run tomorrow as today."""
    image = SERVICES[name]["image"]
    if image == "twilio-realtime-bridge":
        built = {"context": ".", "args": BUILD_ARGUMENTS}
        assert BRIDGE["build"] == built
        assert name == "bridge" or "build" not in SERVICES[name], "built twice"
        assert (SERVICES[name].get("pull_policy") == "never") == (name in FAKES)
        assert SERVICES[name]["user"] == dockerfile("USER")[-1]
    else:
        assert re.fullmatch(r"[a-z/]+:v?\d[\w.-]*", image), image


@each_service
def test_mounted_files_exist(name: str) -> None:
    """No container starts with an empty folder in place of its configuration."""
    for mount in SERVICES[name].get("volumes", []):
        source = mount.split(":")[0]
        found = (
            (ROOT / source).exists() if source[0] == "." else source in FILE["volumes"]
        )
        assert found, mount
    for text in strings(SERVICES[name]):
        for path in re.findall(r"(?<![\w.])/(deploy/\S+\.\w+)", text):
            assert (ROOT / path).exists(), text


def test_alerts_are_delivered() -> None:
    """Prometheus finds Alertmanager; the environment gives the receiver's URL."""
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text("utf-8"))
    (managers,) = prometheus["alerting"]["alertmanagers"]
    (target,) = managers["static_configs"][0]["targets"]
    (port,) = SERVICES["alertmanager"]["ports"]
    webhook = (ROOT / "deploy/alertmanager/webhook.yml").read_text("utf-8")
    (receiver,) = yaml.safe_load(webhook)["receivers"]
    (command,) = SERVICES["alertmanager"]["command"]

    assert target == "alertmanager:" + interpolated(port).rpartition(":")[2]
    assert receiver["webhook_configs"][0]["url_file"] in command
    assert interpolated("${ALERT_WEBHOOK_URL:-}") == ""


def test_redis_keeps_its_data() -> None:
    """A restart of Redis loses no call; when it is full, writes fail and no key is
    evicted."""
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))

    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]


def test_the_settings_of_the_bridge_exist() -> None:
    """No variable is silently ignored because of a typing mistake."""
    environ = {name: interpolated(it) for name, it in BRIDGE["environment"].items()}
    demo = demo_file()

    assert set(environ) | set(demo) <= NAMES
    settings = load(environ, env_file=None)
    assert settings.port == 8080
    assert settings.max_calls <= 100, "more than one core carries: choppy audio"


def demo_file() -> dict[str, str]:
    lines = (ROOT / "deploy" / "demo.env").read_text("utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if line and line[0] != "#"]
    return {name: value for name, _, value in pairs}


def test_the_demo_serves_unsigned_calls_with_the_fake() -> None:
    """`docker compose --profile demo up` on a fresh clone places calls at once."""
    environ = {name: interpolated(it) for name, it in BRIDGE["environment"].items()}
    demo = load({**demo_file(), **environ}, env_file=None)
    port = SERVICES["model"]["command"][-1]

    assert not [it for it in serving_mistakes(demo) if it.level == "error"]
    assert demo.insecure and demo.model_target == f"ws://model:{port}/v1/realtime"
    assert SERVICES["caller"]["command"][-1] == "http://balancer:8080/voice"
    assert all(SERVICES[name]["profiles"] == ["demo"] for name in FAKES)
    assert all("profiles" not in SERVICES[it] for it in set(SERVICES) - set(FAKES))


def test_a_real_deployment_is_never_a_demo() -> None:
    """If any of these variables is set, unsigned calls are refused unless .env allows
    them."""
    first, second = BRIDGE["env_file"]

    assert second == {"path": ".env", "required": False}
    assert first["required"] is False
    assert interpolated(first["path"]) == "deploy/demo.env"
    for count in range(1, len(DEMO_ONLY_WITHOUT) + 1):
        for names in combinations(DEMO_ONLY_WITHOUT, count):
            path = interpolated(first["path"], **dict.fromkeys(names, "set"))
            assert not (ROOT / path).exists(), names


@pytest.mark.parametrize("name", FAKES)
def test_the_commands_of_the_fakes_are_valid(name: str) -> None:
    """The demo's containers do not exit with a usage message."""
    command = typer.main.get_command(app)
    words = list(SERVICES[name]["command"])
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for it in command.params for option in it.opts}

    assert {word for word in words if word.startswith("--")} <= known


def dockerfile(instruction: str) -> list[str]:
    """The text after each such instruction, with continued lines joined."""
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    return re.findall(rf"^{instruction}\s+(.*)$", text, re.M)


def stages() -> dict[str, str]:
    """The text of each stage of the Dockerfile; that of the image is the last one."""
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    form = r"^FROM \S+(?: AS (\S+))?\n(.*?)(?=^FROM |\Z)"
    found = re.findall(form, text, re.M | re.S)
    return {name or "image": body for name, body in found}


def test_the_image_is_built_from_pinned_parts() -> None:
    """The base has a digest and the packages have locked hashes. The build fetches
    nothing from an address and runs no code of a package while it installs it."""
    bases = [line.split()[0] for line in dockerfile("FROM")]
    commands = re.split(r" && ", " && ".join(dockerfile("RUN")))
    installs = [it for it in commands if re.search(r"pip install", it)]
    bridge = [it for it in installs if "--require-hashes" not in it]

    assert set(bases) == {"${PYTHON_IMAGE}", "dependencies", "build", "scratch"}
    assert len(installs) == 4 and len(bridge) == 1
    assert all("--only-binary :all:" in it for it in installs if it not in bridge)
    assert bridge[0].split()[-2:] == ["--no-deps", "dist/*.whl"]
    assert "--without-pip /venv" in " ".join(dockerfile("RUN"))
    assert not dockerfile("ADD")
    assert not re.search(r"https?://|curl|wget|apt-get", " ".join(dockerfile("RUN")))
    assert dockerfile("HEALTHCHECK") and dockerfile("STOPSIGNAL") == ["SIGTERM"]


def test_build_arguments_choose_the_base_and_the_labels_only() -> None:
    """No argument changes which packages are installed. Each has a default that is
    true, so that a plain `docker build` needs none."""
    given = dict(line.split("=", 1) for line in dockerfile("ARG") if "=" in line)

    assert list(given) == BUILD_ARGUMENTS
    assert re.fullmatch(r"python:3\.13-slim@sha256:[0-9a-f]{64}", given["PYTHON_IMAGE"])
    assert given["IMAGE_VERSION"] == given["IMAGE_REVISION"] == "unknown"
    for install in (it for it in dockerfile("RUN") if re.search(r"pip install", it)):
        assert "$" not in install


def test_the_image_has_no_root_and_no_build_tools() -> None:
    """The image takes only the environment of the bridge from the build."""
    image = stages()["image"]
    taken = re.findall(r"^COPY --from=(\S+) (\S+) (\S+)$", image, re.M)

    assert list(stages())[-1] == "image"
    assert taken == [
        ("dependencies", "/venv", "/venv"),
        ("build", "/new/venv", "/venv"),
        ("dependencies", "/source/constraints.txt", "/usr/share/bridge/"),
    ]
    assert "pip" not in " ".join(re.findall(r"^RUN (.*)$", image, re.M))
    assert re.findall(r"^USER (.*)$", image, re.M) == ["10001"]
    for _, body in list(stages().items())[:-1]:
        assert not re.search(r"^USER ", body, re.M)


def test_the_labels_are_those_of_the_project() -> None:
    """The image and the package have the same metadata."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    labels = dict(
        re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', stages()["image"])
    )

    assert labels["title"] == project["name"]
    assert labels["description"] == project["description"]
    assert labels["licenses"] == project["license"]
    assert labels["version"] == "${IMAGE_VERSION}"
    assert labels["revision"] == "${IMAGE_REVISION}"
    assert labels["base.name"] == "${PYTHON_IMAGE}"


def test_no_secret_is_in_the_image() -> None:
    """The image does not contain .env, recordings or the git history."""
    environment = " ".join(re.findall(r"^ENV (.*)$", stages()["image"], re.M))
    named = set(re.findall(r"([A-Z_]+)=", environment))
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    out, *rules = [line for line in lines if line and line[0] != "#"]
    let_in = {line[1:] for line in rules if line[0] == "!"}
    copied = {
        word
        for line in dockerfile("COPY")
        if not line.startswith("--from=")
        for word in line.split()[:-1]
    }

    assert named == {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
    assert out == "*" and let_in == copied
    for kept_out in (".env", ".git", "calls", "secret.yaml", "tests", "."):
        assert kept_out not in copied


def test_the_health_check_uses_python() -> None:
    """A bridge that hangs is detected; the slim image has no curl."""
    (asked,) = re.findall(
        r'CMD \["python", "-c", "(.*)"\]$', dockerfile("HEALTHCHECK")[0]
    )
    command = BRIDGE["healthcheck"]["test"]

    for code in (asked, command[3]):
        compile(code, "healthcheck", "exec")
        assert "/healthz" in code and "127.0.0.1" in code
    assert command[:3] == ["CMD", "python", "-c"]
