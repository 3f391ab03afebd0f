package dnsserver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"pbxmesh/fixtures"
)

// FuzzUDP asserts of any packet, before and after its answer is in the cache: no panic,
// the bytes of the slow path, and to somebody who may be forged no more than the bound
// on amplification allows.
func FuzzUDP(f *testing.F) {
	z, _ := newTestZone(f, fixtures.ThreeTowns(nil))
	big, _ := newTestZone(f, bigMesh(5, 120))
	for _, p := range benchQueries(f) {
		f.Add(p)
	}
	cookies := NewCookies(CookieSecret{9})
	cookie, _ := cookies.answer([]byte("8 bytes!"), defaultClient, testTime)
	m := new(dns.Msg)
	m.SetQuestion("node-001.pbx.example.com.", dns.TypeA)
	m.SetEdns0(4096, true)
	with, _ := m.Pack()
	f.Add(with)
	for _, option := range [][]byte{cookie[:], cookie[:8], {0, 1, 24, 0, 198, 51, 100}} {
		code := byte(dns.EDNS0COOKIE)
		if option[0] == 0 {
			code = dns.EDNS0SUBNET
		}
		p := append(bytes.Clone(with), 0, code, 0, byte(len(option)))
		p = append(p, option...)
		p[len(with)-1] = byte(4 + len(option))
		f.Add(p)
	}
	f.Add([]byte{0x42, 0x42, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
	workers := []*worker{}
	for _, zone := range []*Zone{z, big} {
		w := newWorker(&responder{zone: zone, cookies: cookies, amplification: DefaultAmplification}, zone.log)
		workers = append(workers, w)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		for _, w := range workers {
			w.cache = newAnswerCache(8, cacheBytes)
			query, buf := bytes.Clone(packet), make([]byte, 0, MaxUDPSize)
			slow := w.r.respond(packet, defaultClient, true, testTime)
			for range 3 {
				res, ok := w.fast(buf, packet, defaultClient, testTime)
				w.flush()
				if !bytes.Equal(packet, query) {
					t.Fatalf("%x was written to", query)
				}
				if ok && !bytes.Equal(res.reply, slow.reply) {
					t.Fatalf("%x: fast %x, slow %x", packet, res.reply, slow.reply)
				}
			}
			if slow.reply == nil {
				continue
			}
			limit := MaxUDPSize
			if slow.state != cookieValid {
				limit = min(limit, DefaultAmplification*len(packet))
			}
			if len(slow.reply) > limit {
				t.Fatalf("%d bytes in answer to %d, at most %d are allowed", len(slow.reply), len(packet), limit)
			}
			if cut := slow.cut(buf, len(packet)); len(cut) > len(packet)+serverCookieSize {
				t.Fatalf("%d bytes in answer to %d above the rate limit", len(cut), len(packet))
			}
		}
		if n := z.Stats().Crashes + big.Stats().Crashes; n != 0 {
			t.Fatal(n)
		}
	})
}

// FuzzTCP asserts of any stream of bytes: each whole query that wants an answer gets one
// that parses, in order, and then the connection ends.
func FuzzTCP(f *testing.F) {
	z, _ := newTestZone(f, fixtures.ThreeTowns(nil))
	_, addr := startServer(f, z)
	frame := func(p []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...) }
	var all []byte
	for _, p := range benchQueries(f) {
		all = append(all, frame(p)...)
	}
	f.Add(all)
	f.Add(all[:len(all)-3])
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 1})
	f.Add(frame([]byte("twelve bytes and some more")))
	f.Fuzz(func(t *testing.T, stream []byte) {
		if len(stream) > 4096 {
			return // more replies than the socket's buffers hold would wait for us
		}
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Skip(err) // out of ports
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		var want [][]byte
		for rest := stream; len(rest) >= 2; {
			n := int(binary.BigEndian.Uint16(rest))
			if len(rest) < 2+n {
				break
			}
			query := rest[2 : 2+n]
			if z.Respond(query, defaultClient, false) == nil {
				break // the connection ends there
			}
			want = append(want, query)
			rest = rest[2+n:]
		}
		if _, err := c.Write(stream); err != nil && !reset(err) {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
		got, err := io.ReadAll(c)
		if err != nil && !reset(err) {
			t.Fatal(err)
		}
		broken := err != nil // what we sent last was never read, so some replies may be lost
		for i, query := range want {
			if len(got) < 2 || len(got) < 2+int(binary.BigEndian.Uint16(got)) {
				if broken {
					return
				}
				t.Fatalf("%d replies to %d queries", i, len(want))
			}
			reply := got[2 : 2+int(binary.BigEndian.Uint16(got))]
			if len(reply) < headerSize || reply[0] != query[0] || reply[1] != query[1] || reply[2]&0x80 == 0 {
				t.Fatalf("reply %x to %x", reply, query)
			}
			got = got[2+len(reply):]
		}
		if len(got) > 0 {
			t.Fatalf("%d bytes more than %d replies", len(got), len(want))
		}
	})
}

func reset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
