package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pbxmesh"
)

// recorder is a Publisher that keeps the protocol's rules in the simplest way
// and fails on demand.
type recorder struct {
	mu       sync.Mutex
	fail     []error // of the next calls to Publish and Append, whether they were done or not
	apply    bool    // failing appends are done all the same
	term     uint64
	seq      uint64
	records  map[string]Record
	digests  Digests
	batches  []Batch
	leases   []Lease
	told     []Announcement
	left     int
	renewErr error
}

func (p *recorder) next() error {
	if len(p.fail) == 0 {
		return nil
	}
	err := p.fail[0]
	p.fail = p.fail[1:]
	return err
}

func (p *recorder) Publish(_ context.Context, x Publication) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.next(); err != nil {
		return 0, err
	}
	p.term, p.seq, p.records, p.digests = max(p.term+1, x.Term), 1, map[string]Record{}, x.Digests
	for _, r := range x.Records {
		p.records[r.Key] = r
	}
	return p.term, nil
}

func (p *recorder) Append(_ context.Context, b Batch) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.next()
	if err != nil && !p.apply {
		return err
	}
	if b.Term != p.term || b.Prev > p.seq || b.Seq <= p.seq {
		return fmt.Errorf("%w: batch %d-%d after %d at %d-%d", ErrLost, b.Term, b.Seq, b.Prev, p.term, p.seq)
	}
	p.seq, p.digests = b.Seq, b.Digests
	for _, r := range b.Records {
		if r.Tombstone() {
			delete(p.records, r.Key)
		} else {
			p.records[r.Key] = r
		}
	}
	p.batches = append(p.batches, b)
	return err
}

func (p *recorder) Renew(_ context.Context, l Lease) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leases = append(p.leases, l)
	return p.renewErr
}

func (p *recorder) Snapshot(_ context.Context, node pbxmesh.NodeID, each func(Record)) (SnapshotInfo, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.term == 0 {
		return SnapshotInfo{}, ErrNoNode
	}
	for _, r := range p.records {
		each(r)
	}
	return SnapshotInfo{Cursor: Cursor{Node: node, Term: p.term, Seq: p.seq}}, nil
}

func (p *recorder) Changes(context.Context, []Cursor) ([]Batch, error) { return nil, nil }

func (p *recorder) Leave(context.Context, Lease) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left++
	return nil
}

func (p *recorder) Announce(_ context.Context, a Announcement) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = append(p.told, a)
	return nil
}

// check compares what was published with what the writer holds, digest included.
func (p *recorder) check(t *testing.T, w *Writer) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	digest := Digests{}
	for _, r := range p.records {
		digest.add(r.Kind, r.hash())
		if o := w.records[recordKey(r.Kind, r.Key)]; o == nil || o.rec.Value != r.Value && (o.heldFor == 0 || !sameButExpiry(o.rec.Value, r.Value)) {
			t.Errorf("the store holds %s, the writer %v", r.Key, o)
		}
	}
	held := 0
	for _, o := range w.records {
		if o.heldFor != 0 {
			held++
		}
	}
	if w.held.count != held || w.held.entries < held || w.held.entries > 2*held+2048 {
		t.Errorf("%d refreshes are held back, %d are counted in %d entries", held, w.held.count, w.held.entries)
	}
	if len(w.records) != len(p.records) || len(w.queue) != 0 || w.full {
		t.Errorf("the writer holds %d records, %d wait; the store holds %d", len(w.records), len(w.queue), len(p.records))
	}
	if digest[KindRegistration] != p.digests[KindRegistration] || digest[KindRegistration] != w.digests[KindRegistration] {
		t.Errorf("the records add up to %v; published %v, kept %v", digest, p.digests, w.digests)
	}
}

// writer returns a writer that runs in the bubble of a synctest.
func writer(t *testing.T, p *recorder, o WriterOptions) *Writer {
	t.Helper()
	o.Node, o.Backend, o.Replica = pbxmesh.Node{ID: "buffalo"}, p, NewReplica(ReplicaOptions{Local: "buffalo"})
	w, err := NewWriter(o)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- w.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := errors.Join(w.Close(), w.Close(), <-done); err != nil {
			t.Error(err)
		}
	})
	return w
}

// settle waits longer than every backoff.
func settle() {
	time.Sleep(5 * time.Second)
	synctest.Wait()
}

func TestWriterPublishesChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &recorder{}
		w := writer(t, p, WriterOptions{BatchSize: 10})
		settle()
		if p.term != 0 || len(p.leases) == 0 || p.leases[0].Term != 0 {
			t.Errorf("before the switch was read: term %d, leases %+v", p.term, p.leases)
		}
		live := time.Now().Add(time.Hour)
		w.Put(device(t, "buffalo", 0, live)) // heard before the snapshot
		w.Reset("core-1", []pbxmesh.Registration{device(t, "buffalo", 0, live), device(t, "buffalo", 1, live)})
		settle()
		p.check(t, w)
		for n := range 25 {
			w.Put(device(t, "buffalo", n, live.Add(time.Minute)))
		}
		gone := device(t, "buffalo", 1, live)
		w.Remove(gone.ID())
		w.Remove(gone.ID())
		settle()
		p.check(t, w)
		if len(p.batches) != 3 || len(p.records) != 24 {
			t.Errorf("%d batches, %d records; want 3 of at most 10, and 24", len(p.batches), len(p.records))
		}
		// A refresh that changes nothing costs nothing.
		w.Put(device(t, "buffalo", 5, live.Add(time.Minute)))
		settle()
		if len(p.batches) != 3 {
			t.Errorf("%d batches", len(p.batches))
		}
		if s := w.Status(); s.Err != nil || s.Pending != 0 || s.Records != 24 || s.Publications != 1 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestWriterSurvivesErrors(t *testing.T) {
	t.Parallel()
	away := fmt.Errorf("%w: test", pbxmesh.ErrUnavailable)
	for name, test := range map[string]struct {
		fail         []error
		apply        bool
		publications int64
	}{
		"not done":             {[]error{away, away, away}, false, 1},
		"done, but not heard":  {[]error{away, away, away}, true, 1},
		"lost":                 {[]error{ErrLost}, false, 2},
		"lost after away":      {[]error{away, ErrLost, away}, false, 2},
		"fenced for a while":   {[]error{ErrFenced, ErrFenced}, false, 2},
		"done, then it's lost": {[]error{away, ErrLost}, true, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &recorder{}
				w := writer(t, p, WriterOptions{BatchSize: 10})
				live := time.Now().Add(time.Hour)
				w.Reset("core-1", []pbxmesh.Registration{device(t, "buffalo", 0, live), device(t, "buffalo", 1, live)})
				settle()
				p.mu.Lock()
				p.fail, p.apply = test.fail, test.apply
				p.mu.Unlock()
				for n := range 15 {
					w.Put(device(t, "buffalo", n, live.Add(time.Minute)))
				}
				time.Sleep(20 * time.Millisecond) // the first attempts have failed
				for n := range 5 {                // and what they carried changes
					reg := device(t, "buffalo", n, live)
					w.Remove(reg.ID())
				}
				w.Put(device(t, "buffalo", 3, live.Add(2*time.Minute)))
				time.Sleep(30 * time.Second)
				synctest.Wait()
				p.check(t, w)
				if s := w.Status(); s.Err != nil || s.Publications != test.publications {
					t.Errorf("status %+v, want %d publications", s, test.publications)
				}
			})
		})
	}
}

func TestWriterRenews(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &recorder{}
		w := writer(t, p, WriterOptions{})
		w.Reset("core-1", nil)
		settle()
		p.mu.Lock()
		p.leases = nil
		p.mu.Unlock()
		time.Sleep(60 * time.Second)
		synctest.Wait()
		p.mu.Lock()
		if n := len(p.leases); n < 54 || n > 67 {
			t.Errorf("%d renewals in a minute", n)
		}
		last := p.leases[len(p.leases)-1]
		if last.Term != p.term || last.Seq != 1 || last.TTL != 5*time.Second || last.Epoch != "core-1" || last.Validate() != nil {
			t.Errorf("lease %+v", last)
		}
		if n := len(p.told); n < 2 || n > 5 { // now and then, in case the members were lost
			t.Errorf("announced %d times", n)
		}
		p.leases = nil
		p.mu.Unlock()
		w.SetSwitch(SwitchState{Alive: true, Sessions: -1, IdleCPU: 400})
		synctest.Wait()
		p.mu.Lock()
		if len(p.leases) != 1 || !p.leases[0].Switch.Alive || p.leases[0].Validate() != nil {
			t.Errorf("a switch that came alive is told by %+v", p.leases)
		}
		p.renewErr = fmt.Errorf("%w: test", ErrLost)
		p.mu.Unlock()
		publications := w.Status().Publications
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		p.mu.Lock()
		p.renewErr = nil
		p.mu.Unlock()
		if n := w.Status().Publications; n == publications {
			t.Error("a store that lost the records was not filled again")
		}
		settle()
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if p.left != 1 || !p.told[len(p.told)-1].Left {
			t.Errorf("left %d times, last announcement %+v", p.left, p.told[len(p.told)-1])
		}
	})
}

