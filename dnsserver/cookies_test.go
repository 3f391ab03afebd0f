package dnsserver

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"pbxmesh/fixtures"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestCookieVectors are the test vectors of RFC 9018 appendix A: servers of other makes
// with our secret give and take the same cookies.
func TestCookieVectors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, secret, client, query, want string
		at                                int64
		state                             cookieState
	}{
		{"learning a new server cookie", "e5e973e5a6b2a43f48e7dc849e37bfcf", "198.51.100.100", "2464c4abcf10c957", "2464c4abcf10c957010000005cf79f111f8130c3eee29480", 1559731985, cookieNew},
		{"the same client again, old enough to be renewed", "e5e973e5a6b2a43f48e7dc849e37bfcf", "198.51.100.100", "2464c4abcf10c957010000005cf79f111f8130c3eee29480", "2464c4abcf10c957010000005cf7a871d4a564a1442aca77", 1559734385, cookieValid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := NewCookies(CookieSecret(unhex(t, tt.secret)))
			reply, state := c.answer(unhex(t, tt.query), netip.MustParseAddr(tt.client), time.Unix(tt.at, 0))
			if got := hex.EncodeToString(reply[:]); got != tt.want || state != tt.state {
				t.Errorf("%s, state %d; want %s, state %d", got, state, tt.want, tt.state)
			}
		})
	}
	// A secret was replaced, and the client has a cookie of the older one.
	c := NewCookies(CookieSecret(unhex(t, "445536bcd2513298075a5d379663c962")), CookieSecret(unhex(t, "dd3bdf9344b678b185a6f5cb60fca715")))
	reply, state := c.answer(unhex(t, "22681ab97d52c298010000005cf7c57926556bd0934c72f8"), netip.MustParseAddr("2001:db8:220:1:59de:d0f4:8769:82b8"), time.Unix(1559741961, 0))
	if got := hex.EncodeToString(reply[:]); got != "22681ab97d52c298010000005cf7c609a6bb79d16625507a" || state != cookieValid {
		t.Errorf("%s, state %d", got, state)
	}
}

func TestCookieStates(t *testing.T) {
	t.Parallel()
	old, current := CookieSecret{1}, CookieSecret{2}
	client := netip.MustParseAddr("192.0.2.7")
	given, _ := NewCookies(old).answer([]byte("8 bytes!"), client, testTime)
	change := func(at int, to byte) []byte {
		b := append([]byte(nil), given[:]...)
		b[at] = to
		return b
	}
	for _, tt := range []struct {
		name    string
		cookies *Cookies
		option  []byte
		client  string
		age     time.Duration
		state   cookieState
		same    bool // the client keeps its cookie
	}{
		{name: "valid", option: given[:], state: cookieValid, same: true},
		{name: "half an hour", option: given[:], age: 30 * time.Minute, state: cookieValid, same: true},
		{name: "more than half an hour", option: given[:], age: 31 * time.Minute, state: cookieValid},
		{name: "an hour", option: given[:], age: time.Hour, state: cookieValid},
		{name: "more than an hour", option: given[:], age: time.Hour + time.Second, state: cookieBad},
		{name: "from a clock five minutes ahead", option: given[:], age: -5 * time.Minute, state: cookieValid, same: true},
		{name: "from the future", option: given[:], age: -5*time.Minute - time.Second, state: cookieBad},
		{name: "another address", option: given[:], client: "192.0.2.8", state: cookieBad},
		{name: "another client cookie", option: change(0, 'x'), state: cookieBad},
		{name: "another version", option: change(8, 2), age: time.Second, state: cookieBad},
		{name: "another hash", option: change(23, given[23]+1), age: time.Second, state: cookieBad},
		{name: "reserved bytes are hashed", option: change(9, 1), age: time.Second, state: cookieBad},
		{name: "another length", option: append([]byte(nil), given[:20]...), age: time.Second, state: cookieBad},
		{name: "the accepted secret", cookies: NewCookies(current, old), option: given[:], state: cookieValid},
		{name: "a dropped secret", cookies: NewCookies(current), option: given[:], state: cookieBad},
		{name: "none yet", option: given[:8], age: time.Second, state: cookieNew},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, from := tt.cookies, client
			if c == nil {
				c = NewCookies(old)
			}
			if tt.client != "" {
				from = netip.MustParseAddr(tt.client)
			}
			now := testTime.Add(tt.age)
			reply, state := c.answer(tt.option, from, now)
			if state != tt.state || (reply == given) != tt.same {
				t.Errorf("state %d, want %d; %x for %x", state, tt.state, reply, tt.option)
			}
			if again, state := c.answer(reply[:], from, now); state != cookieValid || again != reply {
				t.Errorf("its own cookie is not good, or not kept: state %d", state)
			}
		})
	}
}

