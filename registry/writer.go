package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"pbxmesh"
)

// WriterOptions configure a Writer. Replica, Backend and Node.ID are required;
// zero means the default everywhere else.
type WriterOptions struct {
	// Node is what the node announces about itself. Its ID is the replica's Local.
	Node pbxmesh.Node

	Replica *Replica
	Backend interface {
		Publisher
		Records
	}

	// Owner tells others whose the lease is; default: the host name. While another
	// daemon holds the node's lease, this one does not publish.
	Owner string

	// Lock is the ID of the NodeLock that the caller holds for as long as the writer
	// runs: a lease that was written under the same one is of a former life of this
	// daemon, and is taken over at once. Without one a lease has to end.
	Lock string

	LeaseTTL   time.Duration // default 5 s
	RenewEvery time.Duration // default 1 s, jittered by a tenth; at most half of LeaseTTL

	// Linger is how long a change waits for others to travel with. Default 5 ms.
	Linger    time.Duration
	BatchSize int // records per batch, default 128, at most MaxBatch

	Timeout        time.Duration // of one append or renewal, default 2 s
	PublishTimeout time.Duration // of one full publication, default 1 min
	BackoffMax     time.Duration // between attempts after errors, default 2 s; they start at 50 ms

	// MaxRecords bounds what the switch may tell us; a Put beyond it is refused,
	// counted and logged. Default 1,000,000.
	MaxRecords int
	// MaxPending bounds the changes that wait for the store; beyond it they are
	// dropped and everything is published anew instead. Default 65,536.
	MaxPending int

	// EveryRefresh publishes refreshes that move nothing but the expiry at once,
	// instead of holding them back until they matter. For comparison.
	EveryRefresh bool

	// SweepAfter is how long after its expiry a record is removed that the switch
	// never reported as ended. Default 5 min.
	SweepAfter time.Duration

	// CheckEvery is how often all records of the node are read back from the store,
	// jittered by a tenth: what others changed there is published again. It costs
	// some 300 bytes for a record. Default 30 min.
	CheckEvery time.Duration

	Now    func() time.Time
	Logger *slog.Logger // nil discards
}

