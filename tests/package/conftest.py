"""Fixtures of the tests in this folder, which need git and the package index."""

from pathlib import Path

import pytest

from tests.package.building import Built, Installation, build, install

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of this folder, so that `make test` does not run them."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.package)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="session")
def places(
    built: Built, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Installation]:
    """One environment with the wheel, one with the sdist."""
    folder = tmp_path_factory.mktemp("installed")
    packages = {"wheel": built.wheel, "sdist": built.sdist}
    return {kind: install(it, folder / kind) for kind, it in packages.items()}
