package fusionpbx

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pbxmesh/fixtures/phone"
	"pbxmesh/registry/registrytest"
)

// mesh is two nodes of FusionPBX on one database, joined.
type mesh struct {
	*testing.T // of the story that runs
	inst       *installation
	a, b       *node
	towns      int // phones so far: each has an address of its own
	seen       map[*phone.Phone]int
}

// newMesh sets everything up as docs/fusionpbx.md says, step by step.
func newMesh(t *testing.T) *mesh {
	t.Helper()
	m := &mesh{T: t, inst: install(t), seen: map[*phone.Phone]int{}}
	m.provision()
	redis := registrytest.StartRedis(t)
	m.a, m.b = newNode(m.inst, "pbx1", "127.0.101.1"), newNode(m.inst, "pbx2", "127.0.102.1")
	for _, n := range m.nodes() {
		n.ready()
		n.configure(redis.URL())
		n.join(m.other(n))
	}
	for _, n := range m.nodes() {
		n.serve()
	}
	for _, n := range m.nodes() {
		eventually(t, n.name+" sees both nodes up", func() bool {
			out, _ := n.pbxmesh("nodes", "-o", "json", "--api", n.host.String()+":8085")
			return strings.Count(out, `"effective": "up"`) == 2
		})
	}
	return m
}

func (m *mesh) nodes() []*node { return []*node{m.a, m.b} }

func (m *mesh) other(n *node) *node {
	if n == m.a {
		return m.b
	}
	return m.a
}

// join runs the commands of docs/fusionpbx.md, "By SQL", on n.
func (n *node) join(peer *node) {
	n.t.Helper()
	script, code := n.pbxmesh("fsconf", "-c", n.config, "--flavor", "fusionpbx", "--hostname", n.name, "--peer", peer.name+"="+peer.host.String())
	if code != 0 {
		n.t.Fatalf("fsconf: exit code %d:\n%s", code, script)
	}
	n.inst.run("fusionpbx", script)
	n.forget("dialplan."+n.profile(), "configuration.acl.conf", "*.configuration.sofia.conf")
	n.api("reloadacl")
	n.api("sofia profile " + n.profile() + " start")
	eventually(n.t, "the mesh profile of "+n.name+" runs", func() bool {
		return strings.Contains(n.api("sofia xmlstatus"), n.host.String()+":5090</data>")
	})
}

// forget removes entries of FusionPBX's cache, as `rm -f` on the node does.
func (n *node) forget(patterns ...string) {
	n.t.Helper()
	for _, pattern := range patterns {
		files, err := filepath.Glob(filepath.Join(n.dir, "cache", pattern))
		if err != nil {
			n.t.Fatal(err)
		}
		for _, file := range files {
			if err := os.Remove(file); err != nil {
				n.t.Fatal(err)
			}
		}
	}
}

// provision makes the extensions 1000 to 1199 in both tenants, without voicemail, each
// with an account of its own.
func (m *mesh) provision() {
	for i, tenant := range tenants {
		m.inst.sql(`INSERT INTO v_extensions (extension_uuid, domain_uuid, extension, password, accountcode, effective_caller_id_name, effective_caller_id_number,
		    directory_visible, directory_exten_visible, limit_max, limit_destination, user_context, call_timeout, enabled)
		  SELECT gen_random_uuid(), '%[1]s', n::text, 'secret-' || n, 'account-' || n, 'User ' || n, n::text, true, true, '5', '!USER_BUSY', '%[2]s', 10, true
		  FROM generate_series(1000, 1199) n`, domainID(i), tenant)
	}
}

// set changes columns of an extension of a.test, as its page does, and has both nodes forget what they cached.
func (m *mesh) set(extension, assignments string) {
	m.Helper()
	m.inst.sql("UPDATE v_extensions SET %s WHERE extension = '%s' AND domain_uuid = '%s'", assignments, extension, domainID(0))
	for _, n := range m.nodes() {
		n.forget("directory." + extension + "@*")
	}
}

