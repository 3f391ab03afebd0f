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
	from   string // the user in the switch's own spelling
	key    string
	uuid   string
	ended  bool
	fields map[string]string
}

// parseCallEvent reads e; ok is false when it is not about a user's channel. Devices
// that register, conferences, parking lots, queues and scripts have a PRESENCE_IN as
// well, without a channel's data: see parseStatus.
func parseCallEvent(e *esl.Event) (c callEvent, ok bool) {
	if e.Get("Channel-Name") == "" || protoOf(e.Get("proto")) != protoSIP {
		return callEvent{}, false
	}
	uuid, from := e.Get("Unique-ID"), e.Get("from")
	aor, err := pbxmesh.ParseAOR(from)
	if err != nil || !validUUID(uuid) || bare(from) == "" {
		return callEvent{}, false
	}
	c = callEvent{aor: aor, from: from, key: callKey(uuid, aor), uuid: uuid, fields: presenceFields(e)}
	c.ended = saysEnded(c.fields)
	return c, true
}

func presenceFields(e *esl.Event) map[string]string {
	out := make(map[string]string, len(presenceHeaders))
	for _, name := range presenceHeaders {
		if v := clean(e.Get(name)); v != "" {
			out[name] = v
		}
	}
	return out
}

// saysEnded reports whether an event itself puts a lamp out.
func saysEnded(fields map[string]string) bool {
	switch strings.ToLower(fields["answer-state"]) {
	case "hangup", "terminated":
		return true
	}
	return strings.Contains(fields["status"], "CS_HANGUP") || fields["channel-state"] == "CS_HANGUP"
}

// callKey names a call of a user: one channel may change the user it stands for.
func callKey(uuid string, aor pbxmesh.AOR) string { return uuid + "/" + aor.String() }

// uuidOf is the first half of a callKey.
func uuidOf(key string) string { return key[:max(strings.LastIndexByte(key, '/'), 0)] }

// maxUUID is the longest UUID that FreeSWITCH keeps, in bytes.
const maxUUID = 256

// validUUID allows what a switch may call a channel: by itself hex digits, else the
// caller's Call-ID or what a dial string says, of any alphabet.
func validUUID(s string) bool {
	return s != "" && len(s) <= maxUUID && clean(s) == s
}

// listedUUID returns a UUID as an event's header gives it. The switch encodes its
// headers but for a "%41" that is there already, which is then decoded too often; its
// list of channels is not encoded at all.
func listedUUID(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	const upper = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			hi, lo := strings.IndexByte(upper, s[i+1]), strings.IndexByte(upper, s[i+2])
			if hi >= 0 && lo >= 0 {
				b.WriteByte(byte(hi<<4 | lo))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
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

// presenceEvent returns the event that shows st on those of the local switch's phones
// that watch the user in the spelling from.
func presenceEvent(st State, from string) []esl.Header {
	out := make([]esl.Header, 0, len(presenceHeaders)+6)
	out = append(out,
		esl.Header{Name: "Event-Subclass", Value: multicastClass},
		esl.Header{Name: "Multicast", Value: "yes"},
		esl.Header{Name: "orig-event-name", Value: "PRESENCE_IN"},
		esl.Header{Name: "orig-from", Value: from},
	)
	// An end in the switch's own words is passed on as it is, if it is no call's.
	putOut := st.Ended && (st.Kind != KindStatus || !saysEnded(st.Fields))
	for _, name := range presenceHeaders {
		v := clean(st.Fields[name])
		if putOut {
			switch name { // whatever it was doing last
			case "answer-state":
				v = "hangup"
			case "channel-state", "status":
				v = "CS_HANGUP"
			case "astate":
				v = "terminated"
			case "presence-call-info-state":
				v = "idle"
			case "force-status":
				v = ""
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
	switch strings.ToLower(st.Fields["answer-state"]) {
	case "answered", "confirmed":
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
	uuid := listedUUID(r.UUID)
	if err != nil || !validUUID(uuid) || r.State == "CS_HANGUP" || r.CallState == "HANGUP" {
		return callEvent{}, false
	}
	f := map[string]string{
		"alt_event_type": "dialog", "proto": "any", "rpid": "unknown", "login": "pbxmesh",
		"Unique-ID": uuid, "channel-state": clean(r.State),
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
	return callEvent{aor: aor, from: r.PresenceID, key: callKey(uuid, aor), uuid: uuid, fields: f}, true
}