func (o *WriterOptions) setDefaults() error {
	if o.Replica == nil || o.Backend == nil {
		return errors.New("registry writer: no replica or no backend")
	}
	if o.Replica.Local() != o.Node.ID {
		return fmt.Errorf("registry writer: node %q, but the replica is of node %q", o.Node.ID, o.Replica.Local())
	}
	if err := (&Announcement{Node: o.Node}).Validate(); err != nil {
		return fmt.Errorf("registry writer: %w", err)
	}
	if o.Owner == "" {
		if o.Owner, _ = os.Hostname(); !printable(o.Owner) || len(o.Owner) > MaxNameLen {
			o.Owner = "unnamed"
		}
	}
	if len(o.Lock) > maxLockLen || !printable(o.Lock) || strings.Contains(o.Lock, ".") {
		return fmt.Errorf("registry writer: %s is no ID of a lock", show(o.Lock))
	}
	setDefault(&o.LeaseTTL, 5*time.Second)
	setDefault(&o.RenewEvery, min(time.Second, o.LeaseTTL/2))
	setDefault(&o.Linger, 5*time.Millisecond)
	setDefault(&o.BatchSize, 128)
	setDefault(&o.Timeout, 2*time.Second)
	setDefault(&o.PublishTimeout, time.Minute)
	setDefault(&o.BackoffMax, 2*time.Second)
	setDefault(&o.MaxRecords, 1_000_000)
	setDefault(&o.MaxPending, 65_536)
	setDefault(&o.SweepAfter, 5*time.Minute)
	setDefault(&o.CheckEvery, 30*time.Minute)
	o.BatchSize = min(o.BatchSize, MaxBatch)
	if o.RenewEvery*2 > o.LeaseTTL {
		return fmt.Errorf("registry writer: a lease of %s renewed every %s: one lost renewal would end it", o.LeaseTTL, o.RenewEvery)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Logger = logger(o.Logger, "registry.writer")
	return nil
}

// Writer publishes the local node's registrations. Reset, Put and Remove apply to
// the local replica at once and return without waiting for the store; Run
// carries them there. All methods are for concurrent use.
type Writer struct {
	o        WriterOptions
	instance string

	wake chan struct{} // changes are waiting; capacity 1
	beat chan struct{} // renew the lease now; capacity 1

	// renewing is held during a renewal and while a publication begins, so that
	// no renewal under the old term meets the new one in the store.
	renewing sync.Mutex

	mu      sync.Mutex // guards everything below
	ready   bool       // the switch was read once
	epoch   string
	records map[string]*own // by kind, NUL, key
	// unpublished are registrations that no record can say: they are known here
	// only, until they expire at the time given.
	unpublished map[pbxmesh.RegistrationID]time.Time
	queue       []*own   // dirty ones, oldest change first
	held        heldBack // refreshes that are not worth publishing yet
	full        bool     // everything must be published
	term        uint64   // 0: nothing published, or a publication is under way
	maxTerm     uint64   // highest term ever used
	seq         uint64   // highest sequence known to be in the store
	tried       uint64   // highest sequence that may be in the store
	digests     Digests  // of what is published
	// fenced is until when nothing is tried: by then whoever took the node over
	// has renewed its lease, or does not exist any more.
	fenced time.Time
	// former begins the names of this daemon's former instances. "" without a lock, and
	// from its own first lease on: whoever has one afterwards is another daemon.
	former  string
	over    string    // the former instance whose lease may be replaced; see Lease.Over
	refused time.Time // since when others hold the node; zero: they do not
	rival   bool      // the log says that another daemon lives
	beats   uint64
	lease   SwitchState
	node    pbxmesh.Node
	told    bool // the announcement is in the store
	status  WriterStatus

	cancel  context.CancelFunc // of Run, nil before it
	done    chan struct{}
	started bool
	closed  bool
}

// own is a record of this node on its way to the store.
type own struct {
	rec     Record // without sequence; no value: it ended
	expires time.Time
	id      pbxmesh.RegistrationID
	version uint64 // grows with every change
	dirty   bool   // stands in queue
	pubHash uint64 // its share of the published digest
	pubSeq  uint64 // of the batch that brought it
	pub     bool   // the store holds a value of it

	// Of the hold: see heldBack. Times are Unix milliseconds of this daemon's clock.
	set       int64 // when the switch told expires
	pubExpiry int64 // what the store says of the expiry
	due       int64 // from when on a refresh is worth publishing
	heldFor   int64 // the second that it is held for; 0: it is not held
}

// WriterStatus is how publishing goes.
type WriterStatus struct {
	Ready   bool // the switch was read once
	Records int  // of this node
	// Unpublished counts registrations that no record can say, because their Call-ID
	// holds bytes that are no UTF-8: they ring on their own node only.
	Unpublished int
	Pending     int // changes not yet in the store
	Term, Seq   uint64
	Published   time.Time // last write that the store confirmed
	Err         error     // of the last attempt; nil when it succeeded. ErrFenced: another daemon owns the node

	Batches, Publications, Refused, Swept, Errors int64

	Foreign int64 // entries found in the store that this node never published

	// Held counts the refreshes that wait because they only move the expiry, HeldBack
	// all that ever did, and Changes the records that went out in batches.
	Held              int
	HeldBack, Changes int64
}

// NewWriter returns a writer that does nothing until Run.
func NewWriter(o WriterOptions) (*Writer, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	w := &Writer{
		o: o, node: o.Node,
		wake: make(chan struct{}, 1), beat: make(chan struct{}, 1),
		records: make(map[string]*own), unpublished: make(map[pbxmesh.RegistrationID]time.Time), digests: Digests{}, done: make(chan struct{}),
		held: heldBack{seconds: make(map[int64][]*own)},
	}
	if o.Lock != "" {
		w.former = o.Lock + "."
	}
	w.instance = w.former + rand.Text()
	o.Replica.announce(&Announcement{Node: o.Node})
	return w, nil
}

// Reset says that the switch was read and holds exactly regs. A new epoch (the
// switch was restarted) makes everything published before void; within an epoch
// only the differences are published.
func (w *Writer) Reset(epoch string, regs []pbxmesh.Registration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(epoch) > MaxNameLen || !printable(epoch) {
		epoch = "invalid"
	}
	keep, here := make(map[string]bool, len(regs)), map[pbxmesh.RegistrationID]bool{}
	for i := range regs {
		reg := regs[i]
		w.stamp(&reg)
		if key, ok := w.put(&reg); ok {
			keep[key] = true
		} else {
			here[reg.ID()] = true
		}
	}
	for key, o := range w.records {
		if !keep[key] && !o.rec.Tombstone() {
			w.remove(key, o)
		}
	}
	for id := range w.unpublished {
		if !here[id] {
			w.removeUnpublished(id)
		}
	}
	if !w.ready || epoch != w.epoch {
		w.o.Logger.Info("the switch was read", "node", w.node.ID, "epoch", epoch, "old_epoch", w.epoch, "registrations", len(keep))
		w.ready, w.epoch = true, epoch
		w.dirtyAll()
		w.o.Replica.setLocalEpoch(w.node.ID, epoch)
		// What the state file brought, and the switch does not have.
		w.o.Replica.keepLocal(w.node.ID, func(reg *pbxmesh.Registration) bool {
			_, known := w.unpublished[reg.ID()]
			return known || keep[recordKey(KindRegistration, RegistrationKey(reg.ID()))]
		})
		notify(w.beat)
	}
	w.status.Ready = true
	notify(w.wake)
}

// Put says that reg was registered or refreshed. Of several changes to one
// registration that wait for the store, the last one goes there. An invalid
// registration, one of another node, and one beyond MaxRecords is refused,
// counted and logged. A valid one that no record can say, because its Call-ID holds
// bytes that are no UTF-8, is known to the local replica only, counted and named. reg.Since is when the REGISTER was heard, unknown for one that was
// found in the switch's table; see stamp.
func (w *Writer) Put(reg pbxmesh.Registration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stamp(&reg)
	w.put(&reg)
	notify(w.wake)
}

// PutBack is Put for a registration that was taken out of the switch and is there again:
// it keeps the stamp that it had.
func (w *Writer) PutBack(reg pbxmesh.Registration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.put(&reg)
	notify(w.wake)
}

// Remove says that the registration ended. Removing what is not there is fine.
func (w *Writer) Remove(id pbxmesh.RegistrationID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if key := recordKey(KindRegistration, RegistrationKey(id)); w.records[key] != nil {
		w.remove(key, w.records[key])
		notify(w.wake)
	} else {
		w.removeUnpublished(id) // or it may come from the state file
	}
}

// SetSwitch takes over the switch's state, which travels with the lease. A change
// of Alive or Dead is published at once, everything else at the next renewal.
func (w *Writer) SetSwitch(s SwitchState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.Sessions, s.MaxSessions = max(0, s.Sessions), max(0, s.MaxSessions)
	if !(s.IdleCPU >= 0 && s.IdleCPU <= 100) { // NaN too
		s.IdleCPU = 0
	}
	changed := s.Alive != w.lease.Alive || s.Dead != w.lease.Dead
	w.lease = s
	if changed {
		notify(w.beat)
	}
}

// SetSoftware changes what the node announces as its software.
func (w *Writer) SetSoftware(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if name == w.node.Software || len(name) > MaxNameLen || !printable(name) {
		return
	}
	w.node.Software, w.told = name, false
	w.o.Replica.announce(&Announcement{Node: w.node})
	notify(w.beat)
}

// Status returns how publishing goes.
func (w *Writer) Status() WriterStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.status
	s.Records, s.Pending, s.Term, s.Seq, s.Held = len(w.records), len(w.queue), w.term, w.seq, w.held.count
	s.Unpublished = len(w.unpublished)
	if w.full {
		s.Pending = len(w.records)
	}
	return s
}

