#!/bin/sh
# Builds the package: an sdist, and a wheel from that sdist.
#
#   scripts/package.sh PYTHON FOLDER       (make package; PYTHON has `build` and setuptools)
#
# It packs only the files that git tracks, as they are now, because a clone in use contains
# settings, keys and recordings. Without git (an unpacked sdist), it packs the files that
# MANIFEST.in names.
set -eu
python=$1 out=$2
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
if [ -e .git ]; then
    git ls-files -z >"$folder/names"
    mkdir "$folder/tracked"
    tar --create --null --ignore-failed-read --files-from="$folder/names" |
        tar --extract --directory="$folder/tracked"
    tracked=$folder/tracked
else
    tracked=.
fi
"$python" -m build --no-isolation --quiet --outdir "$out" "$tracked"
