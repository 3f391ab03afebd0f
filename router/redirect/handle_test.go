package redirect

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/emiago/sipgo/sip"

	"pbxmesh"
)

// parsed reads an answer with sipgo, which wrote none of it.
func parsed(t testing.TB, answer string) *sip.Response {
	t.Helper()
	m, err := sip.ParseMessage([]byte(answer))
	if err != nil {
		t.Fatalf("sipgo does not read the answer: %v\n%s", err, answer)
	}
	res, ok := m.(*sip.Response)
	if !ok {
		t.Fatalf("no response:\n%s", answer)
	}
	return res
}

func contactsOf(res *sip.Response) []string {
	out := []string{}
	for _, h := range res.GetHeaders("Contact") {
		out = append(out, h.Value())
	}
	return out
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	const (
		buffalo  = "192.0.2.10"
		maddr    = ":5090;maddr="
		deadText = "state"
	)
	c1002 := func(node, q string) string { return "<sip:1002@pbx.test" + maddr + node + ">;q=" + q }
	cases := []struct {
		name    string
		request string
		set     func(t *testing.T, w *world, o *Options)
		status  int
		want    []string // contacts
		lines   []string // lines that the answer has
	}{
		{"registered", invite("INVITE", "sip:1002@pbx.test"), nil, 302, []string{c1002("192.0.2.20", "1.0")}, nil},
		{"case is folded", invite("INVITE", "sip:1002@PBX.test:5060;transport=udp"), nil, 302, []string{c1002("192.0.2.20", "1.0")}, nil},
		{"several devices on a node", invite("INVITE", "sip:1002@pbx.test"), func(t *testing.T, w *world, _ *Options) {
			w.register(t, "1002", domain, "london")
		}, 302, []string{c1002("192.0.2.20", "1.0")}, nil},
		{"several nodes", invite("INVITE", "sip:1002@pbx.test"), func(t *testing.T, w *world, _ *Options) {
			w.register(t, "1002", domain, "singapore")
		}, 302, []string{c1002("192.0.2.20", "1.0"), c1002("192.0.2.30", "1.0")}, nil},
		{"suspect node comes next", invite("INVITE", "sip:1002@pbx.test"), func(t *testing.T, w *world, _ *Options) {
			w.register(t, "1002", domain, "buffalo")
			w.observe("buffalo", pbxmesh.ObservedSuspect)
		}, 302, []string{c1002("192.0.2.20", "1.0"), c1002(buffalo, "0.5")}, nil},
		{"down node is left out", invite("INVITE", "sip:1002@pbx.test"), func(t *testing.T, w *world, _ *Options) {
			w.register(t, "1002", domain, "buffalo")
			w.observe("buffalo", pbxmesh.ObservedDown)
		}, 302, []string{c1002("192.0.2.20", "1.0")}, nil},
		{"holder down", invite("INVITE", "sip:1002@pbx.test"), func(_ *testing.T, w *world, _ *Options) {
			w.observe("london", pbxmesh.ObservedDown)
		}, 480, nil, nil},
		{"holder down and a default node", invite("INVITE", "sip:1002@pbx.test"), func(_ *testing.T, w *world, o *Options) {
			w.observe("london", pbxmesh.ObservedDown)
			o.DefaultNode = "buffalo"
		}, 480, nil, nil},
		{"not registered", invite("INVITE", "sip:1003@pbx.test"), nil, 404, nil, nil},
		{"default node", invite("INVITE", "sip:1003@pbx.test"), func(_ *testing.T, _ *world, o *Options) {
			o.DefaultNode = "buffalo"
		}, 302, []string{"<sip:1003@pbx.test:5090;maddr=192.0.2.10>;q=1.0"}, nil},
		{"default node down", invite("INVITE", "sip:1003@pbx.test"), func(_ *testing.T, w *world, o *Options) {
			o.DefaultNode = "buffalo"
			w.observe("buffalo", pbxmesh.ObservedDown)
		}, 480, nil, nil},
		{"default node unknown", invite("INVITE", "sip:1003@pbx.test"), func(_ *testing.T, _ *world, o *Options) {
			o.DefaultNode = "paris"
		}, 480, nil, nil},
		{"no address and a default node", invite("INVITE", "sip:10%3003@pbx.test"), func(_ *testing.T, _ *world, o *Options) {
			o.DefaultNode = "buffalo"
		}, 404, nil, nil},
		{"registry away", invite("INVITE", "sip:1002@pbx.test"), func(_ *testing.T, w *world, _ *Options) {
			w.fail(errors.New("not read yet"))
		}, 503, nil, nil},
		{"domain for an IP address", invite("INVITE", "sip:1002@192.0.2.99"), func(_ *testing.T, _ *world, o *Options) {
			o.Domain = domain
		}, 302, []string{c1002("192.0.2.20", "1.0")}, nil},
		{"domain for an IPv6 address", invite("INVITE", "sip:1002@[2001:db8::9]:5060"), func(_ *testing.T, _ *world, o *Options) {
			o.Domain = domain
		}, 302, []string{c1002("192.0.2.20", "1.0")}, nil},
		{"tenant that is an IP address comes first", invite("INVITE", "sip:1002@192.0.2.99"), func(t *testing.T, w *world, o *Options) {
			o.Domain = domain
			w.register(t, "1002", "192.0.2.99", "buffalo")
		}, 302, []string{"<sip:1002@192.0.2.99:5090;maddr=192.0.2.10>;q=1.0"}, nil},
		{"another domain is not completed", invite("INVITE", "sip:1002@other.test"), func(_ *testing.T, _ *world, o *Options) {
			o.Domain = domain
		}, 404, nil, nil},
		{"parameters in the user", invite("INVITE", "sip:1002;npdi=yes@pbx.test"), nil, 302, []string{c1002("192.0.2.20", "1.0")}, nil},
		{"harmless extension", invite("INVITE", "sip:1002@pbx.test", "Require: 100rel, timer"), nil, 302, []string{c1002("192.0.2.20", "1.0")}, nil},
		{"unknown extension", invite("INVITE", "sip:1002@pbx.test", "Require: nothingSupportsThis"), nil, 420, nil, []string{"Unsupported: nothingSupportsThis"}},
		{"in a dialog", strings.Replace(invite("INVITE", "sip:1002@pbx.test"), "To: <sip:1002@pbx.test>", "To: <sip:1002@pbx.test>;tag=x", 1), nil, 481, nil, []string{"To: <sip:1002@pbx.test>;tag=x"}},
		{"sips", invite("INVITE", "sips:1002@pbx.test"), nil, 416, nil, nil},
		{"other scheme", invite("INVITE", "http:1002@pbx.test"), nil, 416, nil, nil},
		{"tel without a table", invite("INVITE", "tel:+17165550100"), nil, 404, nil, nil},
		{"headers in the URI", invite("INVITE", "sip:1002@pbx.test?Route=%3Csip:x%3E"), nil, 400, nil, nil},
		{"no user", invite("INVITE", "sip:pbx.test"), nil, 404, nil, nil},
		{"version", strings.Replace(invite("INVITE", "sip:1002@pbx.test"), " SIP/2.0\r", " SIP/7.0\r", 1), nil, 505, nil, nil},

		{"OPTIONS", invite("OPTIONS", "sip:pbx.test"), nil, 200, nil, []string{"Allow: INVITE, ACK, CANCEL, BYE, OPTIONS", "Accept: application/sdp"}},
		{"OPTIONS, not ready", invite("OPTIONS", "sip:pbx.test"), func(_ *testing.T, _ *world, o *Options) {
			o.Ready = func() error { return errors.New("not yet") }
		}, 503, nil, nil},
		{"BYE", invite("BYE", "sip:1002@pbx.test"), nil, 481, nil, nil},
		{"CANCEL of nothing", invite("CANCEL", "sip:1002@pbx.test"), nil, 481, nil, nil},
		{"MESSAGE", invite("MESSAGE", "sip:1002@pbx.test"), nil, 405, nil, []string{"Allow: INVITE, ACK, CANCEL, BYE, OPTIONS"}},
		{"unknown method", invite("FrObNiCaTe", "sip:1002@pbx.test"), nil, 405, nil, nil},
		{"methods have a case", invite("invite", "sip:1002@pbx.test"), nil, 405, nil, nil},
		{"REGISTER off", invite("REGISTER", "sip:pbx.test"), nil, 405, nil, nil},
		{"REGISTER", invite("REGISTER", "sip:pbx.test"), func(_ *testing.T, w *world, o *Options) {
			o.Chooser = w
			w.choice = []pbxmesh.NodeID{"singapore", "paris", "london"}
		}, 302, []string{"<sip:198.51.100.3:5060;transport=udp>;q=1.0", "<sip:198.51.100.2:5060;transport=udp>;q=0.8"}, nil},
		{"REGISTER with nowhere to go", invite("REGISTER", "sip:pbx.test"), func(_ *testing.T, w *world, o *Options) { o.Chooser = w }, 503, nil, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			w.register(t, "1002", domain, "london")
			o := w.options()
			if c.set != nil {
				c.set(t, w, &o)
			}
			s := newServer(t, o)
			peer := newClient(t, s.Addrs(UDP)[0])
			answer := peer.ask(c.request)
			res := parsed(t, answer)
			if res.StatusCode != c.status {
				t.Fatalf("status %d, want %d\n%s", res.StatusCode, c.status, answer)
			}
			if got := contactsOf(res); strings.Join(got, " ") != strings.Join(c.want, " ") {
				t.Errorf("contacts %q, want %q", got, c.want)
			}
			for _, line := range append(c.lines, `From: "Carrier" <sip:+17165550000@carrier.test>;tag=abc`, "Call-ID: call-1@carrier.test", "Content-Length: 0") {
				if !strings.Contains(answer, "\r\n"+line+"\r\n") {
					t.Errorf("no line %q in\n%s", line, answer)
				}
			}
			if tag, ok := res.To().Params.Get("tag"); !ok || tag == "" {
				t.Errorf("no To tag in\n%s", answer)
			}
			port := peer.conn.LocalAddr().String()
			port = port[strings.LastIndexByte(port, ':')+1:]
			if want := "Via: SIP/2.0/UDP 127.0.0.1:5999;branch=z9hG4bK-1;received=127.0.0.1;rport=" + port; !strings.Contains(answer, want+"\r\n") {
				t.Errorf("no line %q in\n%s", want, answer)
			}
			if again := peer.ask(c.request); again != answer && c.status != 481 {
				t.Errorf("the same request again gives\n%s\nafter\n%s", again, answer)
			}
		})
	}
}