// put takes reg over and returns its key. The caller holds w.mu.
func (w *Writer) put(reg *pbxmesh.Registration) (string, bool) {
	var rec Record
	err := fmt.Errorf("%w: of node %s", pbxmesh.ErrInvalidRecord, show(string(reg.Node)))
	if reg.Node == w.node.ID {
		rec, err = EncodeRegistration(reg)
	}
	if err != nil {
		if reg.Node == w.node.ID && reg.Validate() == nil && !utf8.ValidString(reg.CallID) {
			w.putUnpublished(reg, err)
		} else {
			w.refuse(err)
		}
		return "", false
	}
	key := recordKey(rec.Kind, rec.Key)
	o := w.records[key]
	if o == nil {
		if len(w.records)+len(w.unpublished) >= w.o.MaxRecords {
			w.refuse(fmt.Errorf("more than %d registrations", w.o.MaxRecords))
			return "", false
		}
		o = &own{id: reg.ID()}
		w.records[key] = o
	}
	w.o.Replica.putLocal(reg)
	if o.rec.Value == rec.Value {
		return key, true // a refresh that changes nothing is no change
	}
	refreshed := sameButExpiry(o.rec.Value, rec.Value)
	o.rec, o.expires, o.set = rec, reg.Expires, w.o.Now().UnixMilli()
	if !refreshed || !w.hold(o) {
		w.mark(o)
	}
	return key, true
}

