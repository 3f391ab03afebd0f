#!/usr/bin/env bash
# Measures the registry against a real Redis on this machine: how long a change takes to
# be visible elsewhere, reading everything, memory, lookups, processor time.
# usage: scripts/bench-registry.sh        (about three minutes)
set -euo pipefail

go=${GO:-go}
command -v redis-server >/dev/null || { echo "no redis-server in PATH; install it with: apt-get install redis-server" >&2; exit 1; }

echo "$(nproc) cores, $(redis-server --version | cut -d' ' -f3), $("$go" version | cut -d' ' -f3)"
binary=$(mktemp)
trap 'rm -f "$binary"' EXIT
"$go" test -c -o "$binary" ./registry

bench() { # pattern time
  (cd registry && "$binary" -test.run '^$' -test.bench "^$1\$" -test.benchtime "$2" -test.timeout 10m) | grep -E '^Benchmark|^---|FAIL|panic|_test.go'
}

bench BenchmarkVisible 20000x        # ten seconds at 2,000 changes a second
bench BenchmarkColdSync 1x           # 100,000 and 1,000,000 registrations
bench BenchmarkFar 1x              # the same beyond 150 ms: publishing 200,000, reading 1,000,000
bench BenchmarkReplicaBytes 1x
bench BenchmarkLookup 2s
bench BenchmarkRefreshes 20000x      # twelve seconds at 1,667 refreshes a second, four ways
