package feed

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// meshAgent is the user agent of the rows that the mesh writes into the switch's
// own table.
const meshAgent = "pbxmesh"

// maxExpires bounds what a phone may ask for and a switch may report: RFC 3261
// section 20.19 allows 136 years, which no timer of ours has to carry.
const maxExpires = 30 * 24 * time.Hour

// onEvent is called by the connection, one event at a time.
func (f *Feed) onEvent(e *esl.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.LastEvent = f.opts.Now()
	f.status.Events++
	core := e.CoreUUID()
	if core == "" || !validEpoch(core) {
		f.status.Ignored++
		return
	}
	if core != f.table.epoch {
		// The switch has restarted behind a connection that stayed, or this is the
		// first we hear of it. The snapshot decides; facts are kept until then.
		f.adopt(strings.Clone(core))
		f.askSnapshot()
	}
	seq := e.Sequence()
	switch e.Name() {
	case "HEARTBEAT":
		f.table.accept(seq)
		f.heartbeat(e)
	case "CUSTOM":
		f.custom(seq, e)
	}
}

// custom handles the registration events. f.mu is held.
func (f *Feed) custom(seq uint64, e *esl.Event) {
	if e.Subclass() == "sofia::profile_start" {
		f.table.accept(seq)
		f.askSnapshot()
		return
	}
	profile, ok := f.profiles[e.Get("profile-name")]
	if !ok || seq == 0 || e.Get("user-agent") == meshAgent {
		f.status.Ignored++
		return
	}
	switch e.Subclass() {
	case "sofia::register":
		f.register(seq, profile, e)
	case "sofia::unregister":
		f.gone(seq, endOf{profile: profile}, e, e.Get("from-user"), e.Get("from-host"))
	case "sofia::expire":
		f.gone(seq, endOf{profile: profile, row: true}, e, e.Get("user"), e.Get("host"))
	default:
		f.status.Ignored++
	}
	if f.table.marks > maxMarks {
		f.askSnapshot()
	}
}

// register handles sofia::register. Where the switch may have taken other
// registrations away without a word, it is asked about them.
func (f *Feed) register(seq uint64, profile string, e *esl.Event) {
	row := fields{
		user: e.Get("from-user"), host: e.Get("from-host"), callID: e.Get("call-id"), contact: e.Get("contact"),
		agent: e.Get("user-agent"), status: e.Get("status"), ip: e.Get("network-ip"), port: e.Get("network-port"),
	}
	aor, ok := f.aor(row.user, row.host)
	if !ok {
		return
	}
	seconds, err := strconv.ParseUint(e.Get("expires"), 10, 31)
	if err != nil || seconds == 0 {
		f.status.Ignored++
		return
	}
	lasts := min(time.Duration(seconds)*time.Second, maxExpires) + f.opts.LateMargin
	b, ok := f.read(aor, profile, row, f.opts.Now().Add(lasts))
	if !ok {
		if f.table.accept(seq) && f.table.aors[aor] != nil { // it may have replaced one that is known
			f.wonder(aor, question{at: place{profile, b.spelled}})
		}
		return
	}
	b.reg.Since = pbxmesh.StampOf(f.opts.Now())
	vague, other := f.table.register(seq, b)
	if vague {
		f.wonder(aor, question{at: place{profile, b.spelled}})
	}
	if !other.IsZero() {
		f.wonder(other, question{})
	}
}

// gone handles both ways in which a registration ends. What the event names without
// doubt is taken out at once. For everything else the switch is asked first: it
// tells the end of a connection by Call-ID alone, though the phone may be back under
// the same one; `Contact: *` reaches us as an address of nulls, and a switch with
// multiple registrations then removes nothing; a goodbye of one contact removes all
// of a user where several are not allowed.
func (f *Feed) gone(seq uint64, end endOf, e *esl.Event, user, host string) {
	aor, ok := f.aor(user, host)
	if !ok {
		return
	}
	end.callID = e.Get("call-id")
	if contact := e.Get("contact"); contact != "" && contact != "*" && !strings.Contains(contact, "(null)") {
		end.name, end.uri = parseContact(contact)
	}
	if !f.table.unregister(seq, aor, end, f.opts.Now()) {
		return
	}
	q := question{at: place{end.profile, spelled(aor, user, host)}}
	if end.row || e.Get("contact") == "" {
		// The switch deletes the row only after it has told so; without a contact it is
		// the end of a connection.
		q.lingers = lingering{strings.Clone(end.callID), strings.Clone(end.uri)}
	}
	f.wonder(aor, q)
}

// read builds a record from what the switch says of a registration. Nothing in it
// shares memory with an event or a snapshot, which are much larger; strings are those
// of the registration that it refreshes where they are the same.
func (f *Feed) read(aor pbxmesh.AOR, profile string, row fields, expires time.Time) (binding, bool) {
	b := binding{spelled: spelled(aor, row.user, row.host)}
	b.reg = pbxmesh.Registration{
		AOR:       aor,
		Node:      f.opts.Node,
		CallID:    row.callID,
		Profile:   profile,
		Source:    source(row.ip, row.port),
		Transport: transport(row.status),
		UserAgent: userAgent(row.agent),
		Expires:   expires,
	}
	b.name, b.reg.Contact = parseContact(row.contact)
	reg := &b.reg
	if old := f.table.known(aor, reg.CallID); old != nil && old.reg.Contact == reg.Contact && old.reg.UserAgent == reg.UserAgent && old.name == b.name {
		reg.AOR, reg.CallID, reg.Contact, reg.UserAgent = old.reg.AOR, old.reg.CallID, old.reg.Contact, old.reg.UserAgent
		b.name = old.name
	} else {
		reg.CallID, reg.Contact, reg.UserAgent = strings.Clone(reg.CallID), strings.Clone(reg.Contact), strings.Clone(reg.UserAgent)
		b.name = strings.Clone(b.name)
	}
	err := reg.Validate()
	if err == nil && reg.Contact == "" {
		err = fmt.Errorf("%w: no contact", pbxmesh.ErrInvalidRecord)
	}
	if err != nil {
		f.refuse(aor.String(), err)
		return b, false
	}
	return b, true
}

// aor is the gate for what a phone calls itself.
func (f *Feed) aor(user, host string) (pbxmesh.AOR, bool) {
	aor, err := pbxmesh.NewAOR(user, host)
	if err != nil {
		f.refuse(user+"@"+host, err)
		return aor, false
	}
	return aor, true
}

// heartbeat notes the switch's own figures. f.mu is held.
func (f *Feed) heartbeat(e *esl.Event) {
	f.status.Version = strings.Clone(e.Get("FreeSWITCH-Version"))
	f.status.Sessions = number(e.Get("Session-Count"))
	f.status.MaxSessions = number(e.Get("Max-Sessions"))
	if idle, err := strconv.ParseFloat(e.Get("Idle-CPU"), 64); err == nil && idle >= 0 && idle <= 100 {
		f.status.IdleCPU = idle
	}
	f.opts.OnStatus()
}

func number(s string) int {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0
	}
	return int(n)
}

// validEpoch bounds what may become an epoch, which is part of stored records.
func validEpoch(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return true
}
