"""The licences of the packages in the image: requirements.lock, as docs/image.md lists
them.

Read from the metadata of the installed packages. Packages that this Python does not
need (audioop-lts before 3.13) are checked where they are installed.
"""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution

import pytest
from packaging.licenses import (
    InvalidLicenseExpression,
    canonicalize_license_expression,
)

from tests.support.locks import IMAGE, ROOT, locked, pinned_for
from tests.test_project_files import text

ALLOWED = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CC0-1.0",
        "ISC",
        "MIT",
        "MIT-0",
        "MPL-2.0",
        "PSF-2.0",
        "Zlib",
    }
)
"""SPDX. Who distributes such a package unchanged must add its text, its notices, and
the source of files under MPL-2.0; a wheel of Python code is its source."""

CLASSIFIERS = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: ISC License (ISCL)": "ISC",
    "License :: OSI Approved :: MIT License": "MIT",
}
"""Classifiers that name exactly one licence; "BSD License" could be any of several."""

TEXTS = {"MIT License": "MIT"}
"""Free texts of the field License that name exactly one licence."""

# docs/image.md lists these libraries.
WITH_LIBRARIES_OF_OTHERS = {"numpy"}


def stated(
    expression: str | None, field: str | None, classifiers: list[str]
) -> str | None:
    """The licence as SPDX, from the three places of the metadata. None if there is
    none, or if it is ambiguous."""
    for value in (expression, field):
        try:
            named = TEXTS.get(value or "", value or "")
            return str(canonicalize_license_expression(named))
        except InvalidLicenseExpression:
            continue  # free text, as in the metadata of older packages
    classes = [it for it in classifiers if it.startswith("License :: ")]
    return CLASSIFIERS.get(classes[0]) if len(classes) == 1 else None


def allowed(expression: str) -> bool:
    """One alternative of the expression contains allowed licences only. Parentheses,
    which no package has so far, and exceptions (WITH) are refused: a person must read
    those."""
    return any(
        all(term in ALLOWED for term in alternative.split(" AND "))
        for alternative in expression.split(" OR ")
    )


def shipped() -> list[str]:
    """The packages of the image, by the markers of the lock."""
    return sorted(pinned_for(IMAGE))


def installed() -> dict[str, Distribution]:
    """The shipped packages that are installed here."""
    found = {}
    for name in shipped():
        marker = locked("requirements.lock")[name].marker
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            assert marker is not None and not marker.evaluate(), f"{name}: make setup"
    return found


def licences() -> dict[str, str | None]:
    found = {}
    for name, it in installed().items():
        (expression, *_) = it.metadata.get_all("License-Expression") or [None]
        (field, *_) = it.metadata.get_all("License") or [None]
        classifiers = it.metadata.get_all("Classifier") or []
        found[name] = stated(expression, field, classifiers)
    return found


def test_each_shipped_package_has_an_allowed_licence() -> None:
    """A new dependency, or a new version under another licence, is noticed when it is
    locked, before the image contains it."""
    wrong = {name: it for name, it in licences().items() if not it or not allowed(it)}

    assert not wrong, "not stated, or not in ALLOWED: is it to be shipped?"


def test_each_shipped_package_contains_its_licence_text() -> None:
    """The image is a copy of the packages, and MIT, BSD and Apache-2.0 require their
    text in copies: it is in the .dist-info folder."""
    name = re.compile(r"\.dist-info/(.*/)?(LICEN[CS]E|COPYING)[^/]*$", re.IGNORECASE)
    without = {
        package
        for package, it in installed().items()
        if not any(name.search(str(file)) for file in it.files or ())
    }

    assert "licenses/*.txt" in text("pyproject.toml")
    kept = {it.stem for it in (ROOT / "licenses").iterdir()}
    assert without == kept - {"echarts"}  # of a file that the bridge itself contains
    for package in without:
        assert "Permission is hereby granted" in text(f"licenses/{package}.txt")
    for part in (
        "Apache License",
        "Copyright 2017-2026 The Apache Software Foundation",
    ):
        assert part in text("licenses/echarts.txt")


def test_the_list_in_the_docs_matches_the_metadata() -> None:
    """A reader who must account for the licences finds them all in docs/image.md."""
    rows = re.findall(r"(?m)^\| ([A-Z0-9][\w. -]+) \| ([a-z0-9, -]+) \|$", section())
    listed = {name: licence for licence, names in rows for name in names.split(", ")}

    assert sum(len(names.split(", ")) for _, names in rows) == len(listed), "twice"
    assert sorted(listed) == shipped()
    assert {name: listed[name] for name in licences()} == licences()
    assert {licence for licence in listed.values() if not allowed(licence)} == set()


def test_wheels_with_libraries_of_others_are_named() -> None:
    """A wheel may contain shared libraries whose licences its metadata do not state:
    each such package has been examined and is named with its libraries."""
    bundles = {
        name
        for name, it in installed().items()
        if any(
            re.match(r"[^/]+\.(libs|dylibs)/|.*/\.dylibs/", str(f))
            for f in it.files or ()
        )
    }

    assert bundles <= WITH_LIBRARIES_OF_OTHERS
    assert all(f"`{name}`" in section() for name in WITH_LIBRARIES_OF_OTHERS)


def section() -> str:
    page = text("docs/image.md")
    return page.partition("\n### Licences\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize(
    ("expression", "field", "classifiers", "found"),
    [
        ("MIT", "GPL-3.0-only", [], "MIT"),
        (None, "mit", [], "MIT"),
        (None, "Apache 2.0", [*CLASSIFIERS][:1], "Apache-2.0"),
        (None, "MIT License", [*CLASSIFIERS], "MIT"),
        (None, None, [*CLASSIFIERS][1:2], "ISC"),
        (None, None, [*CLASSIFIERS][:2], None),
        (None, "The words of some licence", [], None),
        (None, None, ["License :: OSI Approved :: BSD License"], None),
        (None, None, [], None),
    ],
)
def test_reading_a_licence_from_metadata(
    expression: str | None, field: str | None, classifiers: list[str], found: str | None
) -> None:
    """SPDX goes before free text; an ambiguous text counts as no licence."""
    assert stated(expression, field, classifiers) == found


@pytest.mark.parametrize(
    ("expression", "good"),
    [
        ("MIT", True),
        ("Apache-2.0 AND MIT", True),
        ("MIT OR GPL-3.0-only", True),
        ("GPL-3.0-or-later", False),
        ("MIT AND LGPL-2.1-or-later", False),
        ("MIT AND GPL-2.0-only OR AGPL-3.0-only", False),
        ("GPL-3.0-or-later WITH GCC-exception-3.1", False),
        ("(MIT OR GPL-3.0-only) AND GPL-2.0-only", False),
        ("LicenseRef-Proprietary", False),
    ],
)
def test_which_licence_expressions_are_allowed(expression: str, good: bool) -> None:
    assert allowed(expression) is good
