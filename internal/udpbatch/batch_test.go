package udpbatch

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// echo serves what it gets back, one byte longer, until the test ends.
func echo(t *testing.T, listen string, o Options) *net.UDPConn {
	t.Helper()
	at, err := net.ResolveUDPAddr("udp", listen)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenUDP("udp", at)
	if err != nil {
		t.Skipf("SKIPPED: cannot bind %s here: %v", listen, err)
	}
	var stop atomic.Bool
	done := make(chan error, 1)
	outs := make([][]byte, 1024)
	go func() {
		done <- Serve(c, o, stop.Load, func(b *Batch, n int) {
			for i := range n {
				packet, from := b.Packet(i)
				if !from.IsValid() || from.Addr().Is4In6() || from.Addr().Zone() != "" {
					t.Errorf("from %v", from)
					continue
				}
				outs[i] = append(append(outs[i][:0], packet...), '!')
				b.Answer(i, outs[i], from.Port())
			}
		})
	}()
	t.Cleanup(func() {
		stop.Store(true)
		_ = c.SetReadDeadline(time.Unix(1, 0))
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		_ = c.Close()
	})
	return c
}

// TestAnswersFromTheAskedAddress: whichever address of the machine is asked answers,
// and each sender gets its own.
func TestAnswersFromTheAskedAddress(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ listen, ask string }{
		{"127.0.0.1:0", "127.0.0.1"},
		{"127.0.0.5:0", "127.0.0.5"},
		{"0.0.0.0:0", "127.0.0.2"},
		{":0", "127.0.0.3"},
		{":0", "::1"},
		{"[::1]:0", "::1"},
	} {
		t.Run(tt.listen+" "+tt.ask, func(t *testing.T) {
			t.Parallel()
			c := echo(t, tt.listen, Options{Length: 100})
			to := netip.AddrPortFrom(netip.MustParseAddr(tt.ask), c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
			const senders, packets = 3, 40
			for s := range senders {
				d, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to)) // takes answers from there only
				if err != nil {
					t.Skipf("SKIPPED: no %v here: %v", to, err)
				}
				defer d.Close()
				_ = d.SetReadDeadline(time.Now().Add(20 * time.Second))
				for i := range packets {
					if _, err := fmt.Fprintf(d, "%d %d", s, i); err != nil {
						t.Fatal(err)
					}
				}
				buf := make([]byte, 200)
				for i := range packets {
					n, err := d.Read(buf)
					if err != nil {
						t.Fatal(err)
					}
					if want := fmt.Sprintf("%d %d!", s, i); string(buf[:n]) != want {
						t.Fatalf("got %q, want %q", buf[:n], want)
					}
				}
			}
		})
	}
}

func TestLongPacketsAreCut(t *testing.T) {
	t.Parallel()
	c := echo(t, "127.0.0.1:0", Options{Packets: 1, Length: 10})
	d, err := net.Dial("udp", c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	_ = d.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := d.Write([]byte("0123456789abcdef")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, err := d.Read(buf); err != nil || string(buf[:n]) != "0123456789!" {
		t.Errorf("%q %v", buf[:n], err)
	}
}

// TestCloseEndsServe: a socket that was closed is no failure.
func TestCloseEndsServe(t *testing.T) {
	t.Parallel()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- Serve(c, Options{}, func() bool { return false }, func(*Batch, int) {}) }()
	_ = c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func BenchmarkEcho(b *testing.B) {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	d, err := net.DialUDP("udp", nil, c.LocalAddr().(*net.UDPAddr))
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	batch, err := New(c, Options{Length: 512})
	if err != nil {
		b.Fatal(err)
	}
	packet, reply := make([]byte, 64), make([]byte, 128)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Write(packet); err != nil {
			b.Fatal(err)
		}
		n, err := batch.Read()
		if err != nil || n != 1 {
			b.Fatal(n, err)
		}
		_, from := batch.Packet(0)
		batch.Answer(0, reply, from.Port())
		batch.Flush()
		if _, err := d.Read(reply); err != nil {
			b.Fatal(err)
		}
	}
}