// dialplan adds an extension to the context of a.test.
func (m *mesh) dialplan(number, actions string) string {
	m.Helper()
	id := m.inst.sql("SELECT gen_random_uuid()")
	m.inst.sql(`INSERT INTO v_dialplans (domain_uuid, dialplan_uuid, dialplan_context, dialplan_name, dialplan_number, dialplan_continue, dialplan_xml, dialplan_order, dialplan_enabled)
	  VALUES ('%s', '%s', '%s', 'test-%[4]s', '%[4]s', false, $x$<extension name="test-%[4]s"><condition field="destination_number" expression="^%[4]s$">%s</condition></extension>$x$, 101, true)`,
		domainID(0), id, tenants[0], number, actions)
	for _, n := range m.nodes() {
		n.forget("dialplan." + tenants[0])
	}
	return id
}

// ringGroup makes a ring group of a.test: each member rings for the given seconds, the
// next one after it has a delay that puts it behind.
func (m *mesh) ringGroup(number, strategy string, seconds int, members ...string) {
	m.Helper()
	group := m.inst.sql("SELECT gen_random_uuid()")
	plan := m.dialplan(number, `<action application="ring_ready" data=""/><action application="set" data="ring_group_uuid=`+group+`"/><action application="lua" data="app.lua ring_groups"/>`)
	m.inst.sql(`INSERT INTO v_ring_groups (domain_uuid, ring_group_uuid, ring_group_name, ring_group_extension, ring_group_call_timeout, ring_group_strategy, ring_group_context,
	    ring_group_call_forward_enabled, ring_group_follow_me_enabled, ring_group_enabled, dialplan_uuid)
	  VALUES ('%s', '%s', '%s', '%[3]s', 25, '%s', '%s', true, true, true, '%s')`, domainID(0), group, number, strategy, tenants[0], plan)
	for i, member := range members {
		m.inst.sql(`INSERT INTO v_ring_group_destinations (ring_group_destination_uuid, domain_uuid, ring_group_uuid, destination_number, destination_delay, destination_timeout, destination_enabled)
		  VALUES (gen_random_uuid(), '%s', '%s', '%s', %d, %d, true)`, domainID(0), group, member, map[bool]int{true: i}[strategy == "sequence" || strategy == "rollover"], seconds)
	}
}

// ctx bounds one step.
func (m *mesh) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	m.Cleanup(cancel)
	return ctx
}

// phone registers a phone of a.test on a node, and returns when both switches reach it.
func (m *mesh) phone(user string, at *node) *phone.Phone {
	m.Helper()
	return m.phoneOf(user, tenants[0], at)
}

// phoneOf is phone for any tenant, and with codecs for one with audio.
func (m *mesh) phoneOf(user, domain string, at *node, codecs ...phone.Codec) *phone.Phone {
	m.Helper()
	m.towns++
	p, err := phone.New(phone.Config{
		User: user, Domain: domain, Password: "secret-" + user, Display: "User " + user,
		Local: netip.AddrFrom4([4]byte{127, 0, 110, byte(m.towns)}), Registrar: netip.AddrPortFrom(at.host, 5060),
		Codecs: codecs,
	})
	if err != nil {
		m.Fatal(err)
	}
	p.Start()
	m.Cleanup(func() {
		_ = p.Unregister(context.Background(), phone.KeepCallID)
		_ = p.Close()
	})
	if err := p.Register(m.ctx()); err != nil {
		m.Fatalf("register %s at %s: %v", user, at.name, err)
	}
	far := m.other(at)
	eventually(m.T, far.name+" knows that "+user+" is on "+at.name, func() bool {
		return strings.Contains(far.contacts(user, domain), at.host.String()+"")
	})
	return p
}

// contacts is what every application of FusionPBX asks.
func (n *node) contacts(user, domain string) string {
	n.t.Helper()
	return n.api("sofia_contact */" + user + "@" + domain)
}

// dial places a call.
func (m *mesh) dial(from *phone.Phone, number string) *phone.Call {
	m.Helper()
	c, err := from.Call(m.ctx(), number)
	if err != nil {
		m.Fatal(err)
	}
	return c
}

// rings returns the next call that comes in at p.
func (m *mesh) rings(p *phone.Phone) *phone.Call {
	m.Helper()
	m.seen[p]++
	c, err := p.WaitIncoming(m.ctx(), m.seen[p])
	if err != nil {
		m.Fatalf("%s@%s does not ring: %v", p.User(), p.Domain(), err)
	}
	return c
}

