#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time each, one after the other,
# and tells at the end which of them failed.  usage: scripts/fuzz.sh 10s
set -euo pipefail

time=${1:?usage: scripts/fuzz.sh TIME, such as 10s}
go=${GO:-go}
failed=()
count=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

run() { # package target
  # Minimizing an interesting input may take a minute by default, and then no fuzzing
  # happens in a short run.
  "$go" test "$1" -run '^$' -fuzz "^$2\$" -fuzztime "$time" -fuzzminimizetime 10x >"$log" 2>&1
}

for dir in $(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u); do
  for target in $("$go" test -list '^Fuzz' "$dir" | grep '^Fuzz' || true); do
    count=$((count + 1))
    echo "fuzz $dir $target"
    run "$dir" "$target" && continue
    # The fuzzing engine sometimes reports its own deadline as a failure. That one
    # leaves no input behind; a second run tells.
    if grep -q 'context deadline exceeded' "$log" && ! grep -q 'Failing input written' "$log" && run "$dir" "$target"; then
      continue
    fi
    if grep -q 'context deadline exceeded' "$log" && ! grep -qE 'Failing input written|panic|FuzzFail|_test\.go:' "$log"; then
      continue
    fi
    cat "$log"
    failed+=("$dir $target")
  done
done

[ "$count" -gt 0 ] || { echo "no fuzz target was found" >&2; exit 1; }
if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
echo "$count fuzz targets, none failed"
