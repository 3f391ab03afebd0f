package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// fakeSwitch is the part of a switch that this package talks to: a table of
// registrations behind an event queue, with faults. Its times are the bubble's.
type fakeSwitch struct {
	mu      sync.Mutex
	core    string
	life    int
	profile bool // the mesh profile runs
	rows    map[string]fakeRow
	conns   map[*fakeConn]bool
	sent    []sentEvent
	flushed []string // Call-IDs
	lists   int
	scripts []string // that were run, without "lua ~"

	channels   map[string]channelRow
	said       int           // statuses without a call
	sequence   int           // of events
	domainUUID string        // what its directory says of every domain
	booting    bool          // mod_sofia is not loaded yet
	slow       time.Duration // to answer an event

	down bool                 // refuses connections
	lose func(sentEvent) bool // takes the event and does nothing
	lag  func() time.Duration // between taking an event and applying it
	wg   sync.WaitGroup
}

type fakeRow struct {
	user, contact, agent, host string
	expires                    time.Time
}

type sentEvent struct {
	name    string
	headers map[string]string
}

func (e sentEvent) String() string {
	return e.name + " " + e.headers["orig-event-subclass"] + " " + e.headers["orig-call-id"]
}

func newFakeSwitch() *fakeSwitch {
	return &fakeSwitch{core: "core-0", profile: true, rows: make(map[string]fakeRow), conns: make(map[*fakeConn]bool), channels: make(map[string]channelRow)}
}

func (s *fakeSwitch) dial(_ context.Context, cfg esl.Config) (Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, errors.New("connection refused")
	}
	c := &fakeConn{s: s, cfg: cfg, done: make(chan struct{}), life: s.life}
	s.conns[c] = true
	return c, nil
}

// restart is a new process: connections gone, tables empty.
func (s *fakeSwitch) restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life++
	s.core = fmt.Sprintf("core-%d", s.life)
	s.rows = make(map[string]fakeRow)
	s.sent = nil
	clear(s.channels)
	s.hangUp()
}

func (s *fakeSwitch) hangUp() {
	for c := range s.conns {
		c.end(esl.ErrClosed)
	}
	clear(s.conns)
}

// cut ends all connections and lets new ones in or not.
func (s *fakeSwitch) cut(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
	s.hangUp()
}

// restartProfile empties the table and says so, unless that is lost.
func (s *fakeSwitch) restartProfile(tell bool) {
	s.mu.Lock()
	s.rows = make(map[string]fakeRow)
	s.mu.Unlock()
	if tell {
		s.emit("CUSTOM", "Event-Subclass", profileStart, "profile_name", "mesh")
	}
}

// flush drops all rows and says so of each, as flush_inbound_reg does.
func (s *fakeSwitch) flush(profile string) {
	s.mu.Lock()
	rows := s.rows
	s.rows = make(map[string]fakeRow)
	s.mu.Unlock()
	for id, row := range rows {
		user, host, _ := strings.Cut(row.user, "@")
		s.emit("CUSTOM", "Event-Subclass", "sofia::expire", "profile-name", profile, "call-id", id, "user", user, "host", host, "contact", row.contact)
	}
}

// emit gives an event to all connections that asked for it. It has the next sequence unless
// pairs have one.
func (s *fakeSwitch) emit(name string, pairs ...string) {
	s.mu.Lock()
	core := s.core
	s.sequence++
	if !slices.Contains(pairs, "Event-Sequence") {
		pairs = append(pairs, "Event-Sequence", strconv.Itoa(s.sequence))
	}
	conns := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	e := fakeEvent(append([]string{"Event-Name", name, "Core-UUID", core}, pairs...)...)
	for _, c := range conns {
		c.mu.Lock()
		want := c.subscribed[name] || c.subscribed[e.Subclass()] && e.Subclass() != ""
		c.mu.Unlock()
		if want && c.cfg.OnEvent != nil {
			c.cfg.OnEvent(e)
		}
	}
}

