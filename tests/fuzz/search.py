"""The process of one target; __main__.py starts it, and libFuzzer to merge."""

import sys
from pathlib import Path

from tests.fuzz.__main__ import search

if __name__ == "__main__":
    search(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
