#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time each, as many at once as there
# are processors, and tells at the end which of them failed.  usage: scripts/fuzz.sh 10s
set -euo pipefail

time=${1:?usage: scripts/fuzz.sh TIME, such as 10s}
export time go=${GO:-go}
work=$(mktemp -d)
export work
trap 'rm -rf "$work"' EXIT

# one DIR TARGET BINARY: runs a target where its inputs lie. A failing input is written
# there too, under testdata/fuzz.
one() {
  local dir=$1 target=$2 binary=$3 log
  log=$(mktemp -p "$work")
  run() {
    # Minimizing an interesting input may take a minute by default, and then no
    # fuzzing happens in a short run.
    (cd "$dir" && "$binary" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "$time" -test.fuzzminimizetime 10x \
      -test.parallel 1 -test.fuzzcachedir "$cache/$dir" -test.timeout 30m) >"$log" 2>&1
  }
  # The fuzzing engine sometimes reports its own deadline as a failure. That one leaves
  # no input behind; a second run tells.
  deadline() { grep -q 'context deadline exceeded' "$log" && ! grep -qE 'Failing input written|panic|FuzzFail|_test\.go:' "$log"; }
  if run || { deadline && run; } || deadline; then
    echo "fuzz $dir $target"
  else
    echo "fuzz $dir $target FAILED"
    cat "$log"
    echo "$dir $target" >>"$work/failed"
  fi
}
export -f one

cache=$("$go" env GOCACHE)/fuzz/$("$go" list -m)
export cache
for dir in $(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u); do
  binary=$work/$(echo "$dir" | tr / _).test
  "$go" test -c -fuzz . -o "$binary" "$dir"
  for target in $("$binary" -test.list '^Fuzz'); do
    printf '%s %s %s\n' "$dir" "$target" "$binary" >>"$work/targets"
  done
done

[ -s "$work/targets" ] || { echo "no fuzz target was found" >&2; exit 1; }
xargs -P "$(nproc)" -L1 bash -c 'one "$@"' one <"$work/targets"
if [ -s "$work/failed" ]; then
  sed 's/^/failed: /' "$work/failed" >&2
  exit 1
fi
echo "$(wc -l <"$work/targets") fuzz targets, none failed"
