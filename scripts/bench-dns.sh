#!/usr/bin/env bash
# `pbxmesh serve`, gdnsd, and PowerDNS with Lua records, in turn under the same dnsperf.
# The same names of the zone and of wildcard tenants, with answers that depend on the
# client, in three passes: plain (A, by the client's own address), ecs (A, by the client
# subnet option in every query), mixed (A, SRV, NAPTR and AAAA in equal parts). The server
# has one processor and dnsperf another. Our daemon is the program that is shipped, with a
# configuration, three nodes in a Redis, and all that it does beside the name server; the
# other two probe the nodes by themselves. Prints queries per second, the server's CPU time
# per query, and ratios.   usage: scripts/bench-dns.sh SECONDS ROUNDS
set -euo pipefail

seconds=${1:-5} rounds=${2:-5} go=${GO:-go}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
chmod 755 "$work"
ticks=$(getconf CLK_TCK)
server= nodes= redis=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; [ -z "$nodes" ] || kill -INT "$nodes" 2>/dev/null || true
  [ -z "$redis" ] || kill "$redis" 2>/dev/null || true; wait; rm -rf "$work"' EXIT

missing=()
command -v dnsperf >/dev/null || missing+=(dnsperf)
command -v redis-server >/dev/null || missing+=(redis-server)
command -v dig >/dev/null || missing+=(bind9-dnsutils)
[ -x /usr/sbin/gdnsd ] || missing+=(gdnsd)
[ -x /usr/sbin/pdns_server ] && compgen -G '/usr/lib/*/pdns/libbindbackend.so' >/dev/null || missing+=(pdns-server pdns-backend-bind)
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || { echo "install ${missing[*]} (Debian: apt-get install ${missing[*]})" >&2; exit 1; }
  echo "installing ${missing[*]}" >&2
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1
fi
[ "$(nproc)" -ge 2 ] || { echo "two processors are needed: one for the server, one for dnsperf" >&2; exit 1; }

(cd "$root" && "$go" build -o "$work/pbxmesh" ./cmd/pbxmesh && "$go" test -c -o "$work/nodes.test" ./internal/app)
mkdir -p "$work/zones" "$work/run" "$work/state"

# Queries: 500 tenants below the wildcard, and the zone itself for a fifth of them all.
awk 'BEGIN{for(i=0;i<500;i++){print "t" i ".pbx.test A"; if(i%4==0) print "pbx.test A"}}' >"$work/plain"
cp "$work/plain" "$work/ecs"
awk 'function all(n){print n, "A"; print "_sip._udp." n, "SRV"; print n, "NAPTR"; print n, "AAAA"}
  BEGIN{for(i=0;i<500;i++){all("t" i ".pbx.test"); if(i%4==0) all("pbx.test")}}' >"$work/mixed"

cat >"$work/pbxmesh.yaml" <<EOF
name: bench
registry: {url: "unix://$work/redis.sock"}
router: {socket: {listen: ""}}
failover: {probe: {sip: false, mesh: false}}
dns:
  listen: ["127.0.0.1:15301"]
  zone: pbx.test
  tenants: ["*.pbx.test"]
  nameservers: [{name: ns1.pbx.test, addresses: [127.0.0.1]}]
  preferences:
    - {network: 198.51.100.0/24, nodes: [london, buffalo, singapore]}
    - {network: 203.0.113.0/24, nodes: [singapore, buffalo, london]}
  default_order: [buffalo, london, singapore]
  # The counting of the rate limit is part of what is measured, its limits are not.
  rate_limit: {answers: 10000000, nxdomain: 10000000, errors: 10000000}
api: {listen: ""}
EOF
cat >"$work/config" <<EOF
options => {
  listen => [ 127.0.0.1:15302 ]
  run_dir => $work/run
  state_dir => $work/state
  udp_threads => 1
  tcp_threads => 1
}
service_types => { sip => { plugin => tcp_connect, port => 5060, interval => 2, timeout => 1 } }
plugins => {
  geoip => {
    maps => {
      m => {
        datacenters => [ b, l, s ]
        nets => { 198.51.100.0/24 => [ l, b, s ], 203.0.113.0/24 => [ s, b, l ] }
      }
    }
    resources => {
      best => { map => m, service_types => sip, dcmap => { b => 127.0.0.11, l => 127.0.0.12, s => 127.0.0.13 } }
    }
  }
}
EOF
srv='SRV 10 0 5060 buffalo
  SRV 20 0 5060 london
  SRV 30 0 5060 singapore'
naptr='NAPTR 10 10 "s" "SIP+D2U" "" _sip._udp
  NAPTR 20 10 "s" "SIP+D2T" "" _sip._tcp'
soa='SOA ns1 hostmaster 1 3600 600 604800 10'
hosts='ns1 A 127.0.0.1
buffalo A 127.0.0.11
london A 127.0.0.12
singapore A 127.0.0.13'
cat >"$work/zones/pbx.test" <<EOF
\$TTL 30
@ $soa
  NS ns1
  DYNA geoip!best
  $naptr
* DYNA geoip!best
  $srv
  $naptr
_sip._udp $srv
$hosts
EOF
lua="LUA A \";if netmask({'198.51.100.0/24'}) then return ifportup(5060,{'127.0.0.12'}) elseif netmask({'203.0.113.0/24'}) then return ifportup(5060,{'127.0.0.13'}) else return ifportup(5060,{'127.0.0.11'}) end\""
cat >"$work/pdns.zone" <<EOF
\$ORIGIN pbx.test.
\$TTL 30
@ $soa
  NS ns1
  $lua
  $naptr
