package app

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"pbxmesh"
	"pbxmesh/dnsserver"
	"pbxmesh/dnsserver/selection"
	"pbxmesh/failover/latency"
	"pbxmesh/internal/control"
)

// explainedTypes are the questions that a phone asks, with what it puts before the name.
var explainedTypes = []struct {
	prefix string
	qtype  uint16
}{{"", dns.TypeA}, {"", dns.TypeAAAA}, {"_sip._udp.", dns.TypeSRV}, {"", dns.TypeNAPTR}}

// DNSExplain answers what a client gets from the name servers, and why. A daemon that is
// no name server shows the choice without records: it is the same.
func (a *App) DNSExplain(_ context.Context, name string, client netip.Addr) (*control.DNSExplainReply, error) {
	client = client.Unmap()
	name = dns.CanonicalName(name)
	if _, ok := dns.IsDomainName(name); !ok {
		return nil, fmt.Errorf("%w: %.80q is no domain name; write one such as pbx.example.com", control.ErrInvalid, name)
	}
	mesh := a.tracker.Mesh()
	choices := a.ranker.chooser.On(mesh)
	d, block := choices.For(client, selection.AnyFamily)
	why := choices.Why(client, selection.AnyFamily)
	reply := &control.DNSExplainReply{
		Name: strings.TrimSuffix(name, "."), Client: client, Answers: []control.DNSAnswer{}, Block: block,
		Panic: d.Panic, Nodes: []control.DNSNode{}, Remarks: []string{},
	}
	if a.zone != nil {
		reply.Answers = answers(a.zone, name, client)
	} else {
		reply.Remarks = append(reply.Remarks, "this daemon is no name server (dns.listen is empty): a name server with the same preferences chooses as shown; ask one for the records")
	}
	if len(mesh.Nodes) == 0 {
		reply.Remarks = append(reply.Remarks, "no node is known: name servers answer SERVFAIL for services until one announces itself; `pbxmesh nodes` and the daemon's log say why")
	}
	v := a.ranker.view.Load()
	var e latency.Explanation
	if v != nil {
		e = v.Explain(client)
	}
	for i, id := range order(mesh, d) {
		s := mesh.State(id)
		n := control.DNSNode{Node: id, State: s.Effective().String(), Shed: s.Shed, Refuses: slices.Contains(why.Refuses, id)}
		if i < len(d.Nodes) {
			n.Place = i + 1
		}
		if v != nil {
			figure(&n, v, &e)
		}
		reply.Nodes = append(reply.Nodes, n)
	}
	if len(d.Nodes) > 0 {
		if next, _ := choices.Without(d.Nodes[0]).For(client, selection.AnyFamily); len(next.Nodes) > 0 && next.Nodes[0] != d.Nodes[0] {
			reply.Next = next.Nodes[0]
		}
	}
	reply.Rule, reply.Network = rule(&why, &e)
	if reply.Rule == "latency" && e.Tried >= 0 {
		reply.Tries = v.Nodes[e.Tried].ID
	}
	if e.Elsewhere {
		reply.Remarks = append(reply.Remarks, "the place of the client is wrong: it was measured nearer than light allows")
	}
	reply.Stages = a.stages(reply, choices, &why, v, &e)
	return reply, nil
}

// answers asks the zone, as the client would.
func answers(zone *dnsserver.Zone, name string, client netip.Addr) []control.DNSAnswer {
	out := make([]control.DNSAnswer, 0, len(explainedTypes))
	for _, t := range explainedTypes {
		if _, fits := dns.IsDomainName(t.prefix + name); !fits {
			continue
		}
		req := &dns.Msg{Question: []dns.Question{{Name: t.prefix + name, Qtype: t.qtype, Qclass: dns.ClassINET}}}
		m := zone.Answer(req, client)
		if m == nil {
			continue
		}
		ans := control.DNSAnswer{Type: dns.TypeToString[t.qtype], Result: dns.RcodeToString[m.Rcode], Records: []string{}}
		if t.prefix != "" {
			ans.Type = strings.TrimSuffix(t.prefix, ".") + " " + ans.Type
		}
		for _, rr := range m.Answer {
			h := rr.Header()
			ans.Records = append(ans.Records, fmt.Sprintf("%d %s %s", h.Ttl, dns.TypeToString[h.Rrtype], strings.TrimPrefix(rr.String(), h.String())))
		}
		out = append(out, ans)
	}
	return out
}

// order returns the nodes of a decision, then the others by name.
func order(mesh *pbxmesh.Mesh, d *selection.Decision) []pbxmesh.NodeID {
	out := slices.Clone(d.Nodes)
	var rest []pbxmesh.NodeID
	for id := range mesh.Nodes {
		if !slices.Contains(out, id) {
			rest = append(rest, id)
		}
	}
	slices.Sort(rest)
	return append(out, rest...)
}

// figure fills in what a view knows of a node.
func figure(n *control.DNSNode, v *latency.View, e *latency.Explanation) {
	i := slices.IndexFunc(v.Nodes, func(x pbxmesh.Node) bool { return x.ID == n.Node })
	if i < 0 || i >= len(e.Figures) {
		return
	}
	f := &e.Figures[i]
	n.Score, n.Source, n.Own, n.Samples = f.Score, f.Source(), f.Own, f.Samples
	n.Parent, n.AS, n.Distance, n.Lowest = f.Parent, f.AS, tenths(f.Prior), tenths(f.Lowest)
	n.Evidence, n.Phones, n.Present = tenths(f.Evidence), tenths(f.Visits), e.Incumbent == i
}

