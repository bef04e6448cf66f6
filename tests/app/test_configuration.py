"""Mistakes of all kinds are found beside each other, each with its place."""

from pathlib import Path

import pytest

from bridge.app.configuration import FoundConfiguration, read_configuration
from bridge.app.settings import Finding, read

GOOD = {
    "BRIDGE_PUBLIC_URL": "https://phone.test",
    "OPENAI_API_KEY": "sk-0123",
    "TWILIO_AUTH_TOKEN": "0123456789abcdef" * 2,
}
ACCOUNT = "AC" + "0123456789abcdef" * 2


def configuration(folder: Path, text: str = "", **environ: str) -> FoundConfiguration:
    """The configuration with these lines in .env."""
    env_file = folder / ".env"
    env_file.write_text(text)
    return read_configuration(read(environ, env_file))


def told(found: FoundConfiguration) -> dict[str, str]:
    """NAME (or the place in the routes file) -> what is wrong."""
    return {
        Path(it.place).name if it.name == "BRIDGE_ROUTES" else it.name: it.text
        for it in found.problems
    }


def test_a_good_configuration_has_no_problem(tmp_path: Path) -> None:
    """And its agent can be used."""
    found = configuration(tmp_path, **GOOD)

    assert (found.problems, found.user_code is None) == ([], False)


def test_all_kinds_of_mistakes_are_found_at_once(tmp_path: Path) -> None:
    """A typo in a name, a wrong value, a placeholder, a path in the place of a secret,
    an account without a token, a line that is none, a routes file with mistakes, an
    agent of it, the default agent and the connector."""
    (tmp_path / "mine.py").write_text("agent = 3\n")
    routes = tmp_path / "routes.yaml"
    routes.write_text(
        "routes:\n"
        "  - name: a\n"
        "    nunber: +14155550100\n"
        f"    agent: {tmp_path}/none.py:agent\n"
        "  - name: b\n"
        "    notice: {file: no.wav, words: hello}\n"
        f"    on_call: {tmp_path}/mine.py:agent\n"
    )
    found = configuration(
        tmp_path,
        "BRIDGE_PORT=phone\n"
        "\n"
        "BRIDGE_PROT=1\n"
        "this is nothing\n"
        "BRIDGE_PUBLIC_URL=https://bridge.example.com\n"
        "TWILIO_AUTH_TOKEN=/run/secrets/token\n"
        f"TWILIO_ACCOUNT_SID={ACCOUNT}\n"
        'TWILIO_ACCOUNTS="\n'
        f"AC{'1' * 32}:\n"
        'nothing"\n'
        f"BRIDGE_ROUTES={routes}\n"
        f"BRIDGE_AGENT={tmp_path}/mine.py:nobody\n"
        "BRIDGE_MODEL_CONNECT=no.such:connect\n"
        "OPENAI_API_KEY=sk-0123\n",
    )

    lines = {
        (it.level, it.name): Path(it.place).name
        for it in found.problems
        if it.name != "BRIDGE_ROUTES"
    }
    assert lines == {
        ("error", "BRIDGE_PORT"): ".env:1",
        ("warning", "BRIDGE_PROT"): ".env:3",
        ("error", "a line"): ".env:4",
        ("error", "BRIDGE_PUBLIC_URL"): ".env:5",
        ("error", "TWILIO_AUTH_TOKEN"): ".env:6",
        ("error", "TWILIO_ACCOUNTS"): ".env:10",
        ("error", "BRIDGE_AGENT"): ".env:12",
        ("error", "BRIDGE_MODEL_CONNECT"): ".env:13",
    }
    of_routes = {it.place: it.text for it in found.of_code if it.place.count("yaml")}
    assert set(of_routes) == {f"{routes}:{line}" for line in (3, 4, 6, 7)}
    assert "did you mean number" in of_routes[f"{routes}:3"]
    assert all(it.fix for it in found.problems if it.name != "BRIDGE_ROUTES")
    assert "/run/secrets" not in str(found.problems)


def test_every_entry_of_the_accounts_is_named(tmp_path: Path) -> None:
    """In a file of accounts each mistake has its line; no message has a token."""
    accounts = tmp_path / "accounts"
    accounts.write_text(f"\nhush\nAC{'1' * 32}: a, b, c\nhush2: hush3\n")
    found = configuration(
        tmp_path,
        TWILIO_ACCOUNT_SID=ACCOUNT,
        TWILIO_ACCOUNTS_FILE=str(accounts),
        **GOOD,
    )

    assert [(it.place, it.text) for it in found.problems] == [
        (f"{accounts}:2", "has no colon in entry 1"),
        (f"{accounts}:3", "has an account with more than two tokens in entry 2"),
        (f"{accounts}:4", "has no account SID in entry 3"),
    ]
    assert "hush" not in str(found.problems)


@pytest.mark.parametrize(
    "path", ["/run/secrets/key", "./key", "../key", "~/key", "file:///key"]
)
@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "TWILIO_AUTH_TOKEN", "BRIDGE_API_TOKEN"]
)
def test_a_path_in_the_place_of_a_secret(name: str, path: str, tmp_path: Path) -> None:
    """The fix names the variable that takes a path."""
    found = configuration(tmp_path, **{**GOOD, name: path})

    [mistake] = found.problems
    assert (mistake.name, mistake.text) == (
        name,
        "is the path of a file, not a secret",
    )
    assert f"{name}_FILE" in mistake.fix and path not in str(mistake)


