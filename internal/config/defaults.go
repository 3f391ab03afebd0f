package config

import (
	"net/netip"
	"slices"
	"time"
)

// MemoryURL is the registry inside this one process.
const MemoryURL URL = "memory"

// Defaults returns the configuration of an empty file: an observer without node,
// name server or store. Name is left empty, because it depends on the host.
func Defaults() *Config {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	c := &Config{
		FreeSWITCH: FreeSWITCH{
			EventSocket:      EventSocket{Address: "127.0.0.1:8021"},
			Profiles:         []string{"internal"},
			MeshProfile:      "mesh",
			SnapshotInterval: 5 * time.Minute,
			LateMargin:       time.Minute,
		},
		Registry: Registry{
			URL:        MemoryURL,
			LeaseTTL:   5 * time.Second,
			LeaseRenew: time.Second,
			KeyPrefix:  "pbxmesh",
		},
		Router: Router{
			Native: Native{
				Enabled:        true,
				RowTTL:         5 * time.Minute,
				RepairInterval: time.Minute,
				Presence:       true,
				MWI:            true,
			},
			Socket: Socket{
				Listen:          netip.AddrPortFrom(loopback, 8084),
				DecisionTimeout: 300 * time.Millisecond,
				Deadline:        time.Second,
				MaxCalls:        1000,
			},
			HTTP: HTTP{
				Deadline:    500 * time.Millisecond,
				MaxRequests: 256,
				Contexts:    []string{"default"},
			},
		},
		Failover: Failover{
			Probe: Probe{
				Interval:     time.Second,
				Timeout:      500 * time.Millisecond,
				SuspectAfter: 1,
				DownAfter:    3,
				UpAfter:      3,
				SIP:          true,
			},
			Drain: Drain{
				Method: "check-sync",
				After:  30 * time.Second,
				Grace:  2 * time.Minute,
				Again:  time.Minute,
			},
		},
		DNS: DNS{
			Transports:    slices.Clone(transports),
			KeepHosts:     time.Hour,
			RateLimit:     RateLimit{Answers: 1000, NXDomain: 200, Errors: 100, Slip: 2},
			Amplification: 10,
			TTL: TTL{
				Answer:   30 * time.Second,
				Node:     5 * time.Minute,
				NS:       24 * time.Hour,
				Negative: 10 * time.Second,
			},
		},
		API: API{Listen: netip.AddrPortFrom(loopback, 8085)},
		Log: Log{Level: "info", Format: "text"},
	}
	c.Failover.setDefaults()
	return c
}

// setDefaults fills a node section before it is read.
func (n *Node) setDefaults() { n.SIP = SIP{UDP: 5060, TCP: 5060} }
