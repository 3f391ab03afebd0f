#!/usr/bin/env bash
# Runs our redirect server and Kamailio (location lookup in memory, then 302) in turn
# on one machine under the same load of sipp, with 10,000 users each, and prints for
# every round: redirects per second, p99 of the time from INVITE to 302 as sipp saw it,
# CPU time of the server per redirect (INVITE, 302 and ACK, from /proc), and in the end
# the medians with their ratios. An INVITE that sipp repeats, because the machine has no
# time for it, is answered again and counts as a redirect.
#
# CPU per redirect is the figure to trust: sipp is one thread and the limit long before
# either server is.   usage: scripts/bench-redirect.sh [RATE] [SECONDS] [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/.."

rate=${1:-6000} seconds=${2:-10} rounds=${3:-5} users=10000
go=${GO:-go}
here=$PWD/router/redirect/testdata
port=5470

missing=()
command -v sipp >/dev/null || missing+=(sip-tester)
command -v kamailio >/dev/null || missing+=(kamailio)
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || { echo "install ${missing[*]} first" >&2; exit 1; }
  # Debian starts a service that it installs; RUNLEVEL=1 keeps it from that.
  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi

work=$(mktemp -d)
server=
stop() {
  [ -n "$server" ] || return 0
  kill -INT "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  server=
}
trap 'stop; rm -rf "$work"' EXIT

(cd router/redirect && "$go" test -c -o "$work/redirect.test" .)
{ echo SEQUENTIAL; for i in $(seq 0 $((users - 1))); do printf 'u%05d;\n' "$i"; done; } >"$work/users.csv"
ticks=$(getconf CLK_TCK)

start() { # name
  case $1 in
  pbxmesh)
    (cd router/redirect && exec env PBXMESH_REDIRECT_BENCH="127.0.0.1:$port" "$work/redirect.test" -test.run '^TestBenchServer$' -test.v -test.timeout 0) >"$work/$1.log" 2>&1 &
    server=$!
    ;;
  kamailio)
    mkdir -p "$work/run"
    kamailio -f "$here/kamailio.cfg" -DD -E -l "udp:127.0.0.1:$port" -Y "$work/run" -P "$work/run/pid" -w "$work" -m 256 -M 32 >"$work/$1.log" 2>&1 &
    server=$!
    ;;
  esac
  for _ in $(seq 100); do
    if sipp "127.0.0.1:$port" -sf "$here/sipp/options.xml" -s x -i 127.0.0.1 -p $((port + 1)) -m 1 -nostdin -timeout 1s -timeout_error >/dev/null 2>&1; then
      break
    fi
    kill -0 "$server" 2>/dev/null || { cat "$work/$1.log" >&2; exit 1; }
  done
  if [ "$1" = kamailio ]; then
    load register 2000 $users || { echo "registering at Kamailio failed" >&2; tail -5 "$work/$1.log" >&2; exit 1; }
  fi
}

load() { # scenario rate calls
  (cd "$work" && sipp "127.0.0.1:$port" -sf "$here/sipp/$1.xml" -inf users.csv -i 127.0.0.1 -p $((port + 1)) \
    -r "$2" -m "$3" -l 20000 -nostdin -trace_stat -stf stat.csv -fd 1s -trace_rtt -rtt_freq 1000 \
    -timeout $((seconds * 4 + 60))s >sipp.log 2>&1)
}

# CPU ticks of a process and all its children, waited for or not.
cpu() { # pid
  local total=0 pid
  for pid in $1 $(pgrep -P "$1" || true); do
    total=$((total + $(sed 's/.*) //' "/proc/$pid/stat" | awk '{print $12 + $13}')))
  done
  echo "$total"
}

round() { # name
  start "$1"
  load load "$rate" "$rate" || true # warm
  rm -f "$work"/*rtt.csv "$work"/stat.csv
  local before after calls=$((rate * seconds)) begin end
  before=$(cpu "$server") begin=$(date +%s.%N)
  load load "$rate" "$calls" || true
  end=$(date +%s.%N) after=$(cpu "$server")
  local good retrans p99
  good=$(awk -F';' 'NR==1{for(i=1;i<=NF;i++)if($i=="SuccessfulCall(C)")c=i} END{print $c}' "$work/stat.csv")
  retrans=$(awk -F';' 'NR==1{for(i=1;i<=NF;i++)if($i=="Retransmissions(C)")c=i} END{print $c}' "$work/stat.csv")
  p99=$(awk -F';' 'FNR>1 && $2!=""{print $2}' "$work"/*rtt.csv | sort -g | awk '{a[NR]=$1} END{if(NR)print a[int((NR-1)*0.99)+1]}')
  awk -v n="$1" -v g="$good" -v c="$calls" -v t="$(echo "$end $begin" | awk '{print $1-$2}')" -v k="$((after - before))" -v hz="$ticks" -v p="$p99" -v r="$retrans" \
    'BEGIN{printf "%-9s %7d of %d redirected  %7.0f/s  p99 %6.2f ms  %6.2f us CPU per redirect  %d repeated\n", n, g, c, g/t, p, k/hz*1e6/(g+r), r
           printf "%s %f %f %f\n", n, g/t, p, k/hz*1e6/(g+r) >> "'"$work"'/rounds"}'
  stop
}

echo "sipp $rate INVITEs/s for $seconds s, $rounds rounds each in turn, $users users, $(nproc) processors, load average $(cut -d' ' -f1-3 /proc/loadavg)"
for _ in $(seq "$rounds"); do
  round pbxmesh
  round kamailio
done
median() { awk -v n="$1" -v c="$2" '$1==n{print $c}' "$work/rounds" | sort -g | awk '{a[NR]=$1} END{print a[int((NR+1)/2)]}'; }
for n in pbxmesh kamailio; do
  awk -v n=$n -v a="$(median $n 2)" -v b="$(median $n 3)" -v c="$(median $n 4)" \
    'BEGIN{printf "median %-9s %7.0f/s  p99 %6.2f ms  %6.2f us CPU per redirect, so %7.0f redirects/s and core\n", n, a, b, c, 1e6/c}'
done
awk -v a="$(median pbxmesh 4)" -v b="$(median kamailio 4)" -v p="$(median pbxmesh 3)" -v q="$(median kamailio 3)" \
  'BEGIN{printf "ratio pbxmesh to kamailio: redirects/s and core %.2f, CPU %.2f, p99 %.2f\n", b/a, a/b, (q>0)?p/q:0}'
