package native

import (
	"encoding/json"
	"fmt"
	"strings"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// presenceHeaders are what mod_sofia takes from an injected PRESENCE_IN; it leaves
// out all others, and so do we. "from" is set from the validated address.
var presenceHeaders = [...]string{
	"alt_event_type", "answer-state", "astate", "call-direction",
	"Caller-Callee-ID-Number", "Caller-Caller-ID-Name", "Caller-Caller-ID-Number",
	"Caller-Destination-Number", "Caller-Direction", "Caller-Username",
	"channel-state", "force-status", "login",
	"Other-Leg-Caller-ID-Name", "Other-Leg-Caller-ID-Number",
	"presence-call-direction", "presence-call-info-state", "Presence-Privacy",
	"proto", "register-source", "resub", "rpid", "status", "Unique-ID",
	"variable_sip_from_user", "variable_sip_to_user",
}

// maxField bounds one forwarded header in bytes; names of people are shorter.
const maxField = 256

// callEvent is a PRESENCE_IN about a call.
type callEvent struct {
	aor    pbxmesh.AOR
	key    string
	uuid   string
	ended  bool
	fields map[string]string
}

// parseCallEvent reads e; ok is false when it is not about a user's call. Devices
// that register, conferences, parking lots and queues have a PRESENCE_IN as well.
func parseCallEvent(e *esl.Event) (c callEvent, ok bool) {
	switch e.Get("proto") {
	case "", "any", "sip":
	default:
		return callEvent{}, false
	}
	uuid := e.Get("Unique-ID")
	if !validUUID(uuid) {
		return callEvent{}, false
	}
	aor, err := pbxmesh.ParseAOR(e.Get("from"))
	if err != nil {
		return callEvent{}, false
	}
	c = callEvent{aor: aor, key: callKey(uuid, aor), uuid: uuid, fields: make(map[string]string, 24)}
	for _, name := range presenceHeaders {
		if v := clean(e.Get(name)); v != "" {
			c.fields[name] = v
		}
	}
	c.ended = strings.Contains(c.fields["status"], "CS_HANGUP") || c.fields["channel-state"] == "CS_HANGUP" ||
		strings.EqualFold(c.fields["answer-state"], "hangup")
	return c, true
}

// callKey names a call of a user: one channel may change the user it stands for.
func callKey(uuid string, aor pbxmesh.AOR) string { return uuid + "/" + aor.String() }

// validUUID allows what a switch or origination_uuid makes, and no key of anything.
func validUUID(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

// clean makes s fit for a header: control characters out, bounded. Callers choose
// their names, and a line break in one must not become a header of its own.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s)
	if len(s) > maxField {
		s = strings.ToValidUTF8(s[:maxField], "")
	}
	return s
}

// callHeaders returns the event that shows st on the local switch's phones.
func callHeaders(st State) []esl.Header {
	out := make([]esl.Header, 0, len(presenceHeaders)+6)
	out = append(out,
		esl.Header{Name: "Event-Subclass", Value: multicastClass},
		esl.Header{Name: "Multicast", Value: "yes"},
		esl.Header{Name: "orig-event-name", Value: "PRESENCE_IN"},
		esl.Header{Name: "orig-from", Value: st.AOR.String()},
	)
	for _, name := range presenceHeaders {
		v := clean(st.Fields[name])
		if st.Ended {
			switch name { // whatever it was doing last
			case "answer-state":
				v = "hangup"
			case "channel-state", "status":
				v = "CS_HANGUP"
			case "astate":
				v = "terminated"
			case "presence-call-info-state":
				v = "idle"
			}
		}
		if v != "" {
			out = append(out, esl.Header{Name: "orig-" + name, Value: v})
		}
	}
	return out
}

// weight orders a user's calls by what a lamp should show: talking before ringing.
func weight(st State) int {
	if strings.EqualFold(st.Fields["answer-state"], "answered") {
		return 2
	}
	return 1
}

// channelRow is one row of `show channels as json` as far as it matters here.
type channelRow struct {
	UUID       string `json:"uuid"`
	Direction  string `json:"direction"`
	State      string `json:"state"`
	CallState  string `json:"callstate"`
	PresenceID string `json:"presence_id"`
	CIDName    string `json:"cid_name"`
	CIDNumber  string `json:"cid_num"`
	Dest       string `json:"dest"`
}

// parseChannels reads the switch's list of channels.
func parseChannels(reply string) ([]channelRow, error) {
	var list struct {
		Rows []channelRow `json:"rows"`
	}
	if err := json.Unmarshal([]byte(reply), &list); err != nil {
		return nil, fmt.Errorf("read the list of channels: %w", err)
	}
	return list.Rows, nil
}

// event returns what the switch would have said about the channel, for one whose
// events we missed; ok is false when it belongs to no user or is over.
func (r channelRow) event() (c callEvent, ok bool) {
	aor, err := pbxmesh.ParseAOR(r.PresenceID)
	if err != nil || !validUUID(r.UUID) || r.State == "CS_HANGUP" || r.CallState == "HANGUP" {
		return callEvent{}, false
	}
	f := map[string]string{
		"alt_event_type": "dialog", "proto": "any", "rpid": "unknown", "login": "pbxmesh",
		"Unique-ID": r.UUID, "channel-state": clean(r.State),
		"call-direction": clean(r.Direction), "presence-call-direction": clean(r.Direction), "Caller-Direction": clean(r.Direction),
		"Caller-Caller-ID-Name": clean(r.CIDName), "Caller-Caller-ID-Number": clean(r.CIDNumber),
		"Caller-Destination-Number": clean(r.Dest),
	}
	switch r.CallState {
	case "ACTIVE", "HELD", "UNHELD":
		f["answer-state"], f["status"], f["presence-call-info-state"] = "answered", "answered", "active"
		if r.CallState == "HELD" {
			f["status"], f["presence-call-info-state"] = "hold", "held"
		}
	default:
		f["answer-state"], f["status"], f["presence-call-info-state"] = "ringing", "CS_ROUTING", "progressing"
		if r.Direction == "inbound" {
			f["Caller-Username"], f["presence-call-info-state"] = aor.User(), "alerting"
		}
	}
	return callEvent{aor: aor, key: callKey(r.UUID, aor), uuid: r.UUID, fields: f}, true
}
