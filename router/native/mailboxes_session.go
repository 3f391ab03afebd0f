package native

import (
	"context"
	"fmt"
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
		if e.Has(originHeader) {
			return
		}
		// A phone that asks is answered by the local voicemail, which knows only its
		// own mailboxes, or by nobody.
		if aor, err := pbxmesh.ParseAOR(e.Get("Message-Account")); err == nil {
			m.mu.Lock()
			if b := m.boxes[aor]; b != nil && len(b.remote) > 0 {
				m.tellAt(aor, time.Now().Add(queryDelay))
			}
			m.mu.Unlock()
		}
	}
}

// localMailbox takes what our switch says of one of its mailboxes.
func (m *Mailboxes) localMailbox(e *esl.Event) {
	if e.Has(originHeader) {
		return
	}
	aor, err := pbxmesh.ParseAOR(e.Get("MWI-Message-Account"))
	if err != nil {
		return
	}
	fields := make(map[string]string, len(messageHeaders))
	for _, name := range messageHeaders {
		if v := clean(e.Get(name)); v != "" {
			fields[name] = v
		}
	}
	now := messagesOf(fields)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.core == "" || e.CoreUUID() != m.core {
		return
	}
	b := m.box(aor)
	var before messages
	if b.local != nil {
		before = *b.local
	}
	same := before == now && (!m.opts.Shared || len(b.remote) == 0)
	b.local = &now
	if m.opts.Shared {
		m.remote -= len(b.remote)
		clear(b.remote)
	}
	switch {
	case now == (messages{}) && !m.opts.Shared:
		m.teller.end(aor.String(), nil)
	case !same:
		m.teller.tell(State{Key: aor.String(), AOR: aor, Epoch: m.core, Fields: fields})
	}
	// An event without a profile may have gone to the mesh profile, and one about
	// messages here alone has just hidden those elsewhere.
	question := e.Get("Call-ID") == questionID // shown to nobody
	if question && !same || !question && (e.Get("Sofia-Profile") == "" || len(b.remote) > 0) {
		m.tellAt(aor, time.Now().Add(hangupDelay))
	}
	if now == (messages{}) && len(b.remote) == 0 {
		if _, due := m.due[aor]; !due {
			delete(m.boxes, aor)
		}
	}
}

func (m *Mailboxes) session(ctx context.Context, conn Conn) error {
	core, err := conn.API(ctx, "global_getvar core_uuid")
	if err != nil {
		return fmt.Errorf("ask for the switch's core uuid: %w", err)
	}
	all := everybody(m.opts.Directory, maxMailboxes)
	m.mu.Lock()
	m.core = core
	m.asked, m.ask = make(map[pbxmesh.AOR]struct{}, len(all)), nil
	for _, aor := range all {
		m.askAbout(aor)
	}
	for aor, b := range m.boxes {
		if len(b.remote) > 0 {
			m.tellAt(aor, time.Now())
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
		aor, sum, wait := m.take(now)
		if !aor.IsZero() {
			if err := m.send(ctx, conn, aor, sum); err != nil {
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
		{Name: "VM-Sofia-Profile", Value: "internal"},
		{Name: "VM-Call-ID", Value: questionID},
		{Name: originHeader, Value: string(m.opts.Local)},
	}, nil)
	if err != nil {
		return fmt.Errorf("ask for messages: %w", err)
	}
	return nil
}

// take returns a user whose phones are to be told now, or how long there is none.
func (m *Mailboxes) take(now time.Time) (aor pbxmesh.AOR, sum messages, wait time.Duration) {
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
		if len(b.remote) == 0 && (b.local == nil || *b.local == messages{}) {
			delete(m.boxes, aor)
		}
		return aor, sum, 0
	}
	return pbxmesh.AOR{}, messages{}, wait
}

// send tells the phones of aor that are registered here, through each of their
// profiles.
func (m *Mailboxes) send(ctx context.Context, conn Conn, aor pbxmesh.AOR, sum messages) error {
	for _, profile := range m.profiles(aor) {
		waiting := "no"
		if sum.waiting {
			waiting = "yes"
		}
		err := conn.SendEvent(ctx, "MESSAGE_WAITING", []esl.Header{
			{Name: "MWI-Messages-Waiting", Value: waiting},
			{Name: "MWI-Message-Account", Value: "sip:" + aor.String()},
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
	return nil
}

// profiles returns the sofia profiles of the devices of aor on this node.
func (m *Mailboxes) profiles(aor pbxmesh.AOR) []string {
	var out []string
	now := time.Now()
	for _, r := range m.opts.Directory.Lookup(aor) {
		if r == nil || r.AOR != aor || r.Node != m.opts.Local || !r.Live(now) || r.Profile == "" {
			continue
		}
		known := false
		for _, p := range out {
			known = known || strings.EqualFold(p, r.Profile)
		}
		if !known {
			out = append(out, r.Profile)
		}
	}
	return out
}
