package latency

import (
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"pbxmesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func ms(v float64) time.Duration { return time.Duration(v * float64(time.Millisecond)) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func site(id pbxmesh.NodeID, lat, lon float64) pbxmesh.Node {
	return pbxmesh.Node{ID: id, Addresses: []netip.Addr{addr("192.0.2.1")}, Location: pbxmesh.Location{Latitude: lat, Longitude: lon}}
}

var (
	buffalo   = site("buffalo", 42.89, -78.88)
	london    = site("london", 51.51, -0.13)
	singapore = site("singapore", 1.35, 103.82)
)

// mesh is three nodes with their estimates and what they shared.
type mesh struct {
	t          testing.TB
	estimates  map[pbxmesh.NodeID]*Estimates
	publishers map[pbxmesh.NodeID]*Publisher
	book       *Book
	now        time.Time
	in         Input
}

func newMesh(t testing.TB, nodes ...pbxmesh.Node) *mesh {
	t.Helper()
	if nodes == nil {
		nodes = []pbxmesh.Node{buffalo, london, singapore}
	}
	m := &mesh{t: t, estimates: make(map[pbxmesh.NodeID]*Estimates), publishers: make(map[pbxmesh.NodeID]*Publisher), book: NewBook(), now: epoch}
	for _, n := range nodes {
		m.estimates[n.ID] = NewEstimates(Options{})
		m.publishers[n.ID] = NewPublisher(m.estimates[n.ID])
	}
	m.in = Input{Book: m.book, Nodes: nodes, MaxCost: time.Second}
	return m
}

// shows lets a client register at a node so many times, a second apart.
func (m *mesh) shows(node pbxmesh.NodeID, client string, rtt float64, times int) {
	for range times {
		m.now = m.now.Add(time.Second)
		m.estimates[node].Add(Sample{Client: addr(client), RTT: ms(rtt), At: m.now, Visit: true})
	}
}

// show lets as many accounts as there are addresses from a client's on register once at a node.
func (m *mesh) show(node pbxmesh.NodeID, first string, phones int, rtt float64) {
	at := addr(first)
	for range phones {
		m.shows(node, at.String(), rtt, 1)
		at = at.Next()
	}
}

func (m *mesh) view() *View {
	m.t.Helper()
	for node, p := range m.publishers {
		for _, c := range p.Due(m.now, MaxChunks) {
			if err := m.book.Put(Key(node, c.Number), c.Value); err != nil {
				m.t.Fatal(err)
			}
			p.Posted(c)
		}
	}
	m.in.At = m.now
	return NewView(m.in)
}

// order returns the nodes for a client, by name, as the view ranks its network.
func (v *View) order(client string) []pbxmesh.NodeID {
	var best Ranked
	for _, r := range v.Networks() {
		if r.Network.Contains(addr(client)) && (!best.Network.IsValid() || r.Network.Bits() > best.Network.Bits()) {
			best = r
		}
	}
	return best.Nodes
}

// settledOrder is order without what is tried just now.
func (v *View) settledOrder(client string) []pbxmesh.NodeID {
	var out []pbxmesh.NodeID
	for _, i := range v.Explain(addr(client)).Order {
		out = append(out, v.Nodes[i].ID)
	}
	return out
}
