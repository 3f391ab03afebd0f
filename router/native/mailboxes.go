package native

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// Defaults and bounds of Mailboxes.
const (
	DefaultMailboxTTL = 10 * time.Minute

	maxMailboxTTL = time.Hour

	maxMailboxes = 100_000 // of other nodes; more are left out and counted

	// askEvery paces the questions to the local voicemail: some 50 a second.
	askEvery = 20 * time.Millisecond

	// queryDelay lets the local voicemail answer a phone first: it knows only its
	// own mailboxes, and ours must be the last word.
	queryDelay = 200 * time.Millisecond
)

// MailboxesOptions say whose messages are told to whom.
type MailboxesOptions struct {
	ESL       esl.Config // of the local switch; OnEvent is ignored
	Local     pbxmesh.NodeID
	Directory Directory // tells who is registered anywhere
	Exchange  Exchange

	// Profiles are the sofia profiles where phones register; "internal" when empty.
	Profiles []string

	// TTL is how long other nodes believe in messages that are not repeated.
	// Repeated at a third of it. DefaultMailboxTTL when 0.
	TTL time.Duration

	// Shared says that all switches keep messages in one place, where their directory
	// does not say so: see storeOf.
	Shared bool

	Logger *slog.Logger
	Dial   Dialer // nil means esl.Dial
}

// MailboxesStats is what listings and metrics show.
type MailboxesStats struct {
	Connected bool   `json:"connected"`
	Error     string `json:"error,omitempty"`

	Told    TellerStats `json:"told"`
	Remote  int         `json:"remote"` // mailboxes of other nodes with messages
	Sent    uint64      `json:"sent"`   // events for local phones
	Dropped uint64      `json:"dropped"`
}

// Mailboxes shows messages that wait in a mailbox of any node to the phones on this one
// that watch it (MWI). Each switch reports its mailboxes. Switches that keep them in
// one store all speak of the same messages: the newest word of any of them holds. What
// different stores hold adds up.
//
// A mailbox need not be a user's: phones subscribe to others, or are told of a group's
// mailbox (mwi-account of their directory entry). So every profile with phones gets the
// event, and mod_sofia finds who watches. The profile is always named: a switch that
// has to guess it from the domain may take the mesh profile for it, whose injected rows
// carry that domain.
//
// An event that we send is seen by everybody on the switch, us included: it
// carries a header of ours and is not taken for news.
type Mailboxes struct {
	opts   MailboxesOptions
	link   link
	log    *slog.Logger
	teller *teller
	wake   chan struct{}

	mu     sync.Mutex
	core   string
	boxes  map[pbxmesh.AOR]*box
	due    map[pbxmesh.AOR]time.Time // whose phones are to be told, and when
	remote int
	order  uint64 // counts the words
	inbox  []localReport
	stats  MailboxesStats

	spellings spellings
	events    order                  // of what the switch says
	domains   map[string]pbxmesh.AOR // a user of each domain, to ask the directory about

	stores map[string]storeAnswer // by domain

	// The local voicemail says nothing by itself after a restart of this daemon, so
	// it is asked once in a session about everybody.
	asked map[pbxmesh.AOR]struct{}
	ask   []pbxmesh.AOR
}

// box is one mailbox, as several nodes know it.
type box struct {
	local  *word // as our switch says; nil when it never did
	told   bool  // the other nodes know local
	remote map[pbxmesh.NodeID]remoteBox
}

// word is what one switch says of a mailbox.
type word struct {
	messages
	from  string // the mailbox in the switch's own spelling
	store string // where the messages are, "" for in the switch alone
	stock bool   // mod_voicemail said so
	order uint64 // the higher one is newer
}

type remoteBox struct {
	word
	run    string
	seq    uint64
	change uint64
	until  time.Time
}

// messages are the counts of RFC 3842 section 5.2, urgent ones included.
type messages struct {
	waiting                bool
	fresh, old             int
	freshUrgent, oldUrgent int
}

// NewMailboxes returns Mailboxes that does nothing before Run.
func NewMailboxes(opts MailboxesOptions) *Mailboxes {
	if opts.TTL <= 0 {
		opts.TTL = DefaultMailboxTTL
	}
	opts.TTL = min(opts.TTL, maxMailboxTTL)
	if len(opts.Profiles) == 0 {
		opts.Profiles = []string{"internal"}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Dial == nil {
		opts.Dial = dialESL
	}
	log := opts.Logger.With("component", "native mailboxes")
	return &Mailboxes{
		opts: opts, log: log,
		link:   link{dial: opts.Dial, cfg: opts.ESL, log: log, what: "mailboxes"},
		teller: newTeller(opts.Exchange, KindMailbox, opts.Local, opts.TTL, log),
		wake:   make(chan struct{}, 1),
		boxes:  make(map[pbxmesh.AOR]*box), due: make(map[pbxmesh.AOR]time.Time),
		spellings: make(spellings), domains: make(map[string]pbxmesh.AOR),
	}
}

// Run works until ctx ends, which is the only error it returns.
func (m *Mailboxes) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { m.teller.publish(ctx) })
	wg.Go(func() { m.teller.follow(ctx, m.hear, m.adopt) })
	wg.Go(func() { m.tick(ctx) })
	m.link.run(ctx, m.onEvent, m.linkState, m.session)
	wg.Wait()
	m.linkState(context.Cause(ctx))
	return context.Cause(ctx)
}