func TestNeverAnswered(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.register(t, "1002", domain, "london")
	s := newServer(t, w.options())
	c := newClient(t, s.Addrs(UDP)[0])
	good := invite("INVITE", "sip:1002@pbx.test")
	c.silent(
		invite("ACK", "sip:1002@pbx.test"),
		"ACK nonsense",
		message("SIP/2.0 200 OK", "Via: SIP/2.0/UDP 127.0.0.1:5999;branch=z9hG4bK-1", "From: <sip:a@b>;tag=1", "To: <sip:a@b>;tag=2", "Call-ID: x", "CSeq: 1 INVITE"),
		"", "\r\n\r\n", "\x00\x00\x00\x00", "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		good[:len(good)-2], // cut off
		strings.ReplaceAll(good, "\r\n", "\n"),
		strings.Replace(good, "call-1", "call\n1", 1),
		strings.Replace(good, "call-1", "call\r1", 1),
		strings.Replace(good, "call-1", "call\x001", 1),
		strings.Replace(good, "Carrier", "\xff\xfe", 1),
		strings.Replace(good, "Via", "Vie", 1),
		strings.Replace(good, "SIP/2.0/UDP 127", "SIP/2.0/UDP\t\"127", 1),
		strings.Replace(good, "SIP/2.0/UDP", "HTTP/2.0/UDP", 1),
		strings.Replace(good, ":5999;", ":0;", 1),
		strings.Replace(good, ":5999;", ":65536;", 1),
		strings.Replace(good, "branch=z9hG4bK-1", "branch=", 1),
		strings.Replace(good, "branch=z9hG4bK-1", "branch=\"open", 1),
		strings.Replace(good, "From", "Form", 1),
		strings.Replace(good, "To:", "Too:", 1),
		strings.Replace(good, "Call-ID", "Call-IDs", 1),
		strings.Replace(good, "CSeq: 7 ", "CSeq: 7", 1),
		strings.Replace(good, "call-1", strings.Repeat("x", maxCallID), 1),
		strings.Replace(good, "Max-Forwards:", "Max Forwards:", 1),
		strings.Replace(good, "Max-Forwards:", strings.Repeat("X: y\r\n", maxHeaders)+"Max-Forwards:", 1),
	)
	if st := s.Stats(); st.Acks != 2 || st.Redirected != 0 || st.Dropped < 20 {
		t.Errorf("stats %+v", st)
	}
}

