package registrytest

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy is a TCP link between one client and a server that can be slow, drop
// what it should carry, cut connections, or refuse them. Who dials it is
// disturbed; everybody else is not.
type Proxy struct {
	listener net.Listener
	target   string
	tasks    sync.WaitGroup

	mu     sync.Mutex
	change chan struct{} // closed and replaced when the settings change
	delay  time.Duration
	cut    bool
	stall  bool
	deaf   bool  // what the server says is lost
	budget int64 // bytes to the server until the link is cut; below 0: no such bound
	conns  map[net.Conn]bool
	closed bool
	done   chan struct{}
}

// StartProxy listens on a loopback port that the kernel chose and carries what
// it gets to target (host:port). It ends with the test.
func StartProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("start a proxy: %v", err)
	}
	p := &Proxy{
		listener: l, target: target, budget: -1, change: make(chan struct{}),
		conns: map[net.Conn]bool{}, done: make(chan struct{}),
	}
	p.tasks.Go(p.accept)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// Addr returns host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// URL returns "redis://host:port".
func (p *Proxy) URL() string { return "redis://" + p.Addr() }

// SetDelay makes every piece of data wait for d, in both directions.
func (p *Proxy) SetDelay(d time.Duration) { p.set(func() { p.delay = d }) }

// Stall makes connections carry nothing while they stay open, as a network does
// that drops every packet; Stall(false) lets what waits go on.
func (p *Proxy) Stall(on bool) { p.set(func() { p.stall = on }) }

// Deafen makes the link lose what the server says, while the server hears everything: it
// does what it is told, and nobody learns of it. Deafen(false) ends that for connections
// that are made from then on; the others are closed.
func (p *Proxy) Deafen(on bool) {
	p.set(func() {
		if p.deaf && !on {
			p.drop() // half an answer is worse than none
		}
		p.deaf = on
	})
}

// Cut closes all connections and refuses new ones until Heal.
func (p *Proxy) Cut() { p.set(func() { p.cut = true; p.drop() }) }

// CutAfter cuts the link once n more bytes went to the server.
func (p *Proxy) CutAfter(n int64) { p.set(func() { p.budget = n }) }

// Drop closes all connections; new ones are accepted.
func (p *Proxy) Drop() { p.set(p.drop) }

// Heal ends everything that was set.
func (p *Proxy) Heal() {
	p.Deafen(false)
	p.set(func() { p.delay, p.cut, p.stall, p.budget = 0, false, false, -1 })
}

// IsCut reports whether the link is cut, as it is some time after CutAfter.
func (p *Proxy) IsCut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cut
}

// Close ends the proxy and waits for it. It is idempotent.
func (p *Proxy) Close() error {
	p.mu.Lock()
	was := p.closed
	p.closed = true
	if !was {
		close(p.done)
	}
	p.drop()
	p.mu.Unlock()
	err := p.listener.Close()
	p.tasks.Wait()
	if was || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (p *Proxy) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.change)
	p.change = make(chan struct{})
}

// drop closes all connections, as a reset. The caller holds p.mu.
func (p *Proxy) drop() {
	for c := range p.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
	}
	clear(p.conns)
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.DialTimeout("tcp", p.target, time.Second)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		if p.cut || p.closed {
			p.mu.Unlock()
			_, _ = client.Close(), server.Close()
			continue
		}
		p.conns[client], p.conns[server] = true, true
		p.mu.Unlock()
		p.tasks.Go(func() { p.carry(client, server, true) })
		p.tasks.Go(func() { p.carry(server, client, false) })
	}
}

// parcel is what is on the way, and when it arrives at the earliest.
type parcel struct {
	data []byte
	due  time.Time
}

// onTheWay bounds the parcels of a connection: 16 MiB, more than a long wire holds.
const onTheWay = 512

// carry copies until one side ends, which ends both. A delay is that of a long wire: what is
// sent behind arrives behind, and not later for that.
func (p *Proxy) carry(from, to net.Conn, up bool) {
	wire := make(chan parcel, onTheWay)
	delivered := make(chan struct{})
	go func() {
		defer close(delivered)
		for one := range wire {
			if !p.deliver(one, to, up) {
				_ = from.Close()
				for range wire { // whoever reads from is about to notice
				}
				return
			}
		}
	}()
	for {
		buf := make([]byte, 32<<10)
		n, err := from.Read(buf)
		if n > 0 {
			p.mu.Lock()
			delay := p.delay
			p.mu.Unlock()
			wire <- parcel{buf[:n], time.Now().Add(delay)}
		}
		if err != nil {
			break
		}
	}
	close(wire)
	<-delivered
	p.mu.Lock()
	delete(p.conns, from)
	delete(p.conns, to)
	p.mu.Unlock()
	_, _ = from.Close(), to.Close()
}

// deliver writes one parcel when it is due; false ends its connection.
func (p *Proxy) deliver(one parcel, to net.Conn, up bool) bool {
	data := one.data
	if up {
		data = p.spend(data)
	}
	if !p.hold(time.Until(one.due)) {
		return false
	}
	if !up && p.isDeaf() {
		return true
	}
	if _, err := to.Write(data); err != nil {
		return false
	}
	if len(data) < len(one.data) {
		p.Cut()
		return false
	}
	return true
}

func (p *Proxy) isDeaf() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.deaf
}

// spend returns what the budget allows of data.
func (p *Proxy) spend(data []byte) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.budget < 0 {
		return data
	}
	n := min(int64(len(data)), p.budget)
	p.budget -= n
	return data[:n]
}

// hold waits out delay and stall; false when the proxy ends.
func (p *Proxy) hold(delay time.Duration) bool {
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-p.done:
			return false
		}
	}
	for {
		p.mu.Lock()
		stall, change := p.stall, p.change
		p.mu.Unlock()
		if !stall {
			return true
		}
		select {
		case <-change:
		case <-p.done:
			return false
		}
	}
}
