package registry

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pbxmesh"
)

// expiry is what the store says of device n.
func (p *recorder) expiry(t *testing.T, n int) time.Time {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	want := device(t, "buffalo", n, time.Now())
	for _, rec := range p.records {
		if rec.Key == RegistrationKey(want.ID()) {
			reg, err := decodeRegistration("buffalo", &rec)
			if err != nil {
				t.Fatal(err)
			}
			return reg.Expires
		}
	}
	t.Fatalf("the store does not hold device %d", n)
	return time.Time{}
}

// What moves nothing but the expiry waits until it matters; everything else does not.
func TestRefreshesAreHeldBack(t *testing.T) {
	t.Parallel()
	const hour = time.Hour
	for name, test := range map[string]struct {
		lifetime, after time.Duration
		change          func(*pbxmesh.Registration)
		held            bool
	}{
		"the expiry moves on":           {hour, time.Minute, func(*pbxmesh.Registration) {}, true},
		"just before half of it":        {hour, 29 * time.Minute, func(*pbxmesh.Registration) {}, true},
		"after two thirds":              {hour, 41 * time.Minute, func(*pbxmesh.Registration) {}, false},
		"a lifetime of 20 s":            {20 * time.Second, 5 * time.Second, func(*pbxmesh.Registration) {}, false},
		"nine seconds are left":         {time.Minute, 51 * time.Second, func(*pbxmesh.Registration) {}, false},
		"the contact changes":           {hour, time.Minute, func(r *pbxmesh.Registration) { r.Contact = "sip:x@192.0.2.1" }, false},
		"a contact like an expiry":      {hour, time.Minute, func(r *pbxmesh.Registration) { r.UserAgent = `","x":1}` }, false},
		"the source changes":            {hour, time.Minute, func(r *pbxmesh.Registration) { r.Source = mustAddrPort("192.0.2.1:5060") }, false},
		"the expiry comes nearer":       {hour, time.Minute, func(r *pbxmesh.Registration) { r.Expires = r.Expires.Add(-2 * time.Minute) }, false},
		"nothing changes, to the bound": {hour, time.Minute, func(r *pbxmesh.Registration) { r.Expires = r.Expires.Add(-time.Minute) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &recorder{}
				w := writer(t, p, WriterOptions{})
				reg := device(t, "buffalo", 0, time.Now().Add(test.lifetime))
				w.Reset("core", []pbxmesh.Registration{reg})
				synctest.Wait()
				time.Sleep(test.after)
				old := reg.Expires
				reg.Expires = time.Now().Add(test.lifetime)
				test.change(&reg)
				w.Put(reg)
				if got := w.o.Replica.Lookup(reg.AOR); len(got) != 1 || !got[0].Expires.Equal(reg.Expires) {
					t.Errorf("the local replica holds %+v, want %+v", got, reg)
				}
				time.Sleep(3 * time.Second)
				synctest.Wait()
				want := reg.Expires
				if test.held {
					want = old
				}
				if got := p.expiry(t, 0); !got.Equal(want) {
					t.Errorf("the store says %s, want %s", got, want)
				}
				p.check(t, w)
				if s := w.Status(); (s.Held == 1) != test.held {
					t.Errorf("held back: %+v", s)
				}
			})
		})
	}
}

// What is held back goes out when it is due, at a full publication, and when the
// daemon ends.
func TestHeldBackGoesOut(t *testing.T) {
	t.Parallel()
	for name, out := range map[string]func(w *Writer, p *recorder){
		"when it is due": func(*Writer, *recorder) { time.Sleep(31 * time.Minute) },
		"with everything": func(w *Writer, p *recorder) {
			p.mu.Lock()
			p.fail = []error{ErrLost}
			p.mu.Unlock()
			w.Put(device(&testing.T{}, "buffalo", 99, time.Now().Add(time.Hour)))
			time.Sleep(time.Second)
		},
		"at the end": func(w *Writer, _ *recorder) { _ = w.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &recorder{}
				w := writer(t, p, WriterOptions{})
				w.Reset("core", []pbxmesh.Registration{device(t, "buffalo", 0, time.Now().Add(time.Hour))})
				synctest.Wait()
				time.Sleep(10 * time.Minute)
				reg := device(t, "buffalo", 0, time.Now().Add(time.Hour))
				w.Put(reg)
				time.Sleep(time.Second)
				if p.expiry(t, 0).Equal(reg.Expires) {
					t.Fatal("it was not held back")
				}
				out(w, p)
				synctest.Wait()
				if got := p.expiry(t, 0); !got.Equal(reg.Expires) {
					t.Errorf("the store says %s, want %s", got, reg.Expires)
				}
				if s := w.Status(); s.Held != 0 {
					t.Errorf("status %+v", s)
				}
			})
		})
	}
}

// A storm of registrations costs nothing downstream while it lasts, and no more than
// usual later; what remembers it stays bounded.
func TestReRegistrationStorm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const phones, lifetime = 2000, time.Hour
		p := &recorder{}
		w := writer(t, p, WriterOptions{})
		regs := make([]pbxmesh.Registration, phones)
		for n := range regs {
			regs[n] = device(t, "buffalo", n, time.Now().Add(lifetime))
		}
		w.Reset("core", regs)
		time.Sleep(10 * time.Minute)
		storm := func(rounds int) {
			for range rounds {
				for n := range regs {
					regs[n].Expires = time.Now().Add(lifetime)
					w.Put(regs[n])
					if n%100 == 0 {
						time.Sleep(time.Minute / (phones / 100))
					}
				}
			}
			synctest.Wait()
		}
		storm(3)
		if s := w.Status(); s.Changes != 0 || s.Held != phones || s.HeldBack != 3*phones {
			t.Fatalf("while it lasts: %+v", s)
		}
		// Later they go out one by one, at most as many as fit a third of ten minutes.
		before, most := int64(0), int64(0)
		for range 60 {
			time.Sleep(time.Minute)
			now := w.Status().Changes
			most, before = max(most, now-before), now
		}
		if s := w.Status(); s.Changes != phones || s.Held != 0 || most > phones/6 {
			t.Errorf("in the hour after it: %+v, %d in one minute at most", s, most)
		}
		p.check(t, w)
		// A phone that changes and comes back all the time is remembered once.
		for n := range 6_000 {
			regs[0].UserAgent = fmt.Sprint("phone ", n%2)
			w.Put(regs[0])
			synctest.Wait()
			time.Sleep(20 * time.Millisecond)
			regs[0].Expires = regs[0].Expires.Add(time.Second)
			w.Put(regs[0])
		}
		p.check(t, w)
	})
}