func TestMalformedGets400(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.register(t, "1002", domain, "london")
	s := newServer(t, w.options())
	c := newClient(t, s.Addrs(UDP)[0])
	good := invite("INVITE", "sip:1002@pbx.test")
	for name, change := range map[string][2]string{
		"Call-ID twice":           {"Call-ID:", "Call-ID: again\r\nCall-ID:"},
		"From twice":              {"From:", "f: <sip:a@b>;tag=1\r\nFrom:"},
		"length negative":         {"Content-Length: 0", "Content-Length: -999"},
		"length too large":        {"Content-Length: 0", "Content-Length: 9999"},
		"length no number":        {"Content-Length: 0", "Content-Length: 0x0"},
		"length twice":            {"Content-Length: 0", "Content-Length: 0\r\nl: 1"},
		"CSeq of another method":  {"CSeq: 7 INVITE", "CSeq: 7 OPTIONS"},
		"CSeq out of range":       {"CSeq: 7 INVITE", "CSeq: 36893488147419103232 INVITE"},
		"From without end":        {"\"Carrier\"", "\"Carrier"},
		"To without end":          {"To: <sip:1002@pbx.test>", "To: \"Watson <sip:1002@pbx.test>"},
		"To with two tags":        {"To: <sip:1002@pbx.test>", "To: <sip:1002@pbx.test>;tag=a;tag=b"},
		"To without <":            {"To: <sip:1002@pbx.test>", "To: sip:1002@pbx.test>"},
		"URI in brackets":         {"INVITE sip:1002@pbx.test ", "INVITE <sip:1002@pbx.test> "},
		"space in the URI":        {"INVITE sip:1002@pbx.test ", "INVITE sip:1002@pbx.test; lr "},
		"two spaces":              {"INVITE sip:1002@pbx.test ", "INVITE  sip:1002@pbx.test "},
		"space after the version": {" SIP/2.0\r\nVia", " SIP/2.0 \r\nVia"},
		"URI is a star":           {"INVITE sip:1002@pbx.test ", "INVITE * "},
		"URI without scheme":      {"INVITE sip:1002@pbx.test ", "INVITE 1002@pbx.test "},
		"URI with slashes":        {"INVITE sip:1002@pbx.test ", "INVITE sip://1002@pbx.test "},
		"URI too long":            {"INVITE sip:1002@pbx.test ", "INVITE sip:" + strings.Repeat("1", maxURI) + "@pbx.test "},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Fatalf("%s: nothing changed", name)
		}
		if answer := c.ask(bad); !strings.HasPrefix(answer, "SIP/2.0 400 ") {
			t.Errorf("%s: %s", name, answer)
		}
	}
	if st := s.Stats(); st.Redirected != 0 || st.Malformed < 15 {
		t.Errorf("stats %+v", st)
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.register(t, "1002", domain, "london")
	s := newServer(t, w.options())
	c := newClient(t, s.Addrs(UDP)[0])
	inv := parsed(t, c.ask(invite("INVITE", "sip:1002@pbx.test")))
	cancel := parsed(t, c.ask(invite("CANCEL", "sip:1002@pbx.test")))
	if inv.StatusCode != sip.StatusMovedTemporarily || cancel.StatusCode != sip.StatusOK {
		t.Fatalf("INVITE %d, CANCEL %d", inv.StatusCode, cancel.StatusCode)
	}
	// RFC 3261 section 9.2: both have the same To tag.
	if inv.To().Value() != cancel.To().Value() {
		t.Errorf("To %q and %q", inv.To().Value(), cancel.To().Value())
	}
	other := strings.Replace(invite("CANCEL", "sip:1002@pbx.test"), "z9hG4bK-1", "z9hG4bK-2", 1)
	if res := parsed(t, c.ask(other)); res.StatusCode != 481 {
		t.Errorf("CANCEL of another branch: %d", res.StatusCode)
	}
}

