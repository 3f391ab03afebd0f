package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
	"pbxmesh/registry/memory"
)

// goesOn is the operator's own dialplan behind the hook: it answers, and tells the
// phone what it found in the channel.
const goesOn = `
          <action application="set" data="sip_rh_X-Pbxmesh-Result=${pbxmesh_result}"/>
          <action application="set" data="sip_rh_X-Pbxmesh-Cause=${pbxmesh_cause}"/>
          <action application="answer"/>
          <action application="park"/>`

// stock is a dialplan that knows nothing of the mesh.
const stock = `<context name="default"><extension name="stock"><condition>` + goesOn + `</condition></extension></context>`

// meshContext is the context that pbxmesh fsconf writes.
var meshContext = writtenByFSConf(netip.MustParseAddrPort("127.0.0.1:5090")).Context

// xmlCurl is a node with mod_xml_curl and nothing else of the mesh: no mesh context,
// and nobody in its access list.
func xmlCurl(at netip.AddrPort) []realswitch.Option {
	return []realswitch.Option{realswitch.WithDialplan(stock), realswitch.WithModule("mod_xml_curl", fmt.Sprintf(
		`<configuration name="xml_curl.conf"><bindings><binding name="pbxmesh">
          <param name="gateway-url" value="http://%s/xml" bindings="dialplan|configuration"/>
          <param name="gateway-credentials" value="pbxmesh:%s"/>
          <param name="timeout" value="2"/>
        </binding></bindings></configuration>`, at, httpToken))}
}

// onlyCurl is a node whose dialplan calls ${curl(...)}.
func onlyCurl(at netip.AddrPort) []realswitch.Option {
	return []realswitch.Option{realswitch.WithModule("mod_curl", ""), realswitch.WithDialplan(fmt.Sprintf(`<context name="default">
      <extension name="all-out"><condition field="destination_number" expression="^all-([A-Za-z0-9._+-]+)$">
        <action application="bridge" data="${expand(echo ${curl(http://pbxmesh:%[1]s@%[2]s/dialstring/$1@${domain_name}?local=contact)})}"/>
      </condition></extension>
      <extension name="mesh-out"><condition field="destination_number" expression="^([A-Za-z0-9._+-]+)$">
        <action application="set" data="hangup_after_bridge=true"/>
        <action application="set" data="continue_on_fail=true"/>
        <action application="set" data="sip_exclude_contact=pbxmesh-row"/>
        <action application="set" data="execute_on_blind_transfer_pbxmesh=unset sip_exclude_contact"/>
        <action application="bridge" data="{presence_id=$1@${domain_name},sip_invite_domain=${domain_name}}${sofia_contact(internal/$1@${domain_name})},${curl(http://pbxmesh:%[1]s@%[2]s/dialstring/$1@${domain_name} connect-timeout 1 timeout 2)}"/>
        <action application="unset" data="sip_exclude_contact"/>
        <action application="set" data="pbxmesh_result=failed"/>
        <action application="set" data="pbxmesh_cause=${originate_disposition}"/>`, httpToken, at) + goesOn + `
      </condition></extension>
      <extension name="others"><condition>` + goesOn + `</condition></extension>
    </context>` + meshContext)}
}

const httpToken = "let-me-in"

// flavour is a way to join a stock node by HTTP alone.
type flavour struct {
	options func(at netip.AddrPort) []realswitch.Option
	acl     bool // its access list comes from the daemon, and is empty without it
}