def test_a_secret_that_begins_with_a_slash_is_a_secret(tmp_path: Path) -> None:
    """Base64 has slashes; the path of a file that is there is none."""
    key = tmp_path / "key"
    key.write_text("x")
    token = "/Ab/0123456789abcdef+/=="

    assert configuration(tmp_path, BRIDGE_API_TOKEN=token, **GOOD).problems == []
    [mistake] = configuration(tmp_path, BRIDGE_API_TOKEN=str(key), **GOOD).problems
    assert mistake.name == "BRIDGE_API_TOKEN"


def test_what_only_follows_from_a_mistake_is_not_told(tmp_path: Path) -> None:
    """A price with a mistake is not reported as missing, nor a public URL."""
    given = {**GOOD, "BRIDGE_PUBLIC_URL": "http://phone.test", "BRIDGE_PRICES": "4"}
    routes = tmp_path / "routes.yaml"
    routes.write_text("routes:\n  - name: a\n    fallback: nobody\n")
    found = configuration(
        tmp_path,
        BRIDGE_COST_PER_CALL="1",
        BRIDGE_ROUTES=str(routes),
        BRIDGE_OUTBOUND_PREFIXES="+1",
        **given,
    )

    assert set(told(found)) == {
        *("BRIDGE_PUBLIC_URL", "BRIDGE_PRICES", "routes.yaml:3"),
    }


def test_what_a_route_lacks_is_told_beside_the_mistakes_of_another(
    tmp_path: Path,
) -> None:
    """A mistake in one route hides nothing in the others, and what a route with a
    mistake lacks may be in the key that has the mistake."""
    routes = tmp_path / "routes.yaml"
    routes.write_text(
        "routes:\n"
        "  - name: a\n"
        "    when_full: fallback\n"
        "    fallback: nobody\n"
        "  - name: b\n"
        "    when_full: fallback\n"
    )
    found = configuration(tmp_path, BRIDGE_ROUTES=str(routes), **GOOD)

    assert set(told(found)) == {"routes.yaml:4", "routes.yaml:6"}
    assert "no number to dial" in told(found)["routes.yaml:6"]


def test_mistakes_of_the_defaults_hide_what_the_routes_lack(tmp_path: Path) -> None:
    """Each route may get it from there."""
    routes = tmp_path / "routes.yaml"
    routes.write_text(
        "defaults:\n"
        "  fallback: nobody\n"
        "routes:\n"
        "  - name: a\n"
        "    when_full: fallback\n"
        "    agent: no.such:agent\n"
    )
    found = configuration(tmp_path, BRIDGE_ROUTES=str(routes), **GOOD)

    assert set(told(found)) == {"routes.yaml:2", "routes.yaml:6"}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [1]),
        ("routes: 3\n", [1]),
        ("routes:\n  - 3\n  - name: b\n    agent: no.such:agent\n", [2, 4]),
        ("routes:\n  - name: a\n  - name: a\n    agent: no.such:agent\n", [3, 4]),
        ("defaults: 3\nroutes:\n  - agent: no.such:agent\n", [1, 3]),
        ("router: 3\nroutes:\n  - agent: no.such:agent\n", [1, 3]),
    ],
)
def test_a_file_of_another_form(text: str, lines: list[int], tmp_path: Path) -> None:
    """What can be read of it is read."""
    routes = tmp_path / "routes.yaml"
    routes.write_text(text)
    found = configuration(tmp_path, BRIDGE_ROUTES=str(routes), **GOOD)

    assert [it.place for it in found.mistakes] == [f"{routes}:{it}" for it in lines]


def test_a_line_of_env_that_is_set_twice(tmp_path: Path) -> None:
    """The one that counts is named, and the one that does not."""
    found = configuration(tmp_path, "BRIDGE_PORT=1\n\nBRIDGE_PORT=2\n", **GOOD)

    [it] = found.problems
    assert (it.level, it.name, it.place) == (
        *("warning", "BRIDGE_PORT"),
        f"{tmp_path / '.env'}:3",
    )
    assert "line 1" in it.text and found.settings.port == 2


def test_a_variable_of_the_process_has_no_line(tmp_path: Path) -> None:
    """The line of .env that it replaces is not wrong."""
    found = configuration(tmp_path, "BRIDGE_PORT=1\n", BRIDGE_PORT="x", **GOOD)

    assert [(it.name, it.place) for it in found.problems] == [("BRIDGE_PORT", "")]


def test_a_missing_partner_is_told_once(tmp_path: Path) -> None:
    """Of a pair of which one is missing, and of which the other has a mistake."""
    alone = configuration(tmp_path, TWILIO_REGION="ie1", **GOOD)
    wrong = configuration(tmp_path, TWILIO_REGION="!", TWILIO_EDGE="dublin", **GOOD)

    assert set(told(alone)) == {"TWILIO_EDGE"}
    assert set(told(wrong)) == {"TWILIO_REGION"}


def test_a_finding_says_where_it_is() -> None:
    """In the log of a container that does not start."""
    it = Finding("error", "BRIDGE_PORT", "is 'x'", "set a number", ".env:3")

    assert str(it) == "BRIDGE_PORT (.env:3) is 'x': set a number"
