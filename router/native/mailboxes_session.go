package native

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// questionID is the Call-ID of our questions to the voicemail.
const questionID = agent + "-question"

// messageHeaders are what a MESSAGE_WAITING says of a mailbox.
var messageHeaders = [...]string{"MWI-Messages-Waiting", "MWI-Voice-Message"}

// onEvent runs on the connection's reader and must not wait.
func (m *Mailboxes) onEvent(e *esl.Event) {
	switch e.Name() {
	case "MESSAGE_WAITING":
		m.localMailbox(e)
	case "MESSAGE_QUERY":
		m.asksFor(e)
	}
}

// queryLasts is how long a phone is believed to watch a mailbox that it asked about:
// longer than usual phones take to register and subscribe again.
const queryLasts = 2 * time.Hour

// asksFor takes the question of a phone that registers or subscribes. It is answered by
// the local voicemail, which knows only its own mailboxes, or by nobody.
func (m *Mailboxes) asksFor(e *esl.Event) {
	account := strings.TrimPrefix(e.Get("Message-Account"), "sip:")
	aor, err := pbxmesh.ParseAOR(account)
	if err != nil || e.Has(originHeader) {
		return
	}
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.spellings.learn(userLamp(aor), account, now, queryLasts)
	if b := m.boxes[aor]; b != nil && (len(b.remote) > 0 || len(m.spellings[userLamp(aor)]) > 0) {
		m.tellAt(aor, now.Add(queryDelay))
	}
	if m.core != "" {
		m.askAbout(aor)
	}
}

// localReport is what our switch said of one of its mailboxes.
type localReport struct {
	aor      pbxmesh.AOR
	from     string
	fields   map[string]string
	stock    bool   // by mod_voicemail, whose messages are the switch's own
	question bool   // in answer to ours, and shown to nobody
	profile  string // whose phones were told
}

// maxReports bounds what waits for the session.
const maxReports = 10_000