func (s *fakeSwitch) list() string {
	var b strings.Builder
	b.WriteString("<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?>\n<profile>\n  <registrations>\n")
	for _, id := range slices.Sorted(maps.Keys(s.rows)) {
		r := s.rows[id]
		left := time.Until(r.expires)
		if left <= 0 {
			delete(s.rows, id)
			continue
		}
		fmt.Fprintf(&b, "    <registration>\n        <call-id>%s</call-id>\n        <user>%s</user>\n        <contact>%s</contact>\n"+
			"        <agent>%s</agent>\n        <status>Registered(unknown) exp(2026-11-22 16:01:39) expsecs(%d)</status>\n        <host>%s</host>\n    </registration>\n",
			id, r.user, html.EscapeString(r.contact), r.agent, int(left/time.Second), r.host)
	}
	b.WriteString("  </registrations>\n</profile>\n")
	return strings.ReplaceAll(b.String(), "&#34;", "&quot;")
}

// apply does what mod_sofia does with an event of ours.
func (s *fakeSwitch) apply(life int, e sentEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := e.headers
	if life != s.life || !s.profile || e.name != "CUSTOM" || h["Event-Subclass"] != multicastClass || h["orig-profile-name"] != "mesh" {
		return
	}
	switch h["orig-event-subclass"] {
	case "sofia::register":
		ttl, _ := strconv.Atoi(h["orig-expires"])
		s.rows[h["orig-call-id"]] = fakeRow{
			user: h["orig-from-user"] + "@" + h["orig-from-host"], contact: h["orig-contact"],
			agent: h["orig-user-agent"], host: "buffalo", expires: time.Now().Add(time.Duration(ttl) * time.Second),
		}
	case "sofia::unregister":
		delete(s.rows, h["orig-call-id"])
	}
}

// contacts returns the live rows of ours as "user contact".
func (s *fakeSwitch) contacts() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, r := range s.rows {
		if r.agent == agent && r.host == "buffalo" && time.Now().Before(r.expires) {
			out = append(out, r.user+" "+r.contact)
		}
	}
	slices.Sort(out)
	return out
}

// events returns what was sent since the last call.
func (s *fakeSwitch) events() []sentEvent {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.sent
	s.sent = nil
	return out
}

type fakeConn struct {
	s    *fakeSwitch
	cfg  esl.Config
	life int

	mu         sync.Mutex
	err        error
	done       chan struct{}
	subscribed map[string]bool
}

func (c *fakeConn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		close(c.done)
	}
}

