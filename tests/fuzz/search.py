"""One target's process, begun by __main__.py and, where libFuzzer merges, by itself."""

import sys
from pathlib import Path

from tests.fuzz.__main__ import search

if __name__ == "__main__":
    search(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
