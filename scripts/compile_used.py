"""Compiles the modules that the named packages use, in the environment that runs this.

    python -B scripts/compile_used.py bridge twiml        (Dockerfile)

A container with a read-only root cannot store bytecode. Without bytecode it compiles
its modules at each start, which takes longer than all other work of a start. The
bytecode of all installed modules is twice as large as the bytecode that is needed.

The script imports all modules of the named packages. Then it compiles modules:
- of a package that was imported: the folders with at least one imported module;
- of a package that was not imported (such as an HTTP client that is loaded with the
  first request): all modules.

The bytecode is valid as long as the hash of its source is the same. A modification time
could differ after a build from a cache; then the bytecode would be ignored.
"""

import importlib
import pkgutil
import py_compile
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def import_all(package: str) -> None:
    """Import a package with its modules, except modules that only run as a program."""
    found = importlib.import_module(package)
    for module in pkgutil.walk_packages(found.__path__, f"{package}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def used_sources(site: Path) -> Iterator[Path]:
    """The sources in `site` to compile, given the modules that are imported now."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    folders = {Path(file).parent for file in files if file}
    inside = {folder for folder in folders if folder.is_relative_to(site)}
    imported = {folder.relative_to(site).parts[:1] for folder in inside}
    for source in site.rglob("*.py"):
        top = source.relative_to(site).parent.parts[:1]
        if source.parent in inside or top not in imported:
            yield source


def compiled_bytes(source: Path) -> int:
    """Compile a source; returns the size of its bytecode. 0 if the source is not a
    valid module (some templates and tests)."""
    compiled = py_compile.compile(
        str(source),
        quiet=2,
        invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH,
    )
    return Path(compiled).stat().st_size if compiled else 0


def main(packages: list[str]) -> None:
    for package in packages:
        import_all(package)
    sources = list(used_sources(Path(sysconfig.get_path("purelib"))))
    with ProcessPoolExecutor() as pool:
        sizes = list(pool.map(compiled_bytes, sources, chunksize=32))
    count = sum(size > 0 for size in sizes)
    print(f"{count} modules compiled, {sum(sizes) / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