// localMailbox takes what our switch says of one of its mailboxes.
func (m *Mailboxes) localMailbox(e *esl.Event) {
	from := strings.TrimPrefix(e.Get("MWI-Message-Account"), "sip:")
	aor, err := pbxmesh.ParseAOR(from)
	if err != nil || e.Has(originHeader) {
		return
	}
	r := localReport{
		aor: aor, from: from, fields: make(map[string]string, len(messageHeaders)+1), profile: e.Get("Sofia-Profile"),
		stock: strings.HasSuffix(e.Get("Event-Calling-File"), "mod_voicemail.c"), question: e.Get("Call-ID") == questionID,
	}
	for _, name := range messageHeaders {
		if v := clean(e.Get(name)); v != "" {
			r.fields[name] = v
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.core == "" || e.CoreUUID() != m.core {
		return
	}
	if m.events.late(fmt.Sprintf("%s %v", aor, r.stock), e, time.Now()) {
		return
	}
	if len(m.inbox) >= maxReports {
		m.stats.Dropped++
		return
	}
	m.inbox = append(m.inbox, r)
	poke(m.wake)
}

// nextReport returns the oldest report that waits.
func (m *Mailboxes) nextReport() (localReport, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.inbox) == 0 {
		m.inbox = nil
		return localReport{}, false
	}
	r := m.inbox[0]
	m.inbox = m.inbox[1:]
	return r, true
}

// take in a report about messages in store.
func (m *Mailboxes) reported(r localReport, store string) {
	now := messagesOf(r.fields)
	key := r.aor.String()
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.box(r.aor)
	if r.stock && now == (messages{}) && (b.local == nil || !b.local.stock) {
		// mod_voicemail is loaded and has nothing: no news, but its phone was told so.
		if !r.question && b.sum() != now {
			m.tellAt(r.aor, time.Now().Add(hangupDelay))
		}
		m.forget(r.aor, b)
		return
	}
	var before messages
	if b.local != nil {
		before = b.local.messages
	}
	same := before == now && (b.local == nil || b.local.store == store && b.told)
	if store != "" {
		r.fields[storeField] = store
		for node, o := range b.remote {
			if o.store == store && o.messages != now {
				m.dropRemote(b, node)
				same = false
			}
		}
	}
	if r.stock {
		r.fields[stockField] = "yes"
	}
	m.order++
	b.local, b.told = &word{messages: now, from: r.from, store: store, stock: r.stock, order: m.order}, true
	switch {
	case now != (messages{}):
		if !same {
			m.teller.tell(State{Key: key, AOR: r.aor, From: r.from, Epoch: m.core, Fields: r.fields})
		}
	case store == "":
		m.teller.end(key, nil)
	case !m.teller.end(key, r.fields) && !same:
		m.teller.say(State{Key: key, AOR: r.aor, From: r.from, Epoch: m.core, Fields: r.fields})
	}
	// An event without a profile of phones may have gone to the mesh profile, one about
	// messages here alone has just hidden those elsewhere, and one in one spelling is
	// not for those who watch another.
	missed := !slices.Contains(m.opts.Profiles, r.profile) || b.sum() != now || len(m.spellings[userLamp(r.aor)]) > 0 || r.from != key
	if r.question && !same || !r.question && missed {
		m.tellAt(r.aor, time.Now().Add(hangupDelay))
	}
	if r.stock && now == (messages{}) {
		b.local = nil // nothing to say, and another store may be spoken for
	}
	m.forget(r.aor, b)
}

// forget drops a box of which nobody says anything; m.mu is held.
func (m *Mailboxes) forget(aor pbxmesh.AOR, b *box) {
	if _, due := m.due[aor]; !due && len(b.remote) == 0 && (b.local == nil || b.local.messages == messages{}) {
		delete(m.boxes, aor)
	}
}

// storeAnswer is what the directory said of a domain.
type storeAnswer struct {
	store string
	at    time.Time
}

// storeAgain is when a directory that named no store is asked again.
const storeAgain = time.Minute

// storeOf returns where the messages of aor are that the switch itself does not keep:
// the domain's UUID in the directory, which FusionPBX makes up once and keeps in its
// database with the messages. Nodes whose directory names the same one read the same
// messages. Stock voicemail and other directories have none: then each node's are its
// own.
func (m *Mailboxes) storeOf(ctx context.Context, conn Conn, r localReport) (string, error) {
	if m.opts.Shared {
		return "shared", nil
	}
	if r.stock {
		return "", nil
	}
	now := time.Now()
	domain := r.aor.Domain()
	m.mu.Lock()
	answer, known := m.stores[domain]
	other, has := m.domains[domain]
	m.mu.Unlock()
	if known && (answer.store != "" || now.Sub(answer.at) < storeAgain) {
		return answer.store, nil
	}
	answer = storeAnswer{at: now}
	for _, who := range []pbxmesh.AOR{r.aor, other} {
		if answer.store != "" || who == other && !has {
			continue
		}
		text, err := conn.API(ctx, "user_data "+who.String()+" var domain_uuid")
		var no *esl.ReplyError
		if err != nil && !errors.As(err, &no) {
			return "", fmt.Errorf("ask the directory for a domain's UUID: %w", err)
		}
		if text = strings.ToLower(strings.TrimSpace(text)); err == nil && domainUUID.MatchString(text) {
			answer.store = text
		}
	}
	m.mu.Lock()
	m.stores[domain] = answer
	m.mu.Unlock()
	return answer.store, nil
}

var domainUUID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

func (m *Mailboxes) session(ctx context.Context, conn Conn) error {
	core, err := conn.API(ctx, "global_getvar core_uuid")
	if err != nil {
		return fmt.Errorf("ask for the switch's core uuid: %w", err)
	}
	all := everybody(m.opts.Directory, maxMailboxes)
	m.mu.Lock()
	m.core = core
	m.inbox, m.stores = nil, make(map[string]storeAnswer)
	m.asked, m.ask = make(map[pbxmesh.AOR]struct{}, len(all)), nil
	for _, aor := range all {
		m.know(aor)
		m.askAbout(aor)
	}
	for aor, b := range m.boxes {
		if len(b.remote) > 0 {
			m.tellAt(aor, time.Now())
		}
		if b.local != nil { // taken up from an earlier life
			m.askAbout(aor)
		}
	}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.core = ""
		m.mu.Unlock()
	}()
	if err := conn.Subscribe(ctx, []string{"MESSAGE_WAITING", "MESSAGE_QUERY"}, nil); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	askAt := time.Now()
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		now := time.Now()
		if r, ok := m.nextReport(); ok {
			store, err := m.storeOf(ctx, conn, r)
			if err != nil {
				return err
			}
			m.reported(r, store)
			continue
		}
		aor, sum, as, wait := m.take(now)
		if !aor.IsZero() {
			if err := m.send(ctx, conn, aor, as, sum); err != nil {
				m.mu.Lock()
				m.tellAt(aor, time.Now())
				m.mu.Unlock()
				return err
			}
			continue
		}
		if who := m.nextQuestion(now, askAt); !who.IsZero() {
			if err := m.query(ctx, conn, who); err != nil {
				return err
			}
			askAt = now.Add(askEvery)
			continue
		}
		if m.asking() {
			wait = min(wait, max(askAt.Sub(now), 0))
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-m.wake:
		case <-timer.C:
		}
	}
}

