package e2e_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh/fixtures/phone"
	"pbxmesh/registry/registrytest"
)

// TestScenarioMeshLeg plays what a call keeps and loses between two nodes, beside the
// same call on one. The switches take calls between nodes with what fsconf writes.
func TestScenarioMeshLeg(t *testing.T) {
	if realBinary() == "" {
		t.Skip("only a real switch has codecs, digits and profiles that stop")
	}
	t.Parallel()
	c := newCluster(t, registrytest.StartRedis(t).URL(), append(slices.Clip(stockRoutes), privateRoute)...)
	for _, s := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"codecs and digits", meshCodecs},
		{"early media, video refused, hold", meshMedia},
		{"T.38", meshFax},
		{"privacy", meshPrivacy},
		{"call return", meshCallReturn},
		{"one call, one record", meshRecords},
		{"a stopped profile", meshStopped},
	} {
		if !t.Run(s.name, func(t *testing.T) {
			outer := c.t
			c.t = t
			defer func() { c.t = outer }()
			s.run(t, c)
		}) {
			break
		}
	}
}

// audioPhone is registered, with codecs.
func (c *cluster) audioPhone(user, local, at string, change func(*phone.Config)) *phone.Phone {
	c.t.Helper()
	cfg := phone.Config{
		User: user, Domain: domain, Password: password(user), Display: "User " + user,
		Local: netip.MustParseAddr(local), Registrar: c.nodes[at].sw.SIP(),
	}
	change(&cfg)
	p, err := phone.New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	p.Start()
	c.t.Cleanup(func() { _ = p.Close() })
	if err := p.Register(c.ctx()); err != nil {
		c.t.Fatalf("register %s at %s: %v", user, at, err)
	}
	return p
}

func withCodecs(codecs ...phone.Codec) func(*phone.Config) {
	return func(cfg *phone.Config) { cfg.Codecs = codecs }
}

// meshCodecs has phones of every codec call one another, on one node and across two:
// both hear audio and the other's digits.
func meshCodecs(t *testing.T, c *cluster) {
	sets := []struct {
		name   string
		codecs []phone.Codec
	}{
		{"opus+g722+pcmu+pcma", []phone.Codec{phone.Opus, phone.G722, phone.PCMU, phone.PCMA}},
		{"pcmu", []phone.Codec{phone.PCMU}},
		{"pcma", []phone.Codec{phone.PCMA}},
		{"g722+pcma", []phone.Codec{phone.G722, phone.PCMA}},
	}
	callers, near, far := map[string]*phone.Phone{}, map[string]*phone.Phone{}, map[string]*phone.Phone{}
	for i, s := range sets {
		local := func(n int) string { return fmt.Sprintf("127.0.%d.%d", 120+n, i+1) }
		user := func(n int) string { return fmt.Sprint(1000 + 10*n + i) }
		callers[s.name] = c.audioPhone(user(1), local(1), "buffalo", withCodecs(s.codecs...))
		near[s.name] = c.audioPhone(user(2), local(2), "buffalo", withCodecs(s.codecs...))
		far[s.name] = c.audioPhone(user(3), local(3), "london", withCodecs(s.codecs...))
	}
	for _, s := range sets {
		c.taught(far[s.name].User(), true)
	}
	for _, from := range sets {
		for _, to := range sets {
			here := c.talk(callers[from.name], near[to.name])
			there := c.talk(callers[from.name], far[to.name])
			t.Logf("%s to %s: on one node %s, across %s", from.name, to.name, here, there)
			common := slices.ContainsFunc(from.codecs, func(a phone.Codec) bool {
				return slices.ContainsFunc(to.codecs, func(b phone.Codec) bool { return a.Name == b.Name })
			})
			if here != there || common && strings.Contains(here, "!") {
				t.Errorf("%s to %s: on one node %q, across %q", from.name, to.name, here, there)
			}
		}
	}
}

// talk places a call and says what both ends had of it; a '!' is what was missed.
func (c *cluster) talk(from, to *phone.Phone) string {
	c.t.Helper()
	return c.talkTo(from, to, "u"+to.User())
}

func (c *cluster) talkTo(from, to *phone.Phone, number string) string {
	c.t.Helper()
	seen := len(to.Incoming())
	out, err := from.Call(c.ctx(), number)
	if err != nil {
		c.t.Fatal(err)
	}
	info, err := out.WaitAnswered(c.ctx())
	if err != nil {
		return fmt.Sprintf("! not answered (%d)", info.Status)
	}
	if info.Header("X-Cause") != "" {
		_ = out.Hangup(c.ctx())
		return "! the dialplan went on: " + info.Header("X-Cause")
	}
	in, err := to.WaitIncoming(c.ctx(), seen+1)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(c.ctx(), soon/2)
	defer stop()
	go from.Talk(ctx)
	go to.Talk(ctx)
	said := from.Codec() + "/" + to.Codec()
	for _, p := range []*phone.Phone{from, to} {
		if err := p.WaitHeard(ctx, codecNamed(p.Codec()), 5); err != nil {
			said += " ! " + p.User() + " hears nothing"
		}
	}
	for _, d := range []struct {
		by, at *phone.Phone
		digits string
	}{{from, to, "1#"}, {to, from, "29"}} {
		want := d.at.Digits() + d.digits
		if !d.by.Press(ctx, d.digits) {
			said += " ! no telephone-event for " + d.by.User()
		} else if err := d.at.WaitDigits(ctx, want); err != nil {
			said += fmt.Sprintf(" ! %s's digits arrive as %q", d.by.User(), strings.TrimPrefix(d.at.Digits(), want[:len(want)-len(d.digits)]))
		}
	}
	c.hangup(out, in)
	return said
}

func codecNamed(name string) phone.Codec {
	for _, c := range []phone.Codec{phone.Opus, phone.G722, phone.PCMU, phone.PCMA} {
		if c.Name == name {
			return c
		}
	}
	return phone.Codec{}
}

func contextFor(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}
