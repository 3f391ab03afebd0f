# Everything a developer runs. `make help` lists the targets.

GO       ?= go
ARGS     ?= --once
FUZZTIME ?= 10s
BENCH    ?= .

# A release names itself; everything else is described by its commit.
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null)

GOLANGCI_VERSION := v2.15.0
GOLANGCI         := bin/golangci-lint-$(GOLANGCI_VERSION)

.DEFAULT_GOAL := build
.PHONY: help build demo test race lint fuzz bench bench-registry bench-mesh bench-hooks bench-redirect bench-dns bench-dns-garbage sim-latency bench-failover bench-phones soak-failover bench-drain tidy test-freeswitch test-fusionpbx clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build bin/pbxmesh
	$(GO) build -ldflags '-X main.version=$(VERSION)' -o bin/pbxmesh ./cmd/pbxmesh

demo: build ## Run the demo to its end; `make demo ARGS=` leaves it up until Ctrl-C
	bin/pbxmesh demo $(ARGS)
	@case '$(ARGS)' in *--once*) echo 'To leave it up and try commands on it: make demo ARGS=';; esac

test: ## Run all tests (installs missing Debian packages when run as root)
	@scripts/deps.sh
	$(GO) test ./...

race: ## Run all tests under the race detector
	@scripts/deps.sh
	$(GO) test -race ./...

lint: $(GOLANGCI) ## Check style and import rules
	$(GOLANGCI) run ./...

# Kept in bin, not run by `go run`: the linter takes longer to link than to work.
$(GOLANGCI):
	GOBIN=$(CURDIR)/bin $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv bin/golangci-lint $@

fuzz: ## Run every fuzz target for FUZZTIME each
	@GO='$(GO)' scripts/fuzz.sh $(FUZZTIME)

bench: ## Run the benchmarks that match BENCH
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem ./...

bench-mesh: ## Traffic, processor and convergence of a mesh far from its Redis: NODES=50 NAMESERVERS=5 RTT=150ms SECONDS=20
	@scripts/deps.sh
	PBXMESH_BENCH_MESH='$(or $(NODES),50) $(or $(NAMESERVERS),5) $(or $(SECONDS),20) $(or $(RTT),150ms)' $(GO) test -count=1 -v -timeout 40m -run '^TestBenchMesh$$' ./internal/e2e/traffic

bench-hooks: ## Compare the hooks on one switch: FREESWITCH=/path/to/freeswitch, else simulated
	PBXMESH_BENCH_HOOKS=1 PBXMESH_FREESWITCH='$(or $(FREESWITCH),$(PBXMESH_FREESWITCH))' $(GO) test -count=1 -v -timeout 15m -run '^TestBenchHooks$$' ./internal/e2e

bench-registry: ## Measure the registry against a real Redis (three minutes)
	@GO='$(GO)' scripts/bench-registry.sh

bench-redirect: ## Compare our redirect server with Kamailio under sipp, in turn: RATE= SECONDS= ROUNDS=
	@GO='$(GO)' scripts/bench-redirect.sh $(or $(RATE),6000) $(or $(SECONDS),10) $(or $(ROUNDS),5)

bench-dns: ## Compare our name server with gdnsd and PowerDNS Lua under dnsperf, in turn: SECONDS= ROUNDS=
	@GO='$(GO)' scripts/bench-dns.sh $(or $(SECONDS),5) $(or $(ROUNDS),5)

bench-dns-garbage: ## Flood our name server with RATE packets/s of garbage, and see who is answered
	PBXMESH_DNS_GARBAGE=$(or $(RATE),100000) $(GO) test -count=1 -v -run '^TestGarbageLeavesGoodClientsAnswered$$' ./dnsserver

sim-latency: ## Simulate client networks in real cities: the figures and the plot of docs/latency.md
	PBXMESH_SIM_LATENCY='$(CURDIR)/docs' $(GO) test -count=1 -timeout 15m -v -run '^TestReport$$' ./internal/latencysim

