"""Arguments of tools in scripts without blanks, or with marks that combine."""

import json
import unicodedata

import pytest

from bridge.privacy.argument_words import HIDDEN, hides


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("王伟", "no customer 王伟"),
        ("田中太郎", "顧客田中太郎さんが見つかりません"),
        ("김철수", "김철수가 없습니다"),
        ("नरेन्द्र मोदी", "no नरेन्द्र मोदी here"),
        ("Müller", unicodedata.normalize("NFD", "unknown Müller")),
        (unicodedata.normalize("NFD", "Müller"), "unknown Müller"),
    ],
)
def test_names_of_all_scripts_are_hidden(argument: str, text: str) -> None:
    """The log of a failed tool names no caller, whatever their language."""
    hidden = hides(json.dumps({"name": argument}))(text)

    assert HIDDEN in hidden
    for word in unicodedata.normalize("NFC", argument).split():
        assert word not in unicodedata.normalize("NFC", hidden)
