package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/sipwire"
)

// story is told from top to bottom. Each step leaves the stage as the next one
// expects it.
var story = []step{
	{"Three switches and their daemons start, and two name servers", stepStart},
	{"Both name servers give every town the same answer, the nearest node first", stepSameAnswers},
	{"Phones find their node by DNS and register", stepRegister},
	{"A local call: 1001 in Vancouver calls 1002 in Vancouver", stepLocalCall},
	{"Node to node: 1001 in Vancouver calls 3001 in Tokyo", stepMeshCall},
	{"1001 calls 2999, who is registered nowhere: the call goes on in the dialplan", stepUnregistered},
	{"london is killed, as by kill -9: the name servers turn Rome away from it", stepKillLondon},
	{"2001 in Rome finds buffalo by DNS and registers there", stepRomeMoves},
	{"A call reaches Rome again: 3001 in Tokyo calls 2001 in Rome", stepRomeReached},
	{"A name server is killed: phones that know both notice nothing", stepKillNameServer},
}

// residents are the phones and the node that each should find.
var residents = []struct{ user, town, node string }{
	{"1001", "Vancouver", "buffalo"},
	{"1002", "Vancouver", "buffalo"},
	{"2001", "Rome", "london"},
	{"3001", "Tokyo", "singapore"},
}

func stepStart(ctx context.Context, s *stage, t *teller) (time.Duration, error) {
	if err := s.build(); err != nil {
		return 0, err
	}
	for name, a := range s.daemons {
		for _, node := range nodeNames {
			err := until(ctx, func() error {
				if o := a.Mesh().State(pbxmesh.NodeID(node)).Observed; o != pbxmesh.ObservedUp {
					return fmt.Errorf("%s sees %s %s", name, node, o)
				}
				return nil
			})
			if err != nil {
				return 0, err
			}
		}
	}
	for _, n := range nodeNames {
		t.detail("%-12s phones at %s, mesh calls at %s", n, s.switches[n].SIP(), s.switches[n].Mesh())
	}
	for _, n := range serverNames {
		t.detail("%-12s DNS at %v", n, s.daemons[n].DNSAddrs())
	}
	t.detail("all five daemons see all three nodes up")
	return 0, nil
}

func stepSameAnswers(ctx context.Context, s *stage, t *teller) (time.Duration, error) {
	for _, r := range residents[1:] {
		got, err := s.sentFirst(ctx, r.town, r.node)
		if err != nil {
			return 0, err
		}
		var order []string
		for _, c := range got {
			order = append(order, strings.TrimSuffix(c.Host, "."+zone))
		}
		t.detail("%-12s %s", r.town, strings.Join(order, ", then "))
	}
	return 0, nil
}

// sentFirst waits until every living name server sends a town to node first and all give
// the same answer, and returns it. A machine that had other things to do for a second
// makes daemons silent and nodes suspect for a moment.
func (s *stage) sentFirst(ctx context.Context, town, node string) (got []phone.Candidate, err error) {
	want := s.switches[node].SIP()
	err = until(ctx, func() error {
		if got, err = s.resolveEverywhere(ctx, town); err != nil {
			return err
		}
		if got[0].Addr != want {
			return fmt.Errorf("%s is sent to %s first, want %s at %s", town, got[0].Addr, node, want)
		}
		return nil
	})
	return got, err
}

// resolveEverywhere asks every living name server on behalf of a town, and returns
// the candidates that all of them agree on.
func (s *stage) resolveEverywhere(ctx context.Context, town string) ([]phone.Candidate, error) {
	var first []phone.Candidate
	for _, name := range serverNames {
		if s.dead[name] {
			continue
		}
		r := phone.Resolver{Servers: s.daemons[name].DNSAddrs(), Local: host[town], NoCache: true}
		answer, err := r.Lookup(ctx, zone)
		if err != nil {
			return nil, fmt.Errorf("%s asks %s: %w", town, name, err)
		}
		if first == nil {
			first = answer.Candidates
		} else if !slices.Equal(first, answer.Candidates) {
			return nil, fmt.Errorf("%s is told %v by %s and %v by the other name server", town, answer.Candidates, name, first)
		}
	}
	return first, nil
}

func stepRegister(ctx context.Context, s *stage, t *teller) (time.Duration, error) {
	var total time.Duration
	for _, r := range residents {
		p, err := s.phone(r.user, r.town)
		if err != nil {
			return 0, err
		}
		began := time.Now()
		found, err := p.RegisterByDNS(ctx)
		if err != nil {
			return 0, fmt.Errorf("%s in %s: %w", r.user, r.town, err)
		}
		registered := time.Since(began)
		if err := s.knownEverywhere(ctx, r.user, r.node); err != nil {
			return 0, err
		}
		known := time.Since(began)
		total += known
		reg, _ := p.Registered()
		if want := s.switches[r.node].SIP(); reg.Registrar != want {
			return 0, fmt.Errorf("%s registered at %s, want %s at %s", r.user, reg.Registrar, r.node, want)
		}
		t.detail("%s in %-10s registered on %-10s after %s (DNS %s), known on every node after %s",
			r.user, r.town, r.node, round(registered), round(found.Answer.Took), round(known))
	}
	return total, nil
}

