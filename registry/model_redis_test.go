package registry_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// TestModelRedis is TestModel over a real Redis, each daemon behind a link of its own
// that is cut, slow, loses connections or answers, with a server that is emptied, killed
// and stopped. It plays a few schedules; PBXMESH_MODEL_SCHEDULES= or -rapid.checks= plays
// more, PBXMESH_MODEL_SEED= begins with another one.
func TestModelRedis(t *testing.T) {
	t.Parallel()
	schedules, seed := number("PBXMESH_MODEL_SCHEDULES", 3), number("PBXMESH_MODEL_SEED", int(time.Now().UnixNano()%1_000_000))
	flag.Visit(func(f *flag.Flag) {
		if f.Name == "rapid.checks" {
			schedules, _ = strconv.Atoi(f.Value.String())
		}
	})
	var longest time.Duration
	for n := range schedules {
		took, err := playRedis(t, redisSchedules().Example(seed+n), 0, 20*time.Second)
		if err != nil {
			t.Fatalf("PBXMESH_MODEL_SEED=%d: %v", seed+n, err)
		}
		longest = max(longest, took)
	}
	t.Logf("%d schedules from seed %d, the longest recovery took %.1f s", schedules, seed, longest.Seconds())
}

func number(env string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(env)); err == nil {
		return n
	}
	return otherwise
}

// The same finds bugs of the protocol.
func TestModelRedisFindsSeededBugs(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		bugs int
		ops  []op
	}{
		"a new epoch leaves the old in": {registry.BlindToEpochs, []op{{What: "register", N: 7}, {What: "reboot", N: 20, Span: 50 * time.Millisecond}}},
		"digests are not compared":      {registry.BlindToDigests, []op{{What: "lose", Daemon: 3}, {What: "register", N: 7, Span: 300 * time.Millisecond}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := playRedis(t, test.ops, test.bugs, 5*time.Second); err == nil {
				t.Error("not found")
			} else {
				t.Logf("found: %v", err)
			}
			if _, err := playRedis(t, test.ops, 0, 20*time.Second); err != nil {
				t.Errorf("without the bug: %v", err)
			}
		})
	}
}

var redisWhats = []string{
	"register", "register", "register", "register", "unregister", "unregister", "reread", "reboot",
	"flush", "kill", "pause", "cut", "heal", "heal", "cut site", "heal site", "heal site", "delay", "drop", "deafen", "tamper",
	"restart", "forget", "lose", "lose told", "swap told", "tell again", "later",
}

func redisSchedules() *rapid.Generator[[]op] {
	one := rapid.Custom(func(t *rapid.T) op {
		return op{
			What:   rapid.SampledFrom(redisWhats).Draw(t, "what"),
			Daemon: rapid.IntRange(0, len(cast)-1).Draw(t, "daemon"),
			N:      rapid.IntRange(0, 25).Draw(t, "device"),
			Span:   time.Duration(rapid.SampledFrom([]int{0, 0, 1, 7, 60, 150}).Draw(t, "ms")) * time.Millisecond,
		}
	})
	return rapid.SliceOfN(one, 5, 40)
}

// playRedis runs a schedule in real time and returns how long the mesh took to recover.
func playRedis(t *testing.T, ops []op, bugs int, bound time.Duration) (took time.Duration, err error) {
	t.Helper()
	server := registrytest.StartRedis(t)
	p := &redisPlayer{t: t, server: server}
	p.init()
	defer func() {
		for _, d := range p.daemons {
			d.stop()
		}
	}()
	for _, c := range cast {
		link := registrytest.StartProxy(t, server.Addr())
		p.links = append(p.links, link)
		tune := tuning{owner: "host-" + string(c.id), bugs: bugs}
		if c.older {
			tune.bugs |= registry.Older
		}
		d := start(t, c.id, opened(t, redisstore.Options{URL: link.URL()}), tune)
		p.daemons = append(p.daemons, d)
		if c.id != "" {
			p.boot(d, "core-"+string(c.id), count(0, 5))
		}
	}
	registrytest.WaitFor(t, "the mesh to begin", func() bool { return p.differs() == "" })
	for _, o := range ops {
		p.do(o)
		pause(o.Span)
		if err := p.lost(); err != nil {
			return 0, err
		}
	}
	for _, l := range p.links {
		l.Heal()
	}
	ended, settled := time.Now(), time.Time{}
	for diff := p.differs(); ; diff = p.differs() {
		switch now := time.Now(); {
		case diff != "" && now.Sub(ended) > bound:
			return 0, fmt.Errorf("%s after the faults: %s", now.Sub(ended), diff)
		case diff != "":
			settled = time.Time{}
		case settled.IsZero():
			settled = now
		case now.Sub(settled) > 300*time.Millisecond: // and it stays so
			return settled.Sub(ended), nil
		}
		pause(5 * time.Millisecond)
	}
}

// pause is how long nothing is done to the mesh; no test waits for its success by it.
func pause(d time.Duration) { <-time.After(d) }

type redisPlayer struct {
	player
	t      *testing.T
	server *registrytest.Redis
	links  []*registrytest.Proxy
}

func (p *redisPlayer) do(o op) {
	d, link := p.daemons[o.Daemon], p.links[o.Daemon]
	must := func(err error) {
		if err != nil {
			p.t.Fatalf("%s: %v", o.What, err)
		}
	}
	raw := func() context.Context { return context.Background() }
	switch o.What {
	case "flush":
		must(rawClient(p.t, p.server.URL()).FlushAll(raw()).Err())
	case "kill":
		must(errors.Join(p.server.Kill(), p.server.Start()))
	case "pause":
		must(p.server.Pause())
		pause(time.Duration(o.N) * 20 * time.Millisecond)
		must(p.server.Resume())
	case "cut":
		link.Cut()
	case "heal":
		link.Heal()
	case "cut site", "heal site":
		for i, l := range p.links {
			switch {
			case cast[i].site != o.Daemon%2:
			case o.What == "cut site":
				l.Cut()
			default:
				l.Heal()
			}
		}
	case "delay":
		link.SetDelay(time.Duration(o.N) * time.Millisecond)
	case "drop":
		link.Drop()
	case "deafen":
		link.Deafen(true)
	case "tamper", "forget":
		id := p.daemons[o.N%castNodes].id
		c := rawClient(p.t, p.server.URL())
		if o.What == "forget" {
			p.removed[id] = true
			store := opened(p.t, redisstore.Options{URL: p.server.URL()})
			must(store.Forget(raw(), id))
			return
		}
		term, err := c.HGet(raw(), "pbxmesh:{"+string(id)+"}:meta", "term").Result()
		if err != nil {
			return // nothing is there to be changed
		}
		victim := device(id, o.N%3)
		must(c.HSet(raw(), "pbxmesh:{"+string(id)+"}:rec:"+term, "registration|"+registry.RegistrationKey(victim.ID()),
			fmt.Sprintf(`1 {"v":1,"i":%q,"c":"sip:ghost@192.0.2.66","p":"internal","x":4102444800000}`, victim.CallID)).Err())
	case "restart":
		if d.id == "" {
			d.kill()
			p.daemons[o.Daemon], p.had[o.Daemon] = d.start(), map[pbxmesh.NodeID]bool{}
			return
		}
		p.player.do(o)
	default:
		p.player.do(o)
	}
}