func (c *fakeConn) API(_ context.Context, command string) (string, error) {
	if err := c.Err(); err != nil {
		return "", err
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if script, ok := strings.CutPrefix(command, "lua ~"); ok {
		c.s.scripts = append(c.s.scripts, script)
		return "+OK", nil
	}
	if strings.HasPrefix(command, "user_data ") && strings.HasSuffix(command, " var domain_uuid") {
		if strings.HasPrefix(c.s.domainUUID, "-ERR") {
			return "", &esl.ReplyError{Command: command, Text: c.s.domainUUID}
		}
		return c.s.domainUUID, nil
	}
	switch command {
	case "switchname":
		return "buffalo", nil
	case "global_getvar core_uuid":
		return c.s.core, nil
	case "sofia xmlstatus profile mesh reg":
		c.s.lists++
		if c.s.booting {
			return "", &esl.ReplyError{Command: command, Text: "-ERR sofia Command not found!"}
		}
		if !c.s.profile {
			return "Invalid Profile!", nil
		}
		return c.s.list(), nil
	case "show channels as json":
		if len(c.s.channels) == 0 {
			return `{"row_count": 0}`, nil
		}
		text, err := json.Marshal(map[string]any{"row_count": len(c.s.channels), "rows": slices.Collect(maps.Values(c.s.channels))})
		return string(text), err
	}
	if strings.HasPrefix(command, "sofia profile mesh flush_inbound_reg ") {
		c.s.flushed = append(c.s.flushed, strings.TrimPrefix(command, "sofia profile mesh flush_inbound_reg "))
		return "+OK flushing all registrations matching specified call_id", nil
	}
	return "", &esl.ReplyError{Command: command, Text: "-ERR command not found"}
}

func (c *fakeConn) Subscribe(_ context.Context, events, subclasses []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.subscribed == nil {
		c.subscribed = make(map[string]bool)
	}
	for _, e := range append(events, subclasses...) {
		c.subscribed[e] = true
	}
	return c.err
}

func (c *fakeConn) SendEvent(_ context.Context, name string, headers []esl.Header, _ []byte) error {
	if err := c.Err(); err != nil {
		return err
	}
	e := sentEvent{name: name, headers: make(map[string]string)}
	for _, h := range headers {
		e.headers[h.Name] = h.Value
	}
	c.s.mu.Lock()
	slow := c.s.slow
	c.s.mu.Unlock()
	time.Sleep(slow)
	if err := c.Err(); err != nil {
		return err
	}
	c.s.mu.Lock()
	c.s.sent = append(c.s.sent, e)
	lost := c.s.lose != nil && c.s.lose(e)
	var lag time.Duration
	if c.s.lag != nil {
		lag = c.s.lag()
	}
	c.s.mu.Unlock()
	switch {
	case lost:
	case lag > 0:
		c.s.wg.Go(func() {
			time.Sleep(lag)
			c.s.apply(c.life, e)
		})
	default:
		c.s.apply(c.life, e)
	}
	return nil
}

func (c *fakeConn) Done() <-chan struct{} { return c.done }

func (c *fakeConn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *fakeConn) Close() error {
	c.end(esl.ErrClosed)
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	delete(c.s.conns, c)
	return nil
}

// encoded is a percent sign that the switch encodes: not one that looks encoded already.
var encoded = regexp.MustCompile(`%(?:[0-9A-F]{2})?`)

// fakeEvent returns an event of name, value pairs, encoded as on the wire.
func fakeEvent(pairs ...string) *esl.Event {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		value := encoded.ReplaceAllStringFunc(pairs[i+1], func(s string) string {
			if s == "%" {
				return "%25"
			}
			return s
		})
		b.WriteString(pairs[i] + ": " + strings.ReplaceAll(value, "\n", "%0A") + "\n")
	}
	return esl.ParseEvent(b.String())
}

// call changes a channel and says so, unless that is lost: "ringing", "answered" or
// "hangup".
func (s *fakeSwitch) call(uuid string, aor pbxmesh.AOR, state string, tell bool) {
	s.mu.Lock()
	row := channelRow{UUID: uuid, Direction: "outbound", State: "CS_EXECUTE", CallState: "RINGING", PresenceID: aor.String(), CIDName: "Desk", CIDNumber: "1003"}
	status := "CS_ROUTING"
	switch state {
	case "answered":
		row.CallState, status = "ACTIVE", "answered"
		s.channels[uuid] = row
	case "hangup":
		status = "CS_HANGUP"
		delete(s.channels, uuid)
	default:
		s.channels[uuid] = row
	}
	s.mu.Unlock()
	if tell {
		s.emit("PRESENCE_IN", "Channel-Name", "sofia/internal/x", "proto", "any", "from", aor.String(), "Unique-ID", uuid, "answer-state", state, "status", status,
			"alt_event_type", "dialog", "presence-call-direction", "outbound", "Caller-Caller-ID-Number", "1003")
	}
}

// lamp returns what the switch was last told of aor in its present life: an
// answer-state and a unique id.
func (s *fakeSwitch) lamp(aor pbxmesh.AOR) (state, uuid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.sent {
		if e.headers["orig-event-name"] == "PRESENCE_IN" && e.headers["orig-from"] == aor.String() {
			state, uuid = e.headers["orig-answer-state"], e.headers["orig-Unique-ID"]
		}
	}
	return state, uuid
}

// fakeRaw returns an event as it stands on the wire.
func fakeRaw(text string) *esl.Event { return esl.ParseEvent(text) }
