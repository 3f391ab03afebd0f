package feed

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"pbxmesh/fixtures/sipwire"
)

// rawPhone sends REGISTERs that no library would write: each header as given.
type rawPhone struct {
	t         testing.TB
	user      string
	transport string // of Via: "UDP", "TCP", "WS"
	conn      net.Conn
	read      func() ([]byte, error)

	call, contact, agent, path, from string // header values; "" leaves agent and path out
	headers                          string // more header lines
	cseq                             int
}

// rawOver connects a phone of 1001, by "udp", "tcp" or "ws", from local ("" for any).
func rawOver(t testing.TB, network, local string, to netip.AddrPort) *rawPhone {
	t.Helper()
	p := &rawPhone{t: t, user: "1001", transport: strings.ToUpper(network), agent: "raw/1.0"}
	d := net.Dialer{Timeout: waitLong}
	switch {
	case local != "" && network == "udp":
		d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(local)}
	case local != "":
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(local)}
	}
	var err error
	switch network {
	case "ws":
		p.conn, _, _, err = ws.Dialer{Protocols: []string{"sip"}, NetDial: d.DialContext}.Dial(context.Background(), "ws://"+to.String()+"/")
		p.read = func() ([]byte, error) { b, _, err := wsutil.ReadServerData(p.conn); return b, err }
	case "tcp":
		p.conn, err = d.Dial("tcp", to.String())
		r := bufio.NewReader(p.conn)
		p.read = func() ([]byte, error) { return readStream(r) }
	default:
		p.conn, err = d.Dial("udp", to.String())
		p.read = func() ([]byte, error) {
			b := make([]byte, 65536)
			n, err := p.conn.Read(b)
			return b[:n], err
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.conn.Close() })
	p.call = sipwire.NewTag() + "@192.0.2.9"
	p.contact = fmt.Sprintf("<sip:1001@%s>", p.conn.LocalAddr())
	return p
}

// readStream reads one message with a header of lines and a body of Content-Length.
func readStream(r *bufio.Reader) ([]byte, error) {
	var head bytes.Buffer
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return nil, err
		}
		head.WriteString(line)
		if line != "\r\n" {
			continue
		}
		m, err := sipwire.Parse(append(bytes.Clone(head.Bytes()), bytes.Repeat([]byte{' '}, 4096)...))
		if err != nil {
			return head.Bytes(), nil //nolint:nilerr // no length: the body is empty
		}
		n, _ := strconv.Atoi(m.Get("Content-Length"))
		_, err = io.CopyN(&head, r, int64(n))
		return head.Bytes(), err
	}
}

// register sends a REGISTER, answers the challenge, and returns the final status; 0
// when the switch says nothing.
func (p *rawPhone) register(expires int) int {
	p.t.Helper()
	auth := ""
	for range 3 {
		p.cseq++
		from := p.from
		if from == "" {
			from = "<sip:" + p.user + "@pbx.test>"
		}
		var b strings.Builder
		fmt.Fprintf(&b, "REGISTER sip:pbx.test SIP/2.0\r\nVia: SIP/2.0/%s %s;branch=z9hG4bK%s;rport\r\nMax-Forwards: 70\r\nFrom: %s;tag=%s\r\nTo: <sip:%s@pbx.test>\r\n"+
			"Call-ID: %s\r\nCSeq: %d REGISTER\r\nContact: %s\r\nExpires: %d\r\n", p.transport, p.conn.LocalAddr(), sipwire.NewTag(), from, sipwire.NewTag(), p.user,
			p.call, p.cseq, p.contact, expires)
		if p.agent != "" {
			b.WriteString("User-Agent: " + p.agent + "\r\n")
		}
		if p.path != "" {
			b.WriteString("Path: " + p.path + "\r\nSupported: path\r\n")
		}
		b.WriteString(p.headers + auth + "Content-Length: 0\r\n\r\n")
		var err error
		if p.transport == "WS" {
			err = wsutil.WriteClientText(p.conn, []byte(b.String()))
		} else {
			_, err = io.WriteString(p.conn, b.String())
		}
		if err != nil {
			p.t.Fatal(err)
		}
		resp := p.response()
		if resp == nil || resp.Status != 401 {
			if resp == nil {
				return 0
			}
			return resp.Status
		}
		d, err := sipwire.ParseDigest(resp.Get("WWW-Authenticate"))
		if err != nil {
			p.t.Fatal(err)
		}
		if d, err = d.Authorize("REGISTER", "sip:pbx.test", sipwire.Credentials{User: p.user, Password: "secret-" + p.user}, 1); err != nil {
			p.t.Fatal(err)
		}
		auth = "Authorization: " + d.String() + "\r\n"
	}
	return 401
}

// response waits for the final answer to the last request; requests of the switch, its
// pings, are left without an answer.
func (p *rawPhone) response() *sipwire.Message {
	p.t.Helper()
	_ = p.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	for {
		b, err := p.read()
		if err != nil {
			return nil
		}
		m, err := sipwire.Parse(b)
		if err != nil || m.IsRequest() || m.Status < 200 {
			continue
		}
		if n, _ := m.CSeq(); int(n) == p.cseq {
			return m
		}
	}
}

// must is register for what the switch has to take.
func (p *rawPhone) must(expires int) {
	p.t.Helper()
	if status := p.register(expires); status != 200 {
		p.t.Fatalf("REGISTER answered %d", status)
	}
}
