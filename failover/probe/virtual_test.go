package probe

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
)

// network is a link in virtual time: every address is a switch at the end of a path.
type network struct {
	rnd  map[netip.AddrPort]*rand.Rand // each path loses the same packets every time
	rtt  time.Duration
	loss float64       // of the packets, in each direction
	stop chan struct{} // made where virtual time runs

	mu     sync.Mutex
	frozen time.Time   // when the switches stopped; zero: they run
	closed bool        // nobody listens, and ICMP says so
	resume time.Time   // a switch that stands still answers only then
	times  []time.Time // of the packets that were sent
	recent [16]string  // packet i of all at i modulo 16
	to     netip.AddrPort
	stopAt int           // this process is stopped after so many packets, once
	block  time.Duration // for so long
	hold   time.Duration // the next answer is read so much later than it was sent
	always time.Duration // this process is stopped so long after every packet
	fail   error         // of the next sends
	fails  int           // how many
	heard  func([]byte, netip.AddrPort)
	quoted func(icmpError) bool
}

func newNetwork(rtt time.Duration, loss float64) *network {
	return &network{rnd: make(map[netip.AddrPort]*rand.Rand), rtt: rtt, loss: loss}
}

func (n *network) addr() netip.AddrPort { return netip.MustParseAddrPort("192.0.2.1:5070") }
func (n *network) Close() error         { close(n.stop); return nil }

func (n *network) serve(heard func([]byte, netip.AddrPort), quoted func(icmpError) bool) {
	n.mu.Lock()
	n.heard, n.quoted = heard, quoted
	n.mu.Unlock()
	<-n.stop
}

// wait blocks as a stopped process does.
func (n *network) wait() {
	n.mu.Lock()
	block := n.always
	if len(n.times) == n.stopAt {
		block, n.stopAt = n.block, -1
	}
	n.mu.Unlock()
	time.Sleep(block) // virtual
}

func (n *network) send(packet []byte, to netip.AddrPort) error {
	defer n.wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.times = append(n.times, time.Now())
	n.recent[(len(n.times)-1)%len(n.recent)], n.to = string(packet), to
	if n.fails > 0 {
		n.fails--
		return n.fail
	}
	rnd := n.rnd[to]
	if rnd == nil {
		rnd = rand.New(rand.NewPCG(1, uint64(to.Addr().As4()[3]))) //nolint:gosec // see network
		n.rnd[to] = rnd
	}
	there, back := rnd.Float64() < n.loss, rnd.Float64() < n.loss
	if there || back {
		return nil
	}
	response := reply(string(packet), "200 OK")
	wayBack := n.rtt/2 + n.hold
	n.hold = 0
	time.AfterFunc(n.rtt/2, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.closed {
			quoted := n.quoted
			time.AfterFunc(n.rtt/2, func() { quoted(icmpError{to: to, refusal: true, quoted: packet}) })
			return
		}
		if !n.frozen.IsZero() {
			return
		}
		time.AfterFunc(wayBack+max(0, time.Until(n.resume)), func() {
			n.mu.Lock()
			heard := n.heard
			n.mu.Unlock()
			heard(response, to)
		})
	})
	return nil
}

// set changes something of the network.
func (n *network) set(f func(*network)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n)
}

func (n *network) sent() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.times)
}

// unreachable tells that packet i, one of the last sixteen, met a closed port.
func (n *network) unreachable(i int) {
	n.mu.Lock()
	quoted, to, packet := n.quoted, n.to, n.recent[i%len(n.recent)]
	n.mu.Unlock()
	quoted(icmpError{to: to, refusal: true, quoted: []byte(packet)})
}

// nodes returns members at addresses of the network.
func nodes(count int) []pbxmesh.Node {
	var all []pbxmesh.Node
	for i := range count {
		all = append(all, pbxmesh.Node{
			ID:        pbxmesh.NodeID(fmt.Sprint("n", i)),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})},
			Ports:     pbxmesh.SIPPorts{UDP: 5060},
		})
	}
	return all
}

// virtually runs a prober over n in virtual time; each result goes to onResult, whose
// calls do not overlap. f ends the run by its return.
func virtually(t *testing.T, n *network, o Options, onResult func(failover.ProbeResult), f func(p *Prober)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		o.OnResult = func(r failover.ProbeResult) {
			mu.Lock()
			defer mu.Unlock()
			onResult(r)
		}
		if err := o.setDefaults(); err != nil {
			t.Fatal(err)
		}
		n.stop = make(chan struct{})
		p := newProber(o, n)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		synctest.Wait()
		f(p)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// onMeasured runs f beside a prober that has probed one node for twenty seconds, and has no
// result left to take.
func onMeasured(t *testing.T, n *network, r *results, f func()) {
	t.Helper()
	virtually(t, n, Options{}, r.add, func(p *Prober) {
		p.SetMembers(nodes(1))
		time.Sleep(20 * time.Second) // virtual
		r.take()
		f()
	})
}

// results collects what a prober says.
type results struct {
	mu  sync.Mutex
	all []failover.ProbeResult
}

func (r *results) add(one failover.ProbeResult) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, one)
}

// take returns what was said since the last take.
func (r *results) take() []failover.ProbeResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.all
	r.all = nil
	return all
}

// next waits for the next result and takes all there are.
func (r *results) next() failover.ProbeResult {
	for {
		if all := r.take(); len(all) > 0 {
			return all[0]
		}
		time.Sleep(time.Millisecond) // virtual
	}
}

func outcomes(all []failover.ProbeResult) []failover.Outcome {
	var out []failover.Outcome
	for _, r := range all {
		out = append(out, r.Outcome)
	}
	return out
}

func count(all []failover.ProbeResult, o failover.Outcome) int {
	return len(slices.DeleteFunc(outcomes(all), func(x failover.Outcome) bool { return x != o }))
}