func tenths(x float64) float64 { return math.Round(10*x) / 10 }

// rule names what put the nodes in order.
func rule(why *selection.Why, e *latency.Explanation) (string, netip.Prefix) {
	switch {
	case why.Preference.IsValid():
		return "preference", why.Preference
	case why.Ranked.IsValid():
		return "latency", why.Ranked
	case why.Located:
		return "distance", e.Where.Network
	}
	return "default order", netip.Prefix{}
}

// stages tells what each stage of the choice left, and why.
func (a *App) stages(r *control.DNSExplainReply, choices *selection.Choices, why *selection.Why, v *latency.View, e *latency.Explanation) []control.DNSStage {
	mesh := choices.Mesh()
	out := []control.DNSStage{
		{Stage: "order", Nodes: why.Ordered, Reasons: orderReasons(r, v, e)},
		{Stage: "address", Nodes: why.Family},
		{Stage: "state", Nodes: why.Living},
		{Stage: "shedding", Nodes: why.Shed},
		{Stage: "spill", Nodes: why.Nodes},
		{Stage: "answer", Nodes: why.Nodes[:min(len(why.Nodes), 3)]},
	}
	add := func(stage int, format string, args ...any) {
		out[stage].Reasons = append(out[stage].Reasons, fmt.Sprintf(format, args...))
	}
	for _, id := range why.Ordered {
		n, known := mesh.Node(id)
		switch s := mesh.State(id); {
		case !known:
			add(1, "%s is not in the mesh", id)
		case len(n.Addresses) == 0:
			add(1, "%s has no address for phones", id)
		case !slices.Contains(why.Living, id):
			add(2, "%s is %s", id, s.Effective())
		case slices.Contains(why.Refuses, id):
			add(3, "%s sends %.1f %% of the client networks elsewhere, this one among them", id, float64(s.Shed)/10)
		}
	}
	if why.Panic {
		add(2, "panic rule: fewer than half of the nodes take phones, the others follow the living ones")
	}
	if why.Down != "" {
		shares := make([]string, 0, len(why.Spread))
		for _, s := range why.Spread {
			shares = append(shares, fmt.Sprintf("%s %.1f %%", s.Node, float64(s.Takes)/10))
		}
		add(4, "%s comes first and is down: its networks are spread by the room that the others have (%s), this one goes to %s", why.Down, strings.Join(shares, ", "), why.Nodes[0])
	}
	for _, f := range []struct {
		qtype  string
		family selection.Family
	}{{"A", selection.IPv4}, {"AAAA", selection.IPv6}} {
		switch d, _ := choices.For(r.Client, f.family); {
		case len(why.Nodes) == 0 || len(d.Nodes) > 0 && d.Nodes[0] == why.Nodes[0]:
		case len(d.Nodes) == 0:
			add(5, "%s is empty: no node has such an address", f.qtype)
		default:
			add(5, "%s is %s: it comes first of those that have such an address", f.qtype, d.Nodes[0])
		}
	}
	for i := range out {
		out[i].Nodes, out[i].Reasons = append([]pbxmesh.NodeID{}, out[i].Nodes...), append([]string{}, out[i].Reasons...)
	}
	return out
}

// orderReasons says in words why the nodes stand in their order.
func orderReasons(r *control.DNSExplainReply, v *latency.View, e *latency.Explanation) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	switch r.Rule {
	case "preference":
		add("dns.preferences of %v come first, whatever the latency", r.Network)
	case "latency":
		if e.Behind.Order == nil {
			add("ranked by what is known of %v", r.Network)
		}
	case "distance":
		add("nobody measured this client or its neighbours: ranked by distance")
	default:
		add("nothing is known of this client: dns.default_order, then names")
	}
	if b := e.Behind; b.Order != nil && r.Rule == "latency" {
		add("the resolvers of %v send no client subnet: learnt from %.0f registrations that followed their queries, of %d networks, that these phones need another node first than the resolvers' own place suggests", r.Network, b.Registrations, b.Networks)
	} else if b.Networks > 0 && r.Rule != "preference" {
		add("%.0f registrations of %d networks followed the queries of such resolvers: their phones do not clearly need another node first", b.Registrations, b.Networks)
	}
	if r.Rule != "latency" || v == nil {
		return out
	}
	if e.Kept {
		add("%s is kept: most phones of the network are there, and no measured node is better by more than 10 ms and 15 %%", v.Nodes[e.Incumbent].ID)
	}
	if len(e.Try) > 0 {
		names := make([]string, 0, len(e.Try))
		for _, i := range e.Try {
			names = append(names, string(v.Nodes[i].ID))
		}
		add("worth a try: %s, in %.1f %% of the time", strings.Join(names, ", "), float64(e.TryShare)/10)
	}
	if r.Tries != "" {
		add("%s is tried just now, for at most %v", r.Tries, latency.Slot)
	}
	return out
}