* $lua
  $srv
  $naptr
_sip._udp $srv
$hosts
EOF
echo "zone \"pbx.test\" { type master; file \"$work/pdns.zone\"; };" >"$work/named.conf"
cat >"$work/pdns.conf" <<EOF
launch=bind
bind-config=$work/named.conf
local-address=127.0.0.1
local-port=15303
enable-lua-records=yes
edns-subnet-processing=yes
receiver-threads=1
distributor-threads=1
socket-dir=$work/run
zone-cache-refresh-interval=0
EOF

redis-server --port 0 --unixsocket "$work/redis.sock" --save '' --appendonly no --dir "$work" >"$work/redis.log" 2>&1 &
redis=$!
for _ in $(seq 100); do [ -S "$work/redis.sock" ] && break; sleep 0.1; done
PBXMESH_DNS_BENCH_NODES="unix://$work/redis.sock" "$work/nodes.test" -test.run '^TestBenchNodes$' -test.timeout 0 >"$work/nodes.log" 2>&1 &
nodes=$!

start() { # name
  case $1 in
    pbxmesh) port=15301
      taskset -c 0 "$work/pbxmesh" serve -c "$work/pbxmesh.yaml" >"$work/$1.log" 2>&1 & ;;
    gdnsd) port=15302
      taskset -c 0 /usr/sbin/gdnsd -c "$work" start >"$work/$1.log" 2>&1 & ;;
    powerdns) port=15303
      taskset -c 0 /usr/sbin/pdns_server --config-dir="$work" --guardian=no --daemon=no --write-pid=no >"$work/$1.log" 2>&1 & ;;
  esac
  server=$!
  for _ in $(seq 200); do
    got=$(dig +short +tries=1 +time=1 +subnet=198.51.100.0/24 @127.0.0.1 -p $port t7.pbx.test A 2>/dev/null || true)
    [ "$got" = 127.0.0.12 ] && return
    sleep 0.1
  done
  echo "$1 does not answer as it should: $got" >&2
  tail -20 "$work/$1.log" "$work/nodes.log" >&2
  exit 1
}

stop() {
  kill -INT "$server" 2>/dev/null || true
  for _ in $(seq 50); do kill -0 "$server" 2>/dev/null || break; sleep 0.1; done
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  server=
}

cpu() { sed 's/.*) //' "/proc/$server/stat" | awk '{print $12 + $13}'; }

round() { # name mix
  local ecs=()
  [ "$2" = ecs ] && ecs=(-E 8:00011800c63364)
  start "$1"
  local load=(taskset -c 1 dnsperf -s 127.0.0.1 -p "$port" -d "$work/$2" -T 1 -c 20 -q 200 -e "${ecs[@]}")
  "${load[@]}" -l 1 >/dev/null 2>&1 # warm
  local before after
  before=$(cpu)
  "${load[@]}" -l "$seconds" >"$work/dnsperf.log" 2>&1
  after=$(cpu)
  awk -v n="$1" -v m="$2" -v k="$((after - before))" -v hz="$ticks" -v out="$work/rounds" '
    /Queries completed:/{q=$3} /Queries lost:/{lost=$3} /Queries per second:/{qps=$4} /Response codes:/{codes=$0; sub(/.*codes: */,"",codes)}
    END{printf "%-9s %-5s %8.0f queries/s  %7.2f s CPU per million  lost %d  %s\n", n, m, qps, k/hz/q*1e6, lost, codes
        printf "%s %s %f %f\n", n, m, qps, k/hz/q*1e6 >> out}' "$work/dnsperf.log"
  stop
}

echo "$seconds s, $rounds rounds each in turn, one processor for the server, one for dnsperf; load average $(cut -d' ' -f1-3 /proc/loadavg)"
for _ in $(seq "$rounds"); do
  for mix in plain ecs mixed; do
    for name in pbxmesh gdnsd powerdns; do round $name $mix; done
  done
done
median() { awk -v n="$1" -v m="$2" -v c="$3" '$1==n && $2==m{print $c}' "$work/rounds" | sort -g | awk '{a[NR]=$1} END{print a[int((NR+1)/2)]}'; }
for mix in plain ecs mixed; do
  for name in pbxmesh gdnsd powerdns; do
    awk -v n=$name -v m=$mix -v q="$(median $name $mix 3)" -v c="$(median $name $mix 4)" 'BEGIN{printf "median %-9s %-5s %8.0f queries/s  %7.2f s CPU per million\n", n, m, q, c}'
  done
  # Ratios are between neighbours in time, for the machine may have other work: each
  # round gives one, and the median of them counts.
  awk -v m=$mix '
    function median(a, n,   i, j, t) {
      for (i = 2; i <= n; i++) for (j = i; j > 1 && a[j] < a[j-1]; j--) { t = a[j]; a[j] = a[j-1]; a[j-1] = t }
      return a[int((n+1)/2)]
    }
    $2==m && $1=="pbxmesh"{n++; aq=$3; ac=$4} $2==m && $1=="gdnsd"{q[n]=aq/$3; c[n]=ac/$4} $2==m && $1=="powerdns"{p[n]=aq/$3}
    END{printf "ratio %-5s %.2f of gdnsd queries/s, %.2f of its CPU per query; %.1f times PowerDNS queries/s\n", m, median(q,n), median(c,n), median(p,n)}' "$work/rounds"
done