// putUnpublished makes reg known here, and says once why nobody else hears of it. The
// caller holds w.mu.
func (w *Writer) putUnpublished(reg *pbxmesh.Registration, why error) {
	id := reg.ID()
	if _, known := w.unpublished[id]; !known {
		if len(w.records)+len(w.unpublished) >= w.o.MaxRecords {
			w.refuse(fmt.Errorf("more than %d registrations", w.o.MaxRecords))
			return
		}
		w.o.Logger.Warn("a registration cannot be told to other nodes: it rings on its own node only",
			"node", w.node.ID, "aor", reg.AOR, "user_agent", strconv.QuoteToASCII(reg.UserAgent), "err", why)
	}
	w.unpublished[id] = reg.Expires
	w.o.Replica.putLocal(reg)
}

// removeUnpublished ends a registration that no record tells of. The caller holds w.mu.
func (w *Writer) removeUnpublished(id pbxmesh.RegistrationID) {
	delete(w.unpublished, id)
	w.o.Replica.removeLocal(w.node.ID, id)
}

// remove turns o into a tombstone. The caller holds w.mu.
func (w *Writer) remove(key string, o *own) {
	w.o.Replica.removeLocal(w.node.ID, o.id)
	if o.rec.Tombstone() {
		return
	}
	o.rec.Value = ""
	if w.full { // everything goes anyway, and what is not there needs no tombstone
		delete(w.records, key)
		return
	}
	w.mark(o)
}

// mark queues o for the next batch. The caller holds w.mu.
func (w *Writer) mark(o *own) {
	o.version++
	w.held.drop(o)
	if o.dirty || w.full || !w.ready {
		return
	}
	if len(w.queue) >= w.o.MaxPending {
		w.o.Logger.Warn("too many changes wait for the store: everything will be published anew", "node", w.node.ID, "waiting", len(w.queue))
		w.dirtyAll()
		return
	}
	o.dirty = true
	w.queue = append(w.queue, o)
}

// dirtyAll asks for a full publication instead of single changes. The caller
// holds w.mu.
func (w *Writer) dirtyAll() {
	w.full = true
	w.queue = nil
	w.held.clear()
	for key, o := range w.records {
		o.dirty, o.heldFor = false, 0
		if o.rec.Tombstone() {
			delete(w.records, key)
		}
	}
}

func (w *Writer) refuse(err error) {
	w.status.Refused++
	if w.status.Refused&(w.status.Refused-1) == 0 { // the 1st, 2nd, 4th, 8th ...: a flood does not fill the log
		w.o.Logger.Warn("registration refused", "node", w.node.ID, "err", err, "refused", w.status.Refused)
	}
}

func recordKey(k Kind, key string) string { return string(k) + "\x00" + key }

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func logger(l *slog.Logger, component string) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l.With("component", component)
}
