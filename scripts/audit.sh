#!/bin/sh
# Looks for known advisories against the packages of a lock.
#
#   scripts/audit.sh LOCK [OPTION OF pip-audit ...]       (make audit; pip-audit is on PATH)
#
# Exit code 0: no advisory is known. 75: NOTHING was checked, because no database of
# advisories answers. Another number: an advisory is known, or the audit itself failed.
# Each package of the lock is checked, whatever Python it is for. OSV_URL replaces the
# database of osv.dev, which has the advisories of PyPI and GitHub.
set -eu
lock=$1
shift
audit() {
    pip-audit --progress-spinner off --vulnerability-service osv --disable-pip \
        --osv-url "${OSV_URL:-https://api.osv.dev/v1/query}" "$@"
}
command -v pip-audit >/dev/null || { echo "pip-audit is not installed: make setup" >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM

# A mirror may answer every question with "nothing known". So the first question is about
# a version against which an advisory is certainly known.
echo "pyyaml==5.3" >"$folder/known"
code=0
audit --no-deps --format json -r "$folder/known" >"$folder/out" 2>"$folder/err" || code=$?
if ! grep -q '"id":' "$folder/out"; then
    if [ "$code" -eq 0 ] || grep -Eq 'ConnectionError|ServiceError|Timeout' "$folder/err"; then
        tail -n 1 "$folder/err"
        echo "NOTHING WAS CHECKED: no database of advisories answered"
        exit 75
    fi
    cat "$folder/err" >&2
    exit 2
fi
# A marker would skip packages that this Python does not need but the image may contain.
sed 's/ ;.*\\$/ \\/' "$lock" >"$folder/lock"
audit --require-hashes --strict -r "$folder/lock" "$@"
