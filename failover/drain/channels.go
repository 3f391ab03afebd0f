package drain

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"pbxmesh"
)

// errChannels reports an answer that is no list of channels.
var errChannels = errors.New("the answer to `show channels as json` is no list of channels")

// callList is who is in a call on the switch.
type callList struct {
	calls  int                  // calls of the last list; both legs of one count once
	listed map[string]struct{}  // who is named in it, see keys
	fresh  map[string]time.Time // who began a call since, and when we heard of it
}

// freshFor is how long a channel that an event told of counts before a list must show it.
const freshFor = 3 * time.Second

// parseChannels reads the answer to `show channels as json`.
func parseChannels(text string) (*callList, error) {
	var reply struct {
		Count *int `json:"row_count"`
		Rows  []struct {
			UUID     string `json:"uuid"`
			Name     string `json:"name"`
			Presence string `json:"presence_id"`
			Call     string `json:"call_uuid"`
		} `json:"rows"`
	}
	if err := json.Unmarshal([]byte(text), &reply); err != nil {
		return nil, fmt.Errorf("%w: %w", errChannels, err)
	}
	if reply.Count == nil || *reply.Count != len(reply.Rows) {
		return nil, fmt.Errorf("%w: %.60q", errChannels, text)
	}
	c := &callList{listed: map[string]struct{}{}, fresh: map[string]time.Time{}}
	calls := map[string]struct{}{}
	for _, r := range reply.Rows {
		call := r.Call
		if call == "" {
			call = r.UUID
		}
		calls[call] = struct{}{}
		for _, key := range keys(r.Name, r.Presence) {
			c.listed[key] = struct{}{}
		}
	}
	c.calls = len(calls)
	return c, nil
}

// keys are the names by which a channel tells whose it is: its presence id
// ("1001@pbx.test"), and the last part of its own name: the caller's address of record
// ("sofia/internal/1001@pbx.test") or the contact that was called
// ("sofia/internal/1002@192.0.2.7:5062").
func keys(name, presence string) []string {
	var out []string
	if presence != "" {
		out = append(out, strings.ToLower(presence))
	}
	if i := strings.LastIndexByte(name, '/'); i >= 0 && i+1 < len(name) {
		out = append(out, strings.ToLower(name[i+1:]))
	}
	return out
}

// began takes note of a channel that an event told of.
func (c *callList) began(now time.Time, name, presence string) {
	for _, key := range keys(name, presence) {
		c.fresh[key] = now
	}
}

// follow makes c the list after old: what began meanwhile may be missing from it.
func (c *callList) follow(old *callList, now time.Time) {
	if old == nil {
		return
	}
	for key, at := range old.fresh {
		if now.Sub(at) < freshFor {
			c.fresh[key] = at
		}
	}
}

// busy reports whether reg's phone is in a call, or another device of the same user
// is: the caller's channel does not say which one it came from.
func (c *callList) busy(reg *pbxmesh.Registration) bool {
	contact := reg.Contact
	for _, scheme := range []string{"sip:", "sips:"} {
		contact = strings.TrimPrefix(contact, scheme)
	}
	if i := strings.IndexAny(contact, ";?"); i >= 0 {
		contact = contact[:i]
	}
	for _, key := range [...]string{reg.AOR.String(), strings.ToLower(contact)} {
		if _, ok := c.listed[key]; ok {
			return true
		}
		if _, ok := c.fresh[key]; ok {
			return true
		}
	}
	return false
}
