#!/bin/sh
# Is an advisory known against a package of a lock?
#
#   scripts/audit.sh LOCK [OPTION OF pip-audit ...]       (make audit; pip-audit is on PATH)
#
# It ends with 0 when no advisory is known, with 1 when one is or a package could not be
# checked, and with 75 when NOTHING was checked, because no database of advisories answers.
# OSV_URL replaces the database of osv.dev, which has the advisories of PyPI and GitHub.
set -eu
lock=$1
shift
set -- --progress-spinner off --vulnerability-service osv \
    --osv-url "${OSV_URL:-https://api.osv.dev/v1/query}" --disable-pip "$@"

# A mirror may answer every question with "nothing known". So it is first asked for a
# version against which an advisory is known for certain.
known=$(mktemp)
trap 'rm -f "$known" "$known.err"' EXIT
echo "pyyaml==5.3" >"$known"
if ! pip-audit "$@" --no-deps --format json -r "$known" 2>"$known.err" | grep -q '"id":'; then
    tail -n 1 "$known.err"
    echo "NOTHING WAS CHECKED: no database of advisories answered"
    exit 75
fi
pip-audit "$@" --require-hashes --strict -r "$lock"