// nextQuestion returns whom to ask about now, the zero AOR for nobody.
func (m *Mailboxes) nextQuestion(now, at time.Time) pbxmesh.AOR {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.ask) == 0 || now.Before(at) {
		return pbxmesh.AOR{}
	}
	aor := m.ask[0]
	m.ask = m.ask[1:]
	return aor
}

func (m *Mailboxes) asking() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.ask) > 0
}

// query asks the local voicemail. It hands VM-... headers back in its answer, and
// a Call-ID that no phone has makes the switch show the answer to nobody.
func (m *Mailboxes) query(ctx context.Context, conn Conn, aor pbxmesh.AOR) error {
	err := conn.SendEvent(ctx, "MESSAGE_QUERY", []esl.Header{
		{Name: "Message-Account", Value: "sip:" + aor.String()},
		{Name: "VM-Sofia-Profile", Value: m.opts.Profiles[0]},
		{Name: "VM-Call-ID", Value: questionID},
		{Name: originHeader, Value: string(m.opts.Local)},
	}, nil)
	if err != nil {
		return fmt.Errorf("ask for messages: %w", err)
	}
	return nil
}

// take returns a mailbox whose phones are to be told now, and the spellings in which it
// is spoken of and watched, or how long there is none.
func (m *Mailboxes) take(now time.Time) (aor pbxmesh.AOR, sum messages, as []string, wait time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wait = time.Hour
	for aor, at := range m.due {
		if at.After(now) {
			wait = min(wait, at.Sub(now))
			continue
		}
		delete(m.due, aor)
		b := m.box(aor)
		sum = b.sum()
		as = append(b.spellings(), m.spellings.of(userLamp(aor))...)
		if len(b.remote) == 0 && (b.local == nil || b.local.messages == messages{}) {
			delete(m.boxes, aor)
		}
		return aor, sum, as, 0
	}
	return pbxmesh.AOR{}, messages{}, nil, wait
}

// send tells the phones of this switch that watch aor, through each profile that has
// phones and in each spelling.
func (m *Mailboxes) send(ctx context.Context, conn Conn, aor pbxmesh.AOR, as []string, sum messages) error {
	waiting := "no"
	if sum.waiting {
		waiting = "yes"
	}
	texts := spelled(m.opts.Directory, userLamp(aor), "", as)
	for _, profile := range m.opts.Profiles {
		for _, text := range texts {
			err := conn.SendEvent(ctx, "MESSAGE_WAITING", []esl.Header{
				{Name: "MWI-Messages-Waiting", Value: waiting},
				{Name: "MWI-Message-Account", Value: "sip:" + text},
				{Name: "MWI-Voice-Message", Value: sum.voiceMessage()},
				{Name: "sofia-profile", Value: profile},
				{Name: originHeader, Value: string(m.opts.Local)},
			}, nil)
			if err != nil {
				return fmt.Errorf("show messages: %w", err)
			}
			m.mu.Lock()
			m.stats.Sent++
			m.mu.Unlock()
		}
	}
	return nil
}
