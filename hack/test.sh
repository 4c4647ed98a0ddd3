#!/usr/bin/env bash
# Runs the given make targets in order, stops at the first that fails, and says how long each took.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
summary=""
for target in setup "$@"; do
  echo "== make $target"
  start=$SECONDS
  if ! make -s "$target"; then
    printf '%s\n' "$summary"
    echo "make test: $target failed after $((SECONDS - start)) s; run it alone with: make $target" >&2
    exit 1
  fi
  summary+="$(printf '%-18s %5d s' "$target" $((SECONDS - start)))"$'\n'
done
printf '\n%s' "$summary"
printf '%-18s %5d s\n' total "$SECONDS"
