"""Renews the digests of images in the given files: NAME:TAG@sha256:...

    python -m scripts.digests Dockerfile docker-compose.yml        (make digests)

Asks the registry which digest each tag has now, and writes the digest after the tag. It
is the digest of the index, which is the same for all platforms. Needs `docker buildx`
and a registry that answers. If the digest of one tag is not found, no file is changed.
"""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PINNED = re.compile(r"([a-z0-9][\w./:-]*:[\w.-]+)@(sha256:[0-9a-f]{64})")


def current(image: str) -> str:
    """The digest that the registry has for a tag; SystemExit if it has none."""
    asked = ["docker", "buildx", "imagetools", "inspect", image]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    # The first digest is that of the tag; the digests of its platforms follow.
    found = re.search(r"^Digest:\s+(sha256:[0-9a-f]{64})$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise SystemExit(f"{image}: no digest: {(done.stderr or done.stdout).strip()}")
    return found[1]


def main(names: Sequence[str]) -> None:
    texts = {Path(name): Path(name).read_text("utf-8") for name in names}
    pins = {pin for text in texts.values() for pin in PINNED.findall(text)}
    digests = {image: current(image) for image in sorted({image for image, _ in pins})}
    for image, digest in sorted(pins):
        state = "is current" if digests[image] == digest else f"was {digest}"
        print(f"{image}@{digests[image]} ({state})")
    for path, text in texts.items():
        path.write_text(
            PINNED.sub(lambda it: f"{it[1]}@{digests[it[1]]}", text), "utf-8"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
