package doctor

import (
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
// again after 500 ms and twice as long, until ctx ends.
func knock(ctx context.Context, from netip.Addr, to netip.AddrPort) (int, error) {
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(to))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	id := rand.Text()
	head := func(method, to string) string {
		local := conn.LocalAddr().String()
		return method + " sip:pbxmesh-doctor@pbxmesh.invalid SIP/2.0\r\nVia: SIP/2.0/UDP " + local + ";rport;branch=z9hG4bK" + id +
			"\r\nMax-Forwards: 1\r\nFrom: <sip:pbxmesh-doctor@pbxmesh.invalid>;tag=" + id + "\r\nTo: " + to + "\r\nCall-ID: " + id +
			"\r\nCSeq: 1 " + method + "\r\n"
	}
	invite := head("INVITE", "<sip:pbxmesh-doctor@pbxmesh.invalid>") + "Contact: <sip:pbxmesh-doctor@" + conn.LocalAddr().String() + ">\r\nContent-Length: 0\r\n\r\n"
	deadline, bounded := ctx.Deadline()
	if !bounded {
		deadline = time.Now().Add(4 * time.Second)
	}
	buf := make([]byte, 4096)
	for wait := 500 * time.Millisecond; time.Now().Before(deadline); wait *= 2 {
		if _, err := conn.Write([]byte(invite)); err != nil {
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
			status, tagged, ok := parseResponse(string(buf[:n]), id)
			if !ok || status < 200 {
				continue
			}
			_, err = conn.Write([]byte(head("ACK", tagged) + "Content-Length: 0\r\n\r\n"))
			return status, err
		}
	}
	return 0, context.DeadlineExceeded
}

// parseResponse reads the status of a response to the call with this id, and its To.
func parseResponse(text, id string) (status int, to string, ok bool) {
	line, rest, _ := strings.Cut(text, "\r\n")
	code, found := strings.CutPrefix(line, "SIP/2.0 ")
	if !found || len(code) < 3 || !strings.Contains(rest, id) {
		return 0, "", false
	}
	status, err := strconv.Atoi(code[:3])
	for header := range strings.SplitSeq(rest, "\r\n") {
		name, value, _ := strings.Cut(header, ":")
		if name = strings.TrimSpace(name); strings.EqualFold(name, "To") || strings.EqualFold(name, "t") {
			to = strings.TrimSpace(value)
		}
	}
	return status, to, err == nil && to != ""
}