// Changed says that the registrations of aor may have changed: a phone that came
// to this node is told of messages elsewhere.
func (m *Mailboxes) Changed(aor pbxmesh.AOR) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.boxes[aor]; b != nil && len(b.remote) > 0 {
		m.tellAt(aor, time.Now().Add(queryDelay))
	}
	if m.core != "" {
		m.know(aor)
		m.askAbout(aor)
	}
}

// know takes note of a user of its domain; m.mu is held.
func (m *Mailboxes) know(aor pbxmesh.AOR) {
	if _, known := m.domains[aor.Domain()]; !known && len(m.domains) < maxMailboxes {
		m.domains[aor.Domain()] = aor
	}
}

// askAbout queues a question to the local voicemail; m.mu is held.
func (m *Mailboxes) askAbout(aor pbxmesh.AOR) {
	if _, done := m.asked[aor]; done || len(m.asked) >= maxMailboxes || aor.IsZero() {
		return
	}
	m.asked[aor] = struct{}{}
	m.ask = append(m.ask, aor)
	poke(m.wake)
}

// Stats returns the present figures.
func (m *Mailboxes) Stats() MailboxesStats {
	told := m.teller.snapshot()
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.stats
	s.Told, s.Remote = told, m.remote
	return s
}

func (m *Mailboxes) linkState(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats.Connected, m.stats.Error = err == nil, ""
	if err != nil {
		m.stats.Error = err.Error()
	}
}

// storeField and stockField are what a State's fields say besides the counts: the store,
// and that mod_voicemail said so.
const (
	storeField = "store"
	stockField = "stock"
)

// hear takes another node's mailbox.
func (m *Mailboxes) hear(st State) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if st.AOR.IsZero() {
		return
	}
	next := remoteBox{
		word: word{messages: messagesOf(st.Fields), from: m.spelling(st.AOR, st.From), store: clean(st.Fields[storeField])},
		run:  st.Run, seq: st.Seq, change: st.Change, until: now.Add(min(max(st.TTL, minCallTTL), maxMailboxTTL)),
	}
	// An end of a shared mailbox with no messages left is a word like any other; one
	// with messages says only that another node speaks for it now.
	emptied := st.Ended && next.messages == (messages{}) && next.store != ""
	b := m.boxes[st.AOR]
	var old remoteBox
	have := false
	if b != nil {
		old, have = b.remote[st.Node]
	}
	if have && old.run == st.Run && st.Seq <= old.seq || !have && st.Ended && (!emptied || b == nil) {
		return
	}
	if !have && !st.Ended && m.remote >= maxMailboxes {
		m.stats.Dropped++
		return
	}
	if b == nil {
		b = m.box(st.AOR)
	}
	before := b.sum()
	if st.Ended {
		m.dropRemote(b, st.Node)
		if emptied {
			m.dropStore(st.AOR, b, next.store, nil)
		} else if have {
			m.takeOver(st.AOR, b, old.word)
		}
	} else {
		if !have {
			m.remote++
		}
		next.order = old.order
		if !have || old.run != st.Run || old.change != st.Change {
			m.order++
			next.order = m.order
			if next.store != "" {
				m.dropStore(st.AOR, b, next.store, &next.messages)
			}
		}
		b.remote[st.Node] = next
	}
	if b.sum() != before {
		m.tellAt(st.AOR, now)
	}
}

// spelling returns from if it is aor's, else aor in lower case.
func (m *Mailboxes) spelling(aor pbxmesh.AOR, from string) string {
	if key, ok := watched(protoSIP, from); ok && key == userLamp(aor) {
		return bare(from)
	}
	return aor.String()
}

func (m *Mailboxes) dropRemote(b *box, node pbxmesh.NodeID) {
	if _, ok := b.remote[node]; ok {
		delete(b.remote, node)
		m.remote--
	}
}

// dropStore forgets what was said of aor's messages in store before a newer word, but
// for those who said the same, which is keep unless nil.
func (m *Mailboxes) dropStore(aor pbxmesh.AOR, b *box, store string, keep *messages) {
	for node, r := range b.remote {
		if r.store == store && (keep == nil || r.messages != *keep) {
			m.dropRemote(b, node)
		}
	}
	if b.local != nil && b.local.store == store && (keep == nil || b.local.messages != *keep) {
		b.local = nil
		m.teller.end(aor.String(), nil)
	}
}

