package native

import (
	"context"
	"fmt"
	"log/slog"
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
	Directory Directory // tells whose phones are here, and on which profile
	Exchange  Exchange

	// TTL is how long other nodes believe in messages that are not repeated.
	// Repeated at a third of it. DefaultMailboxTTL when 0.
	TTL time.Duration

	// Shared says that the switches keep messages in one place, such as a database
	// that all of them use: then the newest report of any node is the whole truth.
	// Otherwise each node has mailboxes of its own and phones are shown the sum.
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

// Mailboxes shows messages that wait for a user on any node to the user's phones
// on this one (MWI). Each switch reports its own mailboxes. Only users with a device registered here get an event, one for each sofia
// profile that the devices use: the profile is always named, because a switch
// that has to guess it from the domain may take the mesh profile for it, whose
// injected rows carry that domain.
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
	stats  MailboxesStats

	// The local voicemail says nothing by itself after a restart of this daemon, so
	// it is asked once in a session about everybody.
	asked map[pbxmesh.AOR]struct{}
	ask   []pbxmesh.AOR
}

// box is one user's messages.
type box struct {
	local  *messages // as our switch says; nil when it never did
	remote map[pbxmesh.NodeID]remoteBox
}

type remoteBox struct {
	messages
	run   string
	seq   uint64
	until time.Time
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
	}
}

// Run works until ctx ends, which is the only error it returns.
func (m *Mailboxes) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { m.teller.publish(ctx) })
	wg.Go(func() { m.teller.follow(ctx, m.hear, nil) })
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
		m.askAbout(aor)
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

// hear takes another node's mailbox.
func (m *Mailboxes) hear(st State) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.boxes[st.AOR]
	var old remoteBox
	have := false
	if b != nil {
		old, have = b.remote[st.Node]
	}
	if have && old.run == st.Run && st.Seq <= old.seq || !have && st.Ended {
		return
	}
	if !have && m.remote >= maxMailboxes {
		m.stats.Dropped++
		return
	}
	if b == nil {
		b = m.box(st.AOR)
	}
	next := remoteBox{messages: messagesOf(st.Fields), run: st.Run, seq: st.Seq, until: now.Add(min(max(st.TTL, minCallTTL), maxMailboxTTL))}
	switch {
	case st.Ended:
		delete(b.remote, st.Node)
		m.remote--
	case !have:
		m.remote++
		fallthrough
	default:
		b.remote[st.Node] = next
	}
	if m.opts.Shared && !st.Ended {
		for node := range b.remote {
			if node != st.Node {
				delete(b.remote, node)
				m.remote--
			}
		}
		b.local = nil
		m.teller.end(st.AOR.String(), nil)
	}
	if st.Ended || !have || old.messages != next.messages {
		m.tellAt(st.AOR, now)
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
						delete(b.remote, node)
						m.remote--
						m.tellAt(aor, now)
					}
				}
			}
			m.mu.Unlock()
		}
	}
}

// sum returns what the user's phones are to show.
func (b *box) sum() messages {
	var s messages
	if b.local != nil {
		s = *b.local
	}
	for _, r := range b.remote {
		s.waiting = s.waiting || r.waiting
		s.fresh, s.old = s.fresh+r.fresh, s.old+r.old
		s.freshUrgent, s.oldUrgent = s.freshUrgent+r.freshUrgent, s.oldUrgent+r.oldUrgent
	}
	return s
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