// knownEverywhere waits until every living daemon has user on exactly this node,
// as far as living nodes are concerned.
func (s *stage) knownEverywhere(ctx context.Context, user, node string) error {
	aor, err := pbxmesh.NewAOR(user, zone)
	if err != nil {
		return err
	}
	for name, a := range s.daemons {
		if s.dead[name] {
			continue
		}
		err := until(ctx, func() error {
			reply, err := a.Lookup(ctx, aor)
			if err != nil {
				return err
			}
			var at []string
			for _, r := range reply.Registrations {
				if !s.dead[string(r.Node)] {
					at = append(at, string(r.Node))
				}
			}
			if !slices.Equal(at, []string{node}) {
				return fmt.Errorf("%s knows %s on %v, want %s", name, user, at, node)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// call places a call and proves at the callee's phone which switch it came from.
// It returns how long the caller waited for the answer.
func (s *stage) call(ctx context.Context, t *teller, from, to, fromNode, toNode string) (time.Duration, error) {
	caller, callee := s.phones[from], s.phones[to]
	rang, crossed := len(callee.Incoming()), len(s.meshInvites(toNode))
	began := time.Now()
	out, err := caller.Call(ctx, to)
	if err != nil {
		return 0, err
	}
	info, err := out.WaitAnswered(ctx)
	if err != nil {
		return 0, err
	}
	took := time.Since(began)
	if result := info.Header("X-Pbxmesh-Result"); result != "" {
		return 0, fmt.Errorf("the dialplan answered instead of %s: pbxmesh_result %s", to, result)
	}
	in, err := callee.WaitIncoming(ctx, rang+1)
	if err != nil {
		return 0, fmt.Errorf("the caller was answered, but %s never rang: %w", to, err)
	}
	if want := s.switches[toNode].SIP(); in.Source() != want {
		return 0, fmt.Errorf("%s's INVITE came from %s, want %s at %s", to, in.Source(), toNode, want)
	}
	if user := in.From().URI.User; user != from {
		return 0, fmt.Errorf("%s sees the caller as %q, want %s", to, user, from)
	}
	through := s.meshInvites(toNode)[crossed:]
	path := []string{fmt.Sprintf("%s %s", from, caller.Addr())}
	if fromNode == toNode {
		if len(through) != 0 {
			return 0, fmt.Errorf("a local call crossed the mesh: %v", through)
		}
		path = append(path, fmt.Sprintf("%s %s", toNode, s.switches[toNode].SIP()))
	} else {
		if want := s.switches[fromNode].Mesh(); len(through) != 1 || through[0] != want {
			return 0, fmt.Errorf("%s's mesh profile got INVITEs from %v, want one from %s at %s", toNode, through, fromNode, want)
		}
		path = append(path, fmt.Sprintf("%s %s", fromNode, s.switches[fromNode].Mesh()), fmt.Sprintf("%s %s", toNode, s.switches[toNode].SIP()))
	}
	path = append(path, fmt.Sprintf("%s %s", to, callee.Addr()))
	t.detail("answered after %s; %s received the INVITE from %s", round(took), to, in.Source())
	t.detail("path: %s", strings.Join(path, " -> "))
	if err := out.Hangup(ctx); err != nil {
		return 0, fmt.Errorf("hang up: %w", err)
	}
	if _, err := in.WaitEnded(ctx); err != nil {
		return 0, fmt.Errorf("%s never heard of the hang-up: %w", to, err)
	}
	return took, nil
}

// meshInvites returns where the INVITEs came from that a node's mesh profile has
// received so far.
func (s *stage) meshInvites(node string) []netip.AddrPort {
	var from []netip.AddrPort
	received, seen := sipwire.Received("INVITE"), map[string]bool{}
	for _, r := range s.switches[node].MeshHistory() {
		if received(r) && !seen[r.Msg.Get("Via")] { // not a retransmission
			seen[r.Msg.Get("Via")] = true
			from = append(from, r.Peer)
		}
	}
	return from
}

func stepLocalCall(ctx context.Context, s *stage, t *teller) (time.Duration, error) {
	return s.call(ctx, t, "1001", "1002", "buffalo", "buffalo")
}

func stepMeshCall(ctx context.Context, s *stage, t *teller) (time.Duration, error) {
	return s.call(ctx, t, "1001", "3001", "buffalo", "singapore")
}

func stepUnregistered(ctx context.Context, s *stage, t *teller) (time.Duration, error) {
	began := time.Now()
	out, err := s.phones["1001"].Call(ctx, "2999")
	if err != nil {
		return 0, err
	}
	info, err := out.WaitAnswered(ctx)
	if err != nil {
		return 0, fmt.Errorf("the dialplan did not go on: %w", err)
	}
	took := time.Since(began)
	if result := info.Header("X-Pbxmesh-Result"); result != "not-registered" {
		return 0, fmt.Errorf("the dialplan saw pbxmesh_result %q, want not-registered", result)
	}
	t.detail("the next dialplan action answered; it saw pbxmesh_result=%s pbxmesh_cause=%s",
		info.Header("X-Pbxmesh-Result"), info.Header("X-Pbxmesh-Cause"))
	return took, out.Hangup(ctx)
}

func stepKillLondon(ctx context.Context, s *stage, t *teller) (time.Duration, error) {
	london, buffalo := s.switches["london"].SIP(), s.switches["buffalo"].SIP()
	if _, err := s.sentFirst(ctx, "Rome", "london"); err != nil {
		return 0, err
	}
	began := time.Now()
	s.dead["london"] = true
	if err := s.switches["london"].Kill(); err != nil {
		return 0, err
	}
	s.daemons["london"].Kill()
	var took time.Duration
	err := until(ctx, func() error {
		after, err := s.resolveEverywhere(ctx, "Rome")
		if err != nil {
			return err
		}
		if after[0].Addr != buffalo || slices.ContainsFunc(after, func(c phone.Candidate) bool { return c.Addr == london }) {
			return fmt.Errorf("phones in Rome are still told %v", after)
		}
		took = time.Since(began)
		return nil
	})
	if err != nil {
		return 0, err
	}
	state := s.daemons["losangeles"].Mesh().State("london")
	t.detail("losangeles: london is %s (%s)", state.Effective(), state.Reason)
	t.detail("both name servers now send Rome to buffalo first and to london not at all")
	return took, nil
}

func stepRomeMoves(ctx context.Context, s *stage, t *teller) (time.Duration, error) {
	began := time.Now()
	found, err := s.phones["2001"].RegisterByDNS(ctx)
	if err != nil {
		return 0, err
	}
	reg, _ := s.phones["2001"].Registered()
	if want := s.switches["buffalo"].SIP(); reg.Registrar != want {
		return 0, fmt.Errorf("2001 registered at %s, want buffalo at %s", reg.Registrar, want)
	}
	if err := s.knownEverywhere(ctx, "2001", "buffalo"); err != nil {
		return 0, err
	}
	took := time.Since(began)
	t.detail("registered on buffalo (DNS %s), known on every living node", round(found.Answer.Took))
	return took, nil
}

func stepRomeReached(ctx context.Context, s *stage, t *teller) (time.Duration, error) {
	return s.call(ctx, t, "3001", "2001", "singapore", "buffalo")
}

func stepKillNameServer(ctx context.Context, s *stage, t *teller) (time.Duration, error) {
	const victim = "losangeles"
	before, err := s.sentFirst(ctx, "Rome", "buffalo")
	if err != nil {
		return 0, err
	}
	s.dead[victim] = true
	s.daemons[victim].Kill()
	began := time.Now()
	for _, r := range residents {
		found, err := s.phones[r.user].RegisterByDNS(ctx)
		if err != nil {
			return 0, fmt.Errorf("%s in %s: %w", r.user, r.town, err)
		}
		if slices.Contains(s.daemons[victim].DNSAddrs(), found.Answer.Server) {
			return 0, fmt.Errorf("%s was answered by the dead name server", r.user)
		}
		t.detail("%s in %-10s registered again, DNS %s", r.user, r.town, round(found.Answer.Took))
	}
	took := time.Since(began)
	err = until(ctx, func() error {
		after, err := s.resolveEverywhere(ctx, "Rome")
		if err == nil && !slices.Equal(before, after) {
			err = fmt.Errorf("phones in Rome were told %v, and are now told %v", before, after)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	_, err = s.call(ctx, t, "1001", "2001", "buffalo", "buffalo")
	return took, err
}

// until repeats check every few milliseconds until it returns nil, and returns its
// last error when ctx ends first.
func until(ctx context.Context, check func() error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// printTry prints commands that work against the running stage.
func (s *stage) printTry(t *teller) {
	ns := s.daemons["jacksonville"].DNSAddrs()[0]
	api := s.daemons["buffalo"].APIAddr()
	t.line("")
	t.line("The system stays up; london and losangeles stay dead. Try, in another terminal:")
	for _, cmd := range []string{
		fmt.Sprintf("dig @%s -p %d -b %s %s A", ns.Addr(), ns.Port(), host["Rome"], zone),
		fmt.Sprintf("dig @%s -p %d +subnet=%s/24 _sip._udp.%s SRV", ns.Addr(), ns.Port(), host["Tokyo"], zone),
		fmt.Sprintf("pbxmesh nodes --api %s", api),
		fmt.Sprintf("pbxmesh lookup 2001@%s --api %s", zone, api),
		fmt.Sprintf("pbxmesh explain 3001@%s --api %s", zone, api),
		fmt.Sprintf("pbxmesh explain 2999@%s --api %s --output json", zone, api),
	} {
		t.line("  %s", cmd)
	}
	t.line("Ctrl-C ends it.")
}