// httpCluster boots buffalo as flavour has it, and singapore (and more nodes) as in
// every other story. The daemon of buffalo starts after its switch has booted without it.
func httpCluster(t *testing.T, f flavour, more ...string) *cluster {
	t.Helper()
	if realBinary() == "" {
		t.Skipf("set %s to a freeswitch binary: the simulated switch has no HTTP client", realswitch.EnvBinary)
	}
	c := &cluster{t: t, real: true, nodes: map[string]*node{}, store: memory.New(memory.Options{})}
	t.Cleanup(func() { _ = c.store.Close() })
	var users []fixtures.User
	for i := range 100 {
		users = append(users, fixtures.User{Name: fmt.Sprint(1000 + i), Domain: domain, Password: password(fmt.Sprint(1000 + i))})
	}
	names := append([]string{"buffalo", "singapore"}, more...)
	var peers []netip.Addr
	for _, name := range names {
		peers = append(peers, netip.MustParseAddr(hosts[name]))
	}
	for _, name := range names {
		addr := netip.MustParseAddr(hosts[name])
		n := &node{name: name, socket: freePort(t, addr)}
		web := freePort(t, addr)
		fc := fixtures.Config{Name: name, Host: addr, Users: users, Socket: n.socket.String(), Peers: func() []netip.Addr { return peers }}
		opts := []realswitch.Option{realswitch.WithLateMargin(lateMargin)}
		if name == "buffalo" {
			opts = append(opts, f.options(web)...)
			if f.acl {
				fc.Peers = nil
			}
		}
		var err error
		if n.sw, err = realswitch.New(fc, realBinary(), opts...); err != nil {
			t.Fatal(err)
		}
		c.nodes[name] = n
		t.Cleanup(func() { n.close(t) })
		if err := n.sw.Start(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		n.cfg = c.config(n)
		if name == "buffalo" {
			n.cfg.Router.HTTP.Listen = web
			n.cfg.Router.HTTP.TokenFile = secretFile(t, httpToken)
			if f.acl {
				n.cfg.Router.HTTP.ACLList, n.cfg.Router.HTTP.ACLFile = "mesh", ownLists(t)
			}
		}
		c.startDaemon(n)
	}
	for name, n := range c.nodes {
		for other := range c.nodes {
			c.eventually(fmt.Sprintf("%s sees %s up", name, other), func() bool {
				return n.app.Mesh().State(pbxmesh.NodeID(other)).Observed == pbxmesh.ObservedUp
			})
		}
	}
	return c
}

func secretFile(t *testing.T, secret string) config.SecretFile {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return config.SecretFile(path)
}

// ownLists is the switch's own acl.conf.xml: its lists must survive.
func ownLists(t *testing.T) config.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "acl.conf.xml")
	const text = `<configuration name="acl.conf"><network-lists>
  <list name="office" default="deny"><node type="allow" cidr="198.51.100.0/24"/></list>
</network-lists></configuration>`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return config.File(path)
}

// TestScenarioXMLCurl: a node that has nothing but mod_xml_curl takes part.
func TestScenarioXMLCurl(t *testing.T) {
	c := httpCluster(t, flavour{options: xmlCurl, acl: true})
	buffalo := c.nodes["buffalo"]
	api := func(command string) string {
		reply, err := buffalo.sw.(*realswitch.Switch).API(c.ctx(), command)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(reply)
	}
	c.eventually("buffalo lets singapore in", func() bool { return api("acl 127.0.3.1 mesh") == "true" })
	for _, q := range [][2]string{{"acl 127.0.9.9 mesh", "false"}, {"acl 198.51.100.7 office", "true"}, {"acl 192.0.2.1 office", "false"}} {
		if got := api(q[0]); got != q[1] {
			t.Errorf("%s: %s, want %s", q[0], got, q[1])
		}
	}
	httpStories(t, c, "")
}

// TestScenarioCurl: a node whose dialplan calls ${curl(...)} takes part.
func TestScenarioCurl(t *testing.T) {
	c := httpCluster(t, flavour{options: onlyCurl})
	t.Run("expanded once more", func(t *testing.T) {
		outer := c.t
		c.t = t
		defer func() { c.t = outer }()
		a := c.registered("1031", "127.0.55.1", "buffalo")
		var devices []*phone.Phone
		for i, at := range []string{"buffalo", "buffalo", "singapore"} {
			p := c.phone("1032", fmt.Sprintf("127.0.56.%d", i+1), at)
			if err := p.Register(c.ctx()); err != nil {
				t.Fatal(err)
			}
			p.SetBehaviour(phone.RingForever())
			devices = append(devices, p)
		}
		c.everywhere("1032", "buffalo", "buffalo", "singapore")
		out, err := a.Call(c.ctx(), "all-1032")
		if err != nil {
			t.Fatal(err)
		}
		for i, d := range devices {
			if _, err := d.WaitIncoming(c.ctx(), 1); err != nil {
				t.Errorf("device %d did not ring: %v", i, err)
			}
		}
		if err := out.Cancel(c.ctx()); err != nil {
			t.Error(err)
		}
	})
	httpStories(t, c, "USER_NOT_REGISTERED")
}