// takeOver keeps what a node said that speaks no more, when this one has the same
// store and nobody else speaks for it: the messages still wait. Our own voicemail is
// asked again, and what it says is told.
func (m *Mailboxes) takeOver(aor pbxmesh.AOR, b *box, last word) {
	if last.store == "" || last.messages == (messages{}) || b.local != nil {
		return
	}
	for _, r := range b.remote {
		if r.store == last.store {
			return
		}
	}
	if answer, ok := m.stores[aor.Domain()]; !ok || answer.store != last.store {
		return
	}
	b.local, b.told = &last, false
	if m.core != "" {
		delete(m.asked, aor)
		m.askAbout(aor)
	}
}

// adopt takes up what an earlier life of this daemon told: a voicemail that answers no
// questions would say nothing until the next message.
func (m *Mailboxes) adopt(st State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if st.AOR.IsZero() {
		return
	}
	b := m.box(st.AOR)
	if b.local != nil {
		return
	}
	m.order++
	b.local = &word{messages: messagesOf(st.Fields), from: m.spelling(st.AOR, st.From), store: clean(st.Fields[storeField]), stock: st.Fields[stockField] != "", order: m.order}
	b.told = true
	m.teller.tell(State{Key: st.Key, AOR: st.AOR, From: st.From, Epoch: st.Epoch, Fields: st.Fields})
	if m.core != "" {
		m.askAbout(st.AOR)
	}
}

func (m *Mailboxes) box(aor pbxmesh.AOR) *box {
	b := m.boxes[aor]
	if b == nil {
		b = &box{remote: make(map[pbxmesh.NodeID]remoteBox)}
		m.boxes[aor] = b
	}
	return b
}

// tellAt has the phones of aor told at the time; m.mu is held.
func (m *Mailboxes) tellAt(aor pbxmesh.AOR, at time.Time) {
	if before, ok := m.due[aor]; !ok || at.After(before) {
		m.due[aor] = at
	}
	poke(m.wake)
}

// tick drops what nobody repeats and repeats what is ours.
func (m *Mailboxes) tick(ctx context.Context) {
	t := time.NewTicker(max(m.opts.TTL/3, time.Second))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			m.teller.repeat()
			m.mu.Lock()
			for aor, b := range m.boxes {
				for node, r := range b.remote {
					if !now.Before(r.until) {
						m.dropRemote(b, node)
						m.takeOver(aor, b, r.word)
						m.tellAt(aor, now)
					}
				}
			}
			m.spellings.expire(now)
			m.events.forget(now)
			m.mu.Unlock()
		}
	}
}

// sum returns what phones are to show: of each store the newest word, and of every
// switch that has messages of its own.
func (b *box) sum() messages {
	var total messages
	newest := make(map[string]word)
	add := func(w word) {
		if w.store == "" {
			total = total.plus(w.messages)
		} else if have, ok := newest[w.store]; !ok || w.order > have.order {
			newest[w.store] = w
		}
	}
	if b.local != nil {
		add(*b.local)
	}
	for _, r := range b.remote {
		add(r.word)
	}
	for _, w := range newest {
		total = total.plus(w.messages)
	}
	return total
}

// spellings returns how the switches that speak of the box write it.
func (b *box) spellings() []string {
	var out []string
	if b.local != nil {
		out = append(out, b.local.from)
	}
	for _, r := range b.remote {
		out = append(out, r.from)
	}
	slices.Sort(out)
	return out
}

func (s messages) plus(o messages) messages {
	return messages{
		waiting: s.waiting || o.waiting, fresh: s.fresh + o.fresh, old: s.old + o.old,
		freshUrgent: s.freshUrgent + o.freshUrgent, oldUrgent: s.oldUrgent + o.oldUrgent,
	}
}

// voiceMessage returns the counts as "new/old (urgent new/urgent old)".
func (s messages) voiceMessage() string {
	return fmt.Sprintf("%d/%d (%d/%d)", s.fresh, s.old, s.freshUrgent, s.oldUrgent)
}

// messagesOf reads the two headers of a MESSAGE_WAITING. Counts that are missing
// or out of bounds are 0.
func messagesOf(fields map[string]string) messages {
	s := messages{waiting: strings.EqualFold(strings.TrimSpace(fields["MWI-Messages-Waiting"]), "yes")}
	plain, urgent, _ := strings.Cut(fields["MWI-Voice-Message"], "(")
	s.fresh, s.old = twoCounts(plain)
	s.freshUrgent, s.oldUrgent = twoCounts(strings.TrimRight(strings.TrimSpace(urgent), ")"))
	return s
}

func twoCounts(text string) (a, b int) {
	left, right, ok := strings.Cut(text, "/")
	if !ok {
		return 0, 0
	}
	return count(left), count(right)
}

func count(s string) int {
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil || n < 0 || n > 1_000_000 {
		return 0
	}
	return n
}
