package native

import (
	"maps"
	"slices"
	"strings"
	"time"

	"pbxmesh"
)

// mod_sofia compares users of subscriptions byte by byte, while registrations and
// addresses of record know no case: "Alice" may be called as alice, registered as
// Alice and watched as ALICE. A lamp is shown in every spelling that somebody here may
// watch.

const (
	maxSpellings = 8      // of one user that are watched; more are left out
	maxSpelled   = 20_000 // users with watched spellings

	// spellingMargin is how much longer than a subscription a spelling is kept.
	spellingMargin = time.Minute
)

// spellings are the ones other than lower case that phones of this switch watch.
type spellings map[lampKey]map[string]time.Time

// learn takes note of a subscription in the spelling text for d.
func (s spellings) learn(k lampKey, text string, now time.Time, d time.Duration) {
	if text == k.addr || s[k] == nil && len(s) >= maxSpelled {
		return
	}
	if s[k] == nil {
		s[k] = make(map[string]time.Time)
	}
	if _, known := s[k][text]; !known && len(s[k]) >= maxSpellings {
		return
	}
	if until := now.Add(d + spellingMargin); until.After(s[k][text]) {
		s[k][text] = until
	}
}

// expire forgets subscriptions that are over.
func (s spellings) expire(now time.Time) {
	for k, texts := range s {
		for text, until := range texts {
			if now.After(until) {
				delete(texts, text)
			}
		}
		if len(texts) == 0 {
			delete(s, k)
		}
	}
}

// of returns the spellings of k that are watched, sorted.
func (s spellings) of(k lampKey) []string { return slices.Sorted(maps.Keys(s[k])) }

// spelled returns how something about key is to be written for the phones of this
// switch: as its own switch wrote it, in lower case, as the user's devices call
// themselves and as phones here watch it.
func spelled(d Directory, key lampKey, from string, watchedAs []string) []string {
	texts := []string{key.addr}
	if own := bare(from); own != "" && own != key.addr {
		texts = append(texts, own)
	}
	if key.proto == protoSIP {
		texts = append(texts, deviceSpellings(d, key.addr)...)
	}
	texts = append(texts, watchedAs...)
	out := texts[:0]
	for _, text := range texts {
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out
}

// deviceSpellings returns how the devices of a user spell it in their contacts.
func deviceSpellings(d Directory, addr string) (out []string) {
	aor, err := pbxmesh.ParseAOR(addr)
	if err != nil || !strings.ContainsAny(aor.User(), "abcdefghijklmnopqrstuvwxyz") {
		return nil
	}
	for _, r := range d.Lookup(aor) {
		if r == nil || r.AOR != aor {
			continue
		}
		user, _, ok := strings.Cut(strings.TrimPrefix(r.Contact, "sip:"), "@")
		if ok && user != aor.User() && strings.EqualFold(user, aor.User()) && len(out) < maxSpellings {
			out = append(out, user+"@"+aor.Domain())
		}
	}
	return out
}

// bare leaves out of an event's address what mod_sofia leaves out: what stands before
// a "+" in the user, and what follows a "/" in the domain. "flow+*31@a.test/internal"
// is *31@a.test to it, and a user may hold a "/". It is empty when there is no user or
// no domain.
func bare(from string) string {
	user, host, ok := strings.Cut(from, "@")
	host, _, _ = strings.Cut(host, "/")
	if i := strings.IndexByte(user, '+'); i > 0 {
		user = user[i+1:]
	}
	if !ok || user == "" {
		return ""
	}
	return user + "@" + host
}