// TestCookiesInMessages: what the options look like from outside, over both ways.
func TestCookiesInMessages(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	r := testResponder(z)
	w := newWorker(r, z.log)
	client := netip.MustParseAddr("192.0.2.7")
	given, _ := r.cookies.answer([]byte("8 bytes!"), client, testTime)
	for _, tt := range []struct {
		name     string
		cookie   []byte
		question bool
		rcode    int
		cookies  int // options in the reply
		answers  int
	}{
		{"client cookie", []byte("8 bytes!"), true, dns.RcodeSuccess, 1, 1},
		{"valid", given[:], true, dns.RcodeSuccess, 1, 1},
		{"bad", append([]byte("8 bytes?"), given[8:]...), true, dns.RcodeSuccess, 1, 1},
		{"too short", []byte("7 bytes"), true, dns.RcodeFormatError, 0, 0},
		{"between", []byte("fifteen bytes!!"), true, dns.RcodeFormatError, 0, 0},
		{"too long", make([]byte, 41), true, dns.RcodeFormatError, 0, 0},
		{"alone, client cookie", []byte("8 bytes!"), false, dns.RcodeSuccess, 1, 0},
		{"alone, valid", given[:], false, dns.RcodeSuccess, 1, 0},
		{"alone, bad", make([]byte, 24), false, dns.RcodeBadCookie, 1, 0},
		{"alone, too short", []byte("7 bytes"), false, dns.RcodeFormatError, 0, 0},
		{"no question, no cookie", nil, false, dns.RcodeFormatError, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := new(dns.Msg)
			if tt.question {
				m.SetQuestion("pbx.example.com.", dns.TypeA)
			}
			m.SetEdns0(1232, false)
			if tt.cookie != nil {
				m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: hex.EncodeToString(tt.cookie)}}
			}
			p, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			for range 3 { // the third one from the cache, where it may
				reply := unpacked(w.respond(make([]byte, 0, MaxUDPSize), p, client, testTime))
				if reply.Rcode != tt.rcode || len(reply.Answer) != tt.answers || len(reply.IsEdns0().Option) != tt.cookies {
					t.Fatalf("%v", reply)
				}
			}
		})
	}
}

func TestRateLimiter(t *testing.T) {
	t.Parallel()
	l := newRateLimiter(RateLimit{Answers: 10, NXDomain: 3, Errors: -1, Slip: 3, Exempt: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	sent := func(client string, rcode, n int, at time.Duration) (send, slips int) {
		for range n {
			switch l.judge(netip.MustParseAddr(client), rcode, testTime.Add(at)) {
			case 0:
				send++
			case slip:
				slips++
			}
		}
		return
	}
	for _, tt := range []struct {
		name   string
		client string
		rcode  int
		n      int
		at     time.Duration
		want   int
	}{
		{"a burst of one second's worth", "192.0.2.1", dns.RcodeSuccess, 40, 0, 10},
		{"another host of the network", "192.0.2.200", dns.RcodeSuccess, 40, 0, 0},
		{"another network", "192.0.3.1", dns.RcodeSuccess, 5, 0, 5},
		{"another category", "192.0.2.1", dns.RcodeNameError, 40, 0, 3},
		{"no limit", "192.0.2.1", dns.RcodeRefused, 1000, 0, 1000},
		{"exempt", "198.51.100.9", dns.RcodeSuccess, 1000, 0, 1000},
		{"half a second later", "192.0.2.1", dns.RcodeSuccess, 40, 500 * time.Millisecond, 5},
		{"long after", "192.0.2.1", dns.RcodeSuccess, 40, time.Hour, 10},
		{"IPv6", "2001:db8:0:1::1", dns.RcodeSuccess, 40, 0, 10},
		{"IPv6, same /56", "2001:db8:0:ff::1", dns.RcodeSuccess, 40, 0, 0},
		{"IPv6, another /56", "2001:db8:0:100::1", dns.RcodeSuccess, 4, 0, 4},
	} {
		if got, slips := sent(tt.client, tt.rcode, tt.n, tt.at); got != tt.want || slips < (tt.n-got)/3-1 || slips > (tt.n-got)/3+1 {
			t.Errorf("%s: %d of %d sent, %d slipped; want %d sent and a third of the rest", tt.name, got, tt.n, slips, tt.want)
		}
	}
}

// TestRateLimiterIsBounded: more networks than there are slots take no more memory, and
// one that is limited stays so while others come once each.
func TestRateLimiterIsBounded(t *testing.T) {
	t.Parallel()
	l := newRateLimiter(RateLimit{Answers: 10, NXDomain: 10, Errors: 10, Slip: -1})
	loud, passed := netip.MustParseAddr("192.0.2.1"), 0
	for i := range 70_000 {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], uint32(0x0b000000+i<<8))
		if l.judge(netip.AddrFrom4(a), dns.RcodeSuccess, testTime) != send {
			t.Fatalf("network %d is limited at its first query", i)
		}
		if l.judge(loud, dns.RcodeSuccess, testTime) == send {
			passed++
		}
	}
	if passed != 10 || len(l.slots) != rateSlots {
		t.Errorf("%d passed, want 10; %d slots", passed, len(l.slots))
	}
}
