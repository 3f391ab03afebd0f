package latency

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"pbxmesh/fixtures"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/fixtures/sipwire"
	"pbxmesh/internal/esl"
)

// teller is a phone that says what it is told to, over UDP.
type teller struct {
	t     *testing.T
	conn  net.Conn
	call  string
	realm string // of its own making; "" takes the switch's
	cseq  int
}

// say sends a REGISTER, with a digest for a nonce that was used nc-1 times before, and
// returns the final status and the challenge that came with it.
func (p *teller) say(answer sipwire.Digest, nc int) (status int, challenge sipwire.Digest) {
	p.t.Helper()
	p.cseq++
	auth := ""
	if answer.Nonce != "" {
		if p.realm != "" {
			answer.Realm = p.realm
		}
		d, err := answer.Authorize("REGISTER", "sip:pbx.test", sipwire.Credentials{User: "1001", Password: "secret-1001"}, nc)
		if err != nil {
			p.t.Fatal(err)
		}
		auth = "Authorization: " + d.String() + "\r\n"
	}
	if _, err := fmt.Fprintf(p.conn, "REGISTER sip:pbx.test SIP/2.0\r\nVia: SIP/2.0/UDP %s;branch=z9hG4bK%s;rport\r\nMax-Forwards: 70\r\nFrom: <sip:1001@pbx.test>;tag=%s\r\n"+
		"To: <sip:1001@pbx.test>\r\nCall-ID: %s\r\nCSeq: %d REGISTER\r\nContact: <sip:1001@%s>\r\nExpires: 600\r\n%sContent-Length: 0\r\n\r\n",
		p.conn.LocalAddr(), sipwire.NewTag(), sipwire.NewTag(), p.call, p.cseq, p.conn.LocalAddr(), auth); err != nil {
		p.t.Fatal(err)
	}
	_ = p.conn.SetReadDeadline(time.Now().Add(waitLong))
	b := make([]byte, 65536)
	for {
		n, err := p.conn.Read(b)
		if err != nil {
			p.t.Fatal(err)
		}
		m, err := sipwire.Parse(b[:n])
		if err != nil || m.IsRequest() || m.Status < 200 {
			continue
		}
		if number, _ := m.CSeq(); int(number) != p.cseq {
			continue
		}
		if m.Status == 401 {
			if challenge, err = sipwire.ParseDigest(m.Get("WWW-Authenticate")); err != nil {
				p.t.Fatal(err)
			}
		}
		return m.Status, challenge
	}
}

// TestScenarioNonces plays on a real switch what phones do with nonces: which digest is a
// sample, and whose.
func TestScenarioNonces(t *testing.T) {
	binary := os.Getenv(realswitch.EnvBinary)
	if binary == "" {
		t.Skipf("set %s to a freeswitch binary to run this on a real switch", realswitch.EnvBinary)
	}
	cfg := fixtures.Config{Name: "buffalo", Host: netip.MustParseAddr("127.0.83.1"), Users: []fixtures.User{{Name: "1001", Domain: "pbx.test", Password: "secret-1001"}}}
	sw, err := realswitch.New(cfg, binary, realswitch.WithInternalParam("force-register-domain", "pbx.test"))
	if err != nil {
		t.Fatal(err)
	}
	defer sw.Close()
	if err := sw.Start(); err != nil {
		t.Fatal(err)
	}
	var got sink
	address, password := sw.EventSocket()
	w := NewWatch(WatchOptions{ESL: esl.Config{Address: address, Password: password}, Profiles: []string{"internal"}, Sink: got.add, MinBackoff: time.Millisecond})
	done := make(chan error, 1)
	go func() { done <- w.Run(t.Context()) }()
	eventually(t, "connected", func() bool { return w.Stats().Connected })

	conn, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP("127.0.84.1")}}).Dial("udp", sw.SIP().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p := &teller{t: t, conn: conn, call: sipwire.NewTag()}
	none := sipwire.Digest{}
	expect := func(what string, want, status int) {
		t.Helper()
		if status != want {
			t.Fatalf("%s: answered %d, want %d", what, status, want)
		}
	}
	registrations := 0
	register := func(what string, play func()) Sample {
		t.Helper()
		play()
		registrations++
		eventually(t, what, func() bool { return len(got.samples(func(Sample) bool { return true })) >= registrations })
		all := got.samples(func(Sample) bool { return true })
		if len(all) != registrations {
			t.Fatalf("%s: %d registrations are seen, want %d", what, len(all), registrations)
		}
		s := all[len(all)-1]
		t.Logf("%s: %v of %q", what, s.RTT, s.Phone)
		if s.Phone != "1001@pbx.test" {
			t.Errorf("%s: the phone is %q", what, s.Phone)
		}
		return s
	}
	wait := func(d time.Duration) { <-time.After(d) }
	const late = 300 * time.Millisecond

	// The subscription may come a moment after the connection: the first ones may be missed.
	eventually(t, "a first sample", func() bool {
		_, c := p.say(none, 0)
		status, _ := p.say(c, 1)
		expect("a challenge and its answer", 200, status)
		return len(got.samples(func(s Sample) bool { return s.RTT > 0 })) > 0
	})
	eventually(t, "the events of these", func() bool {
		n := len(got.samples(func(Sample) bool { return true }))
		wait(100 * time.Millisecond)
		registrations = len(got.samples(func(Sample) bool { return true }))
		return registrations == n
	})

	var nonce sipwire.Digest
	s := register("an answer that takes its time", func() {
		_, nonce = p.say(none, 0)
		wait(late)
		status, _ := p.say(nonce, 1)
		expect("an answer that takes its time", 200, status)
	})
	if s.RTT < late-tick || s.RTT > late+time.Second {
		t.Errorf("%v, want %v", s.RTT, late)
	}
	if s := register("the same nonce, counted on", func() {
		status, _ := p.say(nonce, 2)
		expect("the same nonce", 200, status)
	}); s.RTT != 0 {
		t.Errorf("the same nonce again: %v", s.RTT)
	}
	s = register("a repeated digest, and the answer to the challenge that follows", func() {
		_, _ = p.say(none, 0)
		wait(late)
		status, fresh := p.say(nonce, 2)
		expect("a repeated digest", 401, status)
		status, _ = p.say(fresh, 1)
		expect("the answer to the challenge that follows", 200, status)
	})
	if s.RTT == 0 || s.RTT > late-tick {
		t.Errorf("after a repeated digest: %v, want the answer's own time", s.RTT)
	}
	if s := register("two challenges", func() {
		_, first := p.say(none, 0)
		wait(late)
		_, _ = p.say(none, 0)
		status, _ := p.say(first, 1)
		expect("the answer to the first of two", 200, status)
	}); s.RTT != 0 || w.Stats().Doubtful != 1 {
		t.Errorf("two challenges: %v, %+v", s.RTT, w.Stats())
	}
	p.realm = "a-realm-of-my-own"
	register("a realm of its own making", func() {
		_, c := p.say(none, 0)
		status, _ := p.say(c, 1)
		expect("a realm of its own making", 200, status)
	})
	p.realm = ""
	// The bound of what events show: an older nonce answers at once, and is taken for the new one.
	var older sipwire.Digest
	_, older = p.say(none, 0)
	register("the older nonce", func() { status, _ := p.say(older, 1); expect("the older nonce", 200, status) })
	if s := register("an older nonce that is still valid", func() {
		_, _ = p.say(none, 0)
		status, _ := p.say(older, 2)
		expect("an older nonce", 200, status)
	}); s.RTT > late {
		t.Errorf("%v", s.RTT)
	}
}

const tick = 25 * time.Millisecond
