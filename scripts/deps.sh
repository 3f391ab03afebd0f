#!/usr/bin/env bash
# Sees to it that the programs which the tests start are there: redis-server, sipp,
# PostgreSQL, real SIP phones, network namespaces, and what asks and checks name servers. As root on
# Debian it installs what is missing; otherwise it says in one line what to install, and
# the tests that need it skip. With CI set, missing is an
# error, because a skipped test proves nothing.
set -euo pipefail

missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
command -v dig >/dev/null && command -v delv >/dev/null || missing+=(bind9-dnsutils)
command -v drill >/dev/null || missing+=(ldnsutils)
command -v unbound-host >/dev/null || missing+=(unbound-host)
command -v unbound >/dev/null || missing+=(unbound)
command -v zonemaster-cli >/dev/null || missing+=(zonemaster-cli)
command -v pdns_server >/dev/null && compgen -G '/usr/lib/*/pdns/libremotebackend.so' >/dev/null || missing+=(pdns-server pdns-backend-remote)
command -v ip >/dev/null || missing+=(iproute2)
command -v sipp >/dev/null || missing+=(sip-tester)
command -v baresip >/dev/null || missing+=(baresip-core)
command -v linphone-daemon >/dev/null || missing+=(linphone-cli)
command -v nft >/dev/null || missing+=(nftables)
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
[ -z "${WITH_PHP:-}" ] || php -m 2>/dev/null | grep -q pdo_pgsql || missing+=(php-cli php-pgsql php-xml php-mbstring php-curl)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing ${missing[*]}" >&2
  # Debian would start the services of Redis, PowerDNS and unbound at once, and at every boot. The
  # tests start their own servers on ports of their own, so the services are masked for
  # the installation and left disabled. Who had one before keeps it: then its program is
  # not missing.
  masked=()
  if [ -d /run/systemd/system ]; then
    command -v redis-server >/dev/null || masked+=(redis-server.service)
    command -v pdns_server >/dev/null || masked+=(pdns.service)
    command -v unbound >/dev/null || masked+=(unbound.service)
    for service in "${masked[@]}"; do systemctl mask --quiet "$service"; done
  fi
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  apt_install() { DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -qq -y --no-install-recommends "${missing[@]}" >"$log" 2>&1; }
  # The lists of a fresh machine are empty, those of an old one name versions that are gone.
  if apt_install || { apt-get update -qq >>"$log" 2>&1 && apt_install; }; then ok=yes; else ok=; fi
  for service in "${masked[@]}"; do
    systemctl unmask --quiet "$service" || true
    systemctl disable --quiet "$service" 2>/dev/null || true
  done
  [ -n "$ok" ] && exit 0
  cat "$log" >&2
fi

echo "missing for all tests to run: install ${missing[*]} (Debian: apt-get install ${missing[*]})" >&2
[ -z "${CI:-}" ]