// A short request does not get a long answer over UDP, whose sender may be forged.
func TestAnswerIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld()
	long := strings.Repeat("1", pbxmesh.MaxUserLen)
	for i := range 20 {
		id := pbxmesh.NodeID("node-" + strconv.Itoa(i))
		w.mesh.Nodes[id] = pbxmesh.Node{ID: id, Mesh: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 5090)}
		w.mesh.States[id] = pbxmesh.NodeState{Observed: pbxmesh.ObservedUp}
		w.register(t, long, domain, id)
	}
	o := w.options()
	o.TCP = []netip.AddrPort{loopback}
	s := newServer(t, o)
	c := newClient(t, s.Addrs(UDP)[0])
	short := message("INVITE sip:"+long+"@pbx.test SIP/2.0", "v: SIP/2.0/UDP h;rport", "f: <sip:a>;tag=1", "t: <sip:b>", "i: 1", "CSeq: 1 INVITE")
	answer := c.ask(short)
	if n := strings.Count(answer, "Contact:"); n != 1 || len(answer) > maxGrowth*len(short) {
		t.Errorf("%d contacts, %d bytes for %d", n, len(answer), len(short))
	}
	padded := invite("INVITE", "sip:"+long+"@pbx.test", "X: "+strings.Repeat("x", 3000))
	answer = c.ask(padded)
	if n := strings.Count(answer, "Contact:"); n < 2 || n > maxContacts || len(answer) > maxUDPAnswer {
		t.Errorf("%d contacts, %d bytes", n, len(answer))
	}
	conn, r := dialTCP(t, s)
	_, _ = conn.Write([]byte(padded))
	if n := strings.Count(answerOf(t, r), "Contact:"); n != maxContacts {
		t.Errorf("%d contacts over TCP", n)
	}
	// Too short for even one contact: the refusal says so, and is bounded as well.
	shortest := message("INVITE sip:1002@p SIP/2.0", "v: SIP/2.0/UDP h;rport", "f: <sip:a>", "t: <sip:b>", "i: 1", "CSeq: 1 INVITE")
	w.register(t, "1002", "p", "london")
	if answer = c.ask(shortest); len(answer) > maxGrowth*len(shortest) {
		t.Errorf("%d bytes for %d:\n%s", len(answer), len(shortest), answer)
	}
}