bench-failover: ## How soon a failure changes DNS answers: ROUNDS= KIND= FREESWITCH=; about 8 minutes
	@scripts/deps.sh
	PBXMESH_BENCH_FAILOVER='$(or $(ROUNDS),20)' PBXMESH_BENCH_KIND='$(KIND)' PBXMESH_FREESWITCH='$(or $(FREESWITCH),$(PBXMESH_FREESWITCH))' \
	  $(GO) test -count=1 -v -timeout 60m -run '^TestBenchFailover$$' ./internal/e2e/health

soak-failover: ## A flapping node, one that loses 30 % of its packets, and stalls, for DURATION= (10m) at once, as root
	@scripts/deps.sh
	PBXMESH_SOAK_FAILOVER='$(or $(DURATION),10m)' $(GO) test -count=1 -v -timeout 24h -parallel 2 -run '^Test(FlappingNode|LossyNode|Stalls)$$' ./internal/e2e/health

bench-drain: ## Drain a simulated node: PHONES=1000 CALLS=50 PACE=100; registrations by second, calls cut, time
	PBXMESH_BENCH_DRAIN='$(or $(PHONES),1000) $(or $(CALLS),50) $(or $(PACE),100)' $(GO) test -count=1 -v -timeout 60m -run '^TestBenchDrain$$' ./internal/e2e

bench-phones: ## Seconds until real phones are back by name: FREESWITCH=, ROUNDS= KIND= INTERVALS='30s 60s 120s'; as root
	PBXMESH_BENCH_KIND='$(KIND)' PBXMESH_BENCH_PHONES='$(or $(ROUNDS),5)' PBXMESH_BENCH_INTERVALS='$(or $(INTERVALS),30s 60s 120s)' PBXMESH_FREESWITCH='$(or $(FREESWITCH),$(PBXMESH_FREESWITCH))' \
	  $(GO) test -count=1 -v -timeout 3h -run '^TestBenchPhones$$' ./internal/e2e/byname

tidy: ## Bring go.mod, go.sum and the format in order
	$(GO) mod tidy
	$(GO) fmt ./...

test-freeswitch: ## Run the scenarios on real switches: FREESWITCH=/path/to/freeswitch
	@if [ -z '$(FREESWITCH)' ]; then \
	  echo 'name the switch: make test-freeswitch FREESWITCH=/path/to/freeswitch' >&2; exit 2; fi
	@if [ ! -x '$(FREESWITCH)' ]; then \
	  echo '$(FREESWITCH) is no program that can be run' >&2; exit 2; fi
	PBXMESH_FREESWITCH='$(FREESWITCH)' $(GO) test -count=1 -p 1 -parallel 1 -timeout 20m -v -run 'Scenario' \
	  ./fixtures/realswitch ./registry/feed ./failover/latency ./failover/probe ./router/native ./router/socket ./internal/fsconf ./internal/doctor ./internal/e2e ./internal/e2e/health ./internal/e2e/phones ./internal/e2e/byname ./internal/e2e/resolver

# In a network namespace: two switches with the ports that FusionPBX gives them. What is to
# be downloaded is fetched before.
test-fusionpbx: ## Run FusionPBX on two nodes, as root: FUSIONPBX=/path/to/checkout FREESWITCH=/path/to/freeswitch
	@if [ ! -f '$(FUSIONPBX)/core/upgrade/upgrade_schema.php' ]; then \
	  echo 'name a checkout: make test-fusionpbx FUSIONPBX=/path/to/checkout FREESWITCH=/path/to/freeswitch' >&2; exit 2; fi
	@if [ ! -x '$(FREESWITCH)' ]; then \
	  echo '$(FREESWITCH) is no program that can be run' >&2; exit 2; fi
	@if [ "$$(id -u)" != 0 ]; then echo 'run this as root: each node has a host name of its own' >&2; exit 2; fi
	@WITH_PHP=1 scripts/deps.sh
	$(GO) test -run '^$$' ./internal/e2e/fusionpbx ./cmd/pbxmesh
	PBXMESH_FUSIONPBX='$(abspath $(FUSIONPBX))' PBXMESH_FREESWITCH='$(FREESWITCH)' unshare -n sh -c 'ip link set lo up && exec "$$@"' sh \
	  $(GO) test -count=1 -timeout 30m -v -run 'FusionPBX' ./internal/e2e/fusionpbx

clean: ## Remove what the other targets built
	rm -rf bin