// silent fails when p got calls that nobody waited for.
func (m *mesh) silent(phones ...*phone.Phone) {
	m.Helper()
	for _, p := range phones {
		if n := len(p.Incoming()) - m.seen[p]; n != 0 {
			m.Errorf("%s@%s got %d calls too many", p.User(), p.Domain(), n)
			m.seen[p] = len(p.Incoming())
		}
	}
}

// answered waits for both ends of a call, and checks that it is one.
func (m *mesh) answered(out, in *phone.Call) {
	m.Helper()
	for end, c := range map[string]*phone.Call{"caller": out, "callee": in} {
		if _, err := c.WaitAnswered(m.ctx()); err != nil {
			m.Fatalf("the %s: %v", end, err)
		}
	}
	m.bridged()
}

// bridged waits until every channel of both switches is in a call with another one: a
// phone that hangs up before that ends an attempt, not a call.
func (m *mesh) bridged() {
	m.Helper()
	eventually(m.T, "the call is bridged on both nodes", func() bool { return m.a.bridged() && m.b.bridged() })
}

// hangup ends a call at one end and waits for the other.
func (m *mesh) hangup(one, other *phone.Call) {
	m.Helper()
	if err := one.Hangup(m.ctx()); err != nil {
		m.Errorf("hang up: %v", err)
	}
	if _, err := other.WaitEnded(m.ctx()); err != nil {
		m.Errorf("the other side does not end: %v", err)
	}
}

// refused waits until a call ends unanswered, and returns the final status.
func (m *mesh) refused(c *phone.Call) int {
	m.Helper()
	info, err := c.WaitEnded(m.ctx())
	if err != nil {
		m.Fatal(err)
	}
	return info.Status
}

// TestFusionPBX plays every story on one mesh. They use extensions of their own, so each
// can run alone: -run 'FusionPBX/transfers'.
func TestFusionPBX(t *testing.T) {
	m := newMesh(t)
	for _, s := range []struct {
		name string
		play func(*mesh)
	}{
		{"calls", calls},
		{"two tenants", twoTenants},
		{"ring groups", ringGroups},
		{"ring group with TLS", ringGroupTLS},
		{"follow-me", followMe},
		{"forwards", forwards},
		{"transfers", transfers},
		{"redirects of phones", redirects},
		{"attended transfers", attendedTransfers},
		{"do not disturb", doNotDisturb},
		{"lamps without a call", lampsWithoutCall},
		{"lamp of a forward", forwardLamp},
		{"lamps of ring groups", ringGroupLamps},
		{"voicemail", voicemail},
		{"group mailbox", groupMailbox},
		{"recorded once", recordedOnce},
		{"call records", callRecords},
		{"records of transfers", transferRecords},
		{"strangers", strangers},
		{"doctor", doctorStrangers},
		{"star codes", starCodes},
		{"moved phone", movedPhone},
		{"registrations page", registrationsPage},
		{"cached answers", cachedAnswers},
		{"undone", undone},
	} {
		t.Run(s.name, func(t *testing.T) {
			outer := m.T
			m.T = t
			defer func() {
				if t.Failed() { // the next one shall not meet its calls
					for _, n := range m.nodes() {
						n.api("hupall")
					}
				}
				m.T = outer
			}()
			s.play(m)
		})
	}
}

// Calls between the nodes, both ways, and on one node: nothing of ours was changed in
// FusionPBX's dialplans.
func calls(m *mesh) {
	one, two, three := m.phone("1001", m.a), m.phone("1002", m.b), m.phone("1003", m.a)
	for _, tc := range []struct {
		from, to *phone.Phone
		via      *node
	}{{one, two, m.b}, {two, one, m.a}, {one, three, m.a}} {
		out := m.dial(tc.from, tc.to.User())
		in := m.rings(tc.to)
		m.answered(out, in)
		if got := in.Source().Addr(); got != tc.via.host {
			m.Errorf("%s rings through %v, want %v", tc.to.User(), got, tc.via.host)
		}
		if got := in.From(); got.URI.User != tc.from.User() || got.URI.Host != tenants[0] {
			m.Errorf("%s is shown %+v, want %s of %s", tc.to.User(), got, tc.from.User(), tenants[0])
		}
		m.hangup(out, in)
		m.Logf("%s calls %s: answered after %v", tc.from.User(), tc.to.User(), out.Info().AnsweredAt.Sub(out.Info().StartedAt))
	}
	m.silent(one, two, three)
}