func TestWriterBounds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &recorder{}
		w := writer(t, p, WriterOptions{MaxRecords: 100, MaxPending: 20})
		live := time.Now().Add(time.Hour)
		w.Reset("core-1", nil)
		settle()
		other := device(t, "buffalo", 1, live)
		other.Node = "london"
		w.Put(other)
		w.Put(pbxmesh.Registration{})
		odd := device(t, "buffalo", 1, live)
		odd.Transport = "xyz"
		w.Put(odd)
		if s := w.Status(); s.Refused != 3 || s.Records != 0 {
			t.Errorf("status %+v, want 3 refused", s)
		}
		for n := range 150 {
			w.Put(device(t, "buffalo", n, live))
		}
		settle()
		p.check(t, w)
		if s := w.Status(); s.Refused != 53 || s.Records != 100 || s.Publications != 2 {
			t.Errorf("status %+v, want 50 more refused, and a second publication for more than 20 changes at once", s)
		}
		if n := w.o.Replica.Stats().Registrations; n != 100 {
			t.Errorf("the local replica holds %d", n)
		}
	})
}

func TestWriterSweeps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &recorder{}
		w := writer(t, p, WriterOptions{})
		now := time.Now()
		w.Reset("core-1", []pbxmesh.Registration{device(t, "buffalo", 0, now.Add(time.Minute)), device(t, "buffalo", 1, now.Add(time.Hour))})
		time.Sleep(4 * time.Minute)
		if s := w.Status(); s.Records != 2 {
			t.Errorf("swept too early: %+v", s)
		}
		time.Sleep(4 * time.Minute)
		synctest.Wait()
		p.check(t, w)
		if s := w.Status(); s.Records != 1 || s.Swept != 1 || w.o.Replica.Stats().Registrations != 1 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestWriterOptions(t *testing.T) {
	t.Parallel()
	good := func() WriterOptions {
		return WriterOptions{Node: pbxmesh.Node{ID: "buffalo"}, Backend: &recorder{}, Replica: NewReplica(ReplicaOptions{Local: "buffalo"})}
	}
	if _, err := NewWriter(good()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*WriterOptions){
		"no backend":     func(o *WriterOptions) { o.Backend = nil },
		"no replica":     func(o *WriterOptions) { o.Replica = nil },
		"other node":     func(o *WriterOptions) { o.Node.ID = "london" },
		"renews rarely":  func(o *WriterOptions) { o.LeaseTTL, o.RenewEvery = time.Second, time.Second },
		"odd software":   func(o *WriterOptions) { o.Node.Software = "a\nb" },
		"no such node":   func(o *WriterOptions) { o.Node.ID = "" },
		"IPv6 mesh side": func(o *WriterOptions) { o.Node.Mesh = mustAddrPort("[2001:db8::1]:5090") },
	} {
		o := good()
		change(&o)
		if _, err := NewWriter(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	w, err := NewWriter(good())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Errorf("closing what never ran: %v", err)
	}
	if err := w.Run(t.Context()); err == nil {
		t.Error("ran after Close")
	}
}

// A Call-ID that no record can say (RFC 3261 section 25.1 allows no such byte, the switch
// takes it): that phone is known here and nowhere else, counted, and named once.
func TestWriterKeepsOddCallIDs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &recorder{}
		var log bytes.Buffer
		w := writer(t, p, WriterOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		live := time.Now().Add(time.Hour)
		odd, other, good := device(t, "buffalo", 0, live), device(t, "buffalo", 1, live), device(t, "buffalo", 2, live)
		odd.CallID, other.CallID = "x\xff\xfe@h", "\x80"
		here := func(reg pbxmesh.Registration) int {
			n := 0
			for _, r := range w.o.Replica.Lookup(reg.AOR) {
				if r.CallID == reg.CallID {
					n++
				}
			}
			return n
		}
		w.Reset("core-1", []pbxmesh.Registration{odd, good})
		for range 20 {
			w.Put(odd)
		}
		w.Put(other)
		settle()
		p.check(t, w)
		if s := w.Status(); s.Unpublished != 2 || s.Records != 1 || s.Refused != 0 || s.Publications != 1 || here(odd) != 1 || here(other) != 1 {
			t.Errorf("status %+v, here %d and %d", s, here(odd), here(other))
		}
		w.Remove(other.ID())
		w.Reset("core-1", []pbxmesh.Registration{odd, good}) // the switch still has it
		if s := w.Status(); s.Unpublished != 1 || here(odd) != 1 || here(other) != 0 {
			t.Errorf("status %+v, here %d and %d", s, here(odd), here(other))
		}
		w.Reset("core-1", []pbxmesh.Registration{good})
		if s := w.Status(); s.Unpublished != 0 || here(odd) != 0 {
			t.Errorf("status %+v, here %d", s, here(odd))
		}
		w.Put(odd)
		w.Reset("core-2", []pbxmesh.Registration{odd, good}) // another life of the switch
		if here(odd) != 1 {
			t.Errorf("after a restart it is here %d times", here(odd))
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if s := w.Status(); s.Unpublished != 0 || here(odd) != 0 || s.Records != 0 {
			t.Errorf("long after the expiry: status %+v, here %d", s, here(odd))
		}
		if n := strings.Count(log.String(), "rings on its own node only"); n != 3 { // each time that it came
			t.Errorf("named %d times:\n%s", n, log.String())
		}
	})
}