func TestFoldedHeaders(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.register(t, "1002", domain, "london")
	s := newServer(t, w.options())
	c := newClient(t, s.Addrs(UDP)[0])
	answer := c.ask(message(
		"INVITE sip:1002@pbx.test SIP/2.0",
		"TO :\n sip:1002@pbx.test ;   tag",
		"  = x",
		"fRoM: \"J \\\"quoted\\\" <\" <sip:a@b>;tag=1",
		"i: folded.", // no fold: a Call-ID
		"v:  SIP  / 2.0  / TCP     spindle.example.com   ; rport ;\n  branch  =   z9hG4bK9ikj8  ,\n SIP  /    2.0   / UDP  192.168.255.111   ; branch=\n z9hG4bK30239",
		"CSeq: 0009\n  BYE",
		"Via: SIP/2.0/UDP 192.0.2.2;branch=390skdjuw",
		"l: 0"))
	if strings.HasPrefix(answer, "SIP/2.0 302") {
		t.Fatalf("a mismatch is redirected:\n%s", answer)
	}
	res := parsed(t, answer)
	if vias := res.GetHeaders("Via"); res.StatusCode != sip.StatusBadRequest || len(vias) != 3 || !strings.Contains(answer, "BYE") {
		t.Errorf("answer\n%s", answer)
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(answer, "\r\n"), "\r\n") {
		if strings.HasPrefix(line, " ") || strings.ContainsAny(line, "\r\n") {
			t.Errorf("line %q", line)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	w := newWorld()
	for name, change := range map[string]func(*Options){
		"no directory":      func(o *Options) { o.Directory = nil },
		"no listener":       func(o *Options) { o.UDP = nil },
		"everywhere":        func(o *Options) { o.UDP = []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:0")} },
		"open to all":       func(o *Options) { o.TCP = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:5060")} },
		"TLS without file":  func(o *Options) { o.TLS = []netip.AddrPort{loopback} },
		"TLS with bad file": func(o *Options) { o.TLS, o.CertFile, o.KeyFile = []netip.AddrPort{loopback}, "none", "none" },
		"bad network":       func(o *Options) { o.Allow = []netip.Prefix{netip.PrefixFrom(loopback.Addr(), 8)} },
		"bad node":          func(o *Options) { o.DefaultNode = "A b" },
		"bad domain":        func(o *Options) { o.Domain = "a b" },
		"negative bound":    func(o *Options) { o.MaxConns = -1 },
		"no table":          func(o *Options) { o.NumbersFile = "none" },
		"address not ours": func(o *Options) {
			o.UDP, o.Allow = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:5060")}, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		},
		"table is a folder": func(o *Options) { o.NumbersFile = "." },
	} {
		o := w.options()
		change(&o)
		if s, err := New(o); err == nil {
			t.Errorf("%s is accepted", name)
			_ = s.Shutdown(t.Context())
		}
	}
	s, err := New(w.options())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Shutdown(t.Context()); err != nil { // releases what was never served
		t.Error(err)
	}
	if err := s.Serve(); err != nil {
		t.Error(err)
	}
}
