#!/usr/bin/env bash
# Resolves pyproject.toml into requirements/: exact versions with hashes, of this platform, without naming an index.
set -euo pipefail
uv=$1
cd "$(dirname "$0")/.."
compile() {
  local out=$1
  shift
  "$uv" pip compile -q --generate-hashes --no-annotate --no-header --no-emit-index-url --python-version 3.11 \
    --python-platform x86_64-manylinux_2_28 "$@" -o "requirements/$out.txt" pyproject.toml
}
compile dev --extra operator --extra trainer --extra test
compile operator --extra operator -c requirements/dev.txt
compile trainer --extra trainer -c requirements/dev.txt