// httpStories plays the stories of both flavours. nobody is the cause that the
// dialplan sees for a callee who is nowhere.
func httpStories(t *testing.T, c *cluster, nobody string) {
	a := c.registered("1011", "127.0.51.1", "buffalo")
	near := c.registered("1012", "127.0.52.1", "buffalo")
	far := c.registered("1014", "127.0.54.1", "singapore")

	t.Log("to another node")
	out, in := c.call(a, far)
	if in.Source() != c.nodes["singapore"].sw.SIP() {
		t.Errorf("the INVITE came from %s, want singapore's %s", in.Source(), c.nodes["singapore"].sw.SIP())
	}
	c.hangup(in, out)

	t.Log("from another node")
	out, in = c.call(far, a)
	if in.Source() != c.nodes["buffalo"].sw.SIP() {
		t.Errorf("the INVITE came from %s, want buffalo's %s", in.Source(), c.nodes["buffalo"].sw.SIP())
	}
	c.hangup(out, in)

	t.Log("on the same node")
	out, in = c.call(a, near)
	c.hangup(out, in)

	t.Log("devices on two nodes ring both")
	second := c.phone("1012", "127.0.52.2", "singapore")
	if err := second.Register(c.ctx()); err != nil {
		t.Fatal(err)
	}
	c.everywhere("1012", "buffalo", "singapore")
	near.SetBehaviour(phone.RingForever())
	rang := len(near.Incoming())
	out, in = c.call(a, second)
	loser, err := near.WaitIncoming(c.ctx(), rang+1)
	if err != nil {
		t.Fatalf("the near device did not ring: %v", err)
	}
	if info, err := loser.WaitEnded(c.ctx()); err != nil || info.Cancel == nil {
		t.Errorf("the near device got no CANCEL: %+v, %v", info, err)
	}
	c.hangup(out, in)

	t.Log("the callee refuses")
	far.SetBehaviour(phone.Refuse(486))
	if result, cause, _ := c.dialplan(a, "1014"); result != "failed" || cause != "USER_BUSY" {
		t.Errorf("a busy callee gives pbxmesh_result %q, pbxmesh_cause %q", result, cause)
	}
	far.SetBehaviour(phone.Refuse(480))
	if result, cause, _ := c.dialplan(a, "1014"); result != "failed" || cause != "NO_USER_RESPONSE" {
		t.Errorf("a callee who is not available gives pbxmesh_result %q, pbxmesh_cause %q", result, cause)
	}
	far.SetBehaviour(phone.AutoAnswer(0))
	out, in = c.call(a, far) // on a new channel, so it is asked for again
	c.hangup(out, in)

	t.Log("the callee is nowhere")
	if _, cause, took := c.dialplan(a, "1099"); cause != nobody {
		t.Errorf("pbxmesh_cause %q, want %q", cause, nobody)
	} else {
		t.Logf("the dialplan answered after %s", took.Round(100*time.Microsecond))
	}

	t.Log("hostile numbers")
	before := len(far.Incoming())
	for _, number := range []string{
		"1014,sofia%2Fgateway%2Fx", "1014%7Cy", "%5Ba=b%5D1014", "%7Bx%7D1014", "%5E%5E%3A1014", "1014%40other", "..%2Froute%2F1014",
		"1014%0D%0AX-Injected:%201", "%EF%BC%91%EF%BC%90%EF%BC%91%EF%BC%94", "1014%2520", "1014%26Hunt-Destination-Number=1012",
	} {
		if result, cause, _ := c.dialplan(a, number); result != "" || cause != "" {
			t.Errorf("%.40q: pbxmesh_result %q, pbxmesh_cause %q", number, result, cause)
		}
	}
	if n := len(far.Incoming()); n != before {
		t.Errorf("the victim's phone rang %d times", n-before)
	}

	t.Log("a script asks")
	reply := c.route("1014@" + domain)
	if reply.Result != "routed" || !strings.Contains(reply.Bridge, "fs_path=sip%3A"+strings.Replace(c.nodes["singapore"].sw.Mesh().String(), ":", "%3A", 1)) {
		t.Errorf("the route is %+v", reply)
	}

	t.Log("the daemon is gone")
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	if err := c.nodes["buffalo"].app.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	c.nodes["buffalo"].killed = true
	_, _, took := c.dialplan(a, "1014")
	c.atMost("the dialplan goes on", took, 2*time.Second)
}

func (c *cluster) route(aor string) control.ExplainReply {
	c.t.Helper()
	url := fmt.Sprintf("http://%s/route/%s", c.nodes["buffalo"].app.HTTPAddr(), aor)
	req, err := http.NewRequestWithContext(c.ctx(), http.MethodGet, url, http.NoBody)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+httpToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	var reply control.ExplainReply
	if err := json.Unmarshal(body, &reply); err != nil || resp.StatusCode != http.StatusOK {
		c.t.Fatalf("%s answers %s: %s", url, resp.Status, body)
	}
	return reply
}
