package doctor

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// strangers calls the mesh profile as somebody who is in no list: from the loopback
// address of this machine, for a user who cannot exist. What the profile answers is
// what it runs with, whatever its configuration has said since it was started.
func (p *patient) strangers(ctx context.Context) {
	start := time.Now()
	say := func(r Result) { p.say("mesh strangers", "mesh strangers", start, r) }
	from := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	name := p.cfg.FreeSWITCH.MeshProfile
	text, bad := p.ask(ctx, "acl "+from.String()+" "+name)
	switch {
	case bad != nil:
		say(*bad)
		return
	case oneLine(text) == "true":
		say(skip("%s is in the list %s: nobody here is a stranger to it", from, name))
		return
	}
	status, err := knock(ctx, from, p.cfg.Node.MeshAddress)
	restart := fsconfHint + ", then restart the profile " + name + " when no calls run"
	switch {
	case err != nil:
		say(skip("%s cannot be called from %s (%s): is it another machine's address?", p.cfg.Node.MeshAddress, from, plain(err)))
	case status == 403:
		say(ok("who is not in the list gets 403, and no challenge"))
	case status == 401 || status == 407:
		say(fail(fmt.Sprintf("the running profile asks strangers for a password (%d): anybody may try the passwords of all users, and who has one may call", status),
			"auth-calls-acl-only is not in force: "+restart))
	case status == 503:
		say(skip("the switch is too busy to say (503)"))
	default:
		say(fail(fmt.Sprintf("the running profile takes calls of strangers (%d)", status), "auth-calls and apply-inbound-acl are not in force: "+restart))
	}
}

// knock sends an INVITE from an address of this machine and returns the status of the
// final response (RFC 3261 section 17.1.1), which it acknowledges. The request is sent
// again after 500 ms and twice as long, until ctx ends. A call that rings is one that was
// taken: it is cancelled (section 9.1), as an answered one is ended, and its status is
// that of the ringing, 101 to 199.
func knock(ctx context.Context, from netip.Addr, to netip.AddrPort) (int, error) {
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(to))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	k := knocking{id: rand.Text(), local: conn.LocalAddr().String()}
	next := k.text(request{method: "INVITE", uri: nobody, branch: k.id, to: "<" + nobody + ">", seq: 1, more: "Contact: <sip:pbxmesh-doctor@" + k.local + ">\r\n"})
	deadline, bounded := ctx.Deadline()
	if !bounded {
		deadline = time.Now().Add(4 * time.Second)
	}
	rang := 0
	buf := make([]byte, 4096)
	for wait := 500 * time.Millisecond; time.Now().Before(deadline); wait *= 2 {
		if _, err := conn.Write([]byte(next)); err != nil {
			return 0, err
		}
		again := time.Now().Add(wait)
		if again.After(deadline) {
			again = deadline
		}
		if err := conn.SetReadDeadline(again); err != nil {
			return 0, err
		}
		for {
			n, err := conn.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return 0, err
			}
			r, ok := parseResponse(string(buf[:n]), k.id)
			if !ok || r.method != "INVITE" || r.status <= 100 {
				continue
			}
			if r.status >= 200 {
				return cmp.Or(rang, r.status), k.end(conn, r)
			}
			if rang == 0 {
				rang = r.status
				next = k.text(request{method: "CANCEL", uri: nobody, branch: k.id, to: "<" + nobody + ">", seq: 1})
				wait = 250 * time.Millisecond // a request of its own: again after 500 ms
				break
			}
		}
	}
	if rang != 0 {
		return rang, nil
	}
	return 0, context.DeadlineExceeded
}

// nobody is whom a knock asks for.
const nobody = "sip:pbxmesh-doctor@pbxmesh.invalid"

// knocking is one call of doctor's: its Call-ID, also its tag and first branch, and where
// it comes from.
type knocking struct{ id, local string }

// request is one of its requests. more are whole header lines.
type request struct {
	method, uri, branch, to string
	seq                     int
	more                    string
}

func (k knocking) text(r request) string {
	return r.method + " " + r.uri + " SIP/2.0\r\nVia: SIP/2.0/UDP " + k.local + ";rport;branch=z9hG4bK" + r.branch +
		"\r\nMax-Forwards: 1\r\nFrom: <" + nobody + ">;tag=" + k.id + "\r\nTo: " + r.to + "\r\nCall-ID: " + k.id +
		"\r\nCSeq: " + strconv.Itoa(r.seq) + " " + r.method + "\r\n" + r.more + "Content-Length: 0\r\n\r\n"
}

// end acknowledges a final response, and hangs up what was answered. The ACK of an
// answer, and the BYE, are transactions of their own (RFC 3261 section 13.2.2.4).
func (k knocking) end(conn *net.UDPConn, r response) error {
	ack := request{method: "ACK", uri: nobody, branch: k.id, to: r.to, seq: 1}
	if r.status < 300 {
		ack.uri, ack.branch = r.target, rand.Text()
	}
	_, err := conn.Write([]byte(k.text(ack)))
	if err == nil && r.status < 300 {
		_, err = conn.Write([]byte(k.text(request{method: "BYE", uri: r.target, branch: rand.Text(), to: r.to, seq: 2})))
	}
	return err
}

// response is what of a response is needed: To with its tag, the method of CSeq, and
// where the dialog's requests go (Contact).
type response struct {
	status             int
	to, method, target string
}

// parseResponse reads a response to the call with this id.
func parseResponse(text, id string) (r response, ok bool) {
	line, rest, _ := strings.Cut(text, "\r\n")
	code, found := strings.CutPrefix(line, "SIP/2.0 ")
	if !found || len(code) < 3 || !strings.Contains(rest, id) {
		return r, false
	}
	status, err := strconv.Atoi(code[:3])
	r.status, r.target = status, nobody
	for header := range strings.SplitSeq(rest, "\r\n") {
		name, value, _ := strings.Cut(header, ":")
		switch name = strings.TrimSpace(name); {
		case strings.EqualFold(name, "To") || strings.EqualFold(name, "t"):
			r.to = strings.TrimSpace(value)
		case strings.EqualFold(name, "Contact") || strings.EqualFold(name, "m"):
			_, uri, _ := strings.Cut(value, "<")
			if uri, _, found := strings.Cut(uri, ">"); found {
				r.target = uri
			}
		case strings.EqualFold(name, "CSeq"):
			if f := strings.Fields(value); len(f) == 2 {
				r.method = f[1]
			}
		}
	}
	return r, err == nil && r.to != ""
}
