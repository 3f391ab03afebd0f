package redisstore

import (
	"context"
	"crypto/sha1" //nolint:gosec // tells whether a text changed; strangers gain nothing by making two alike
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/registry"
)

// Everybody looks every second whether something changed, and most of the time nothing did
// but the beats. What was read is kept, and one hash says what must be read again.
const (
	membersAnyhow = 5 * time.Minute // read in spite of an unchanged revision: older daemons write none
	leaseAnyhow   = 2 * time.Minute // read in spite of an unchanged text: its clock says how ours differs
	leaseLooks    = 8               // of a new instance, whose clock is not known yet
	leaseStill    = 2               // looks without another beat, and the lease itself is read: it may have ended
	clockApart    = time.Second     // by so much another clock may seem to have moved, and is looked at once more
	lookAge       = 900 * time.Millisecond
	absentAsked   = 5                       // times in turn the primary is asked about a lease that the replica lacks
	notesAge      = 2 * time.Second         // as old may a look be that says that there is no new note
	maxFields     = 4 * registry.MaxNotes   // of the hash
	maxFieldLen   = 64 + registry.MaxKeyLen // bytes
)

// seen is what the last calls read.
type seen struct {
	looking chan struct{} // one look at a time; capacity 1

	mu     sync.Mutex
	look   look
	news   map[string]bool // kinds of which there may be news since the last look
	leases map[pbxmesh.NodeID]*seenLease
	absent map[pbxmesh.NodeID]int // how often in turn the primary had no lease that the replica lacked
	spare  bool                   // Members looked, and Leases has not used it

	revision string // of the members; "" for never, or a store that has none
	at       time.Time
	members  []registry.Announcement
	bad      int
}

// look is what the hash of heads and beats said.
type look struct {
	at     time.Time // zero for never
	from   redis.UniversalClient
	old    bool   // from a replica, because the primary does not answer
	sum    string // of the names of its fields, by the script
	fields map[string]int
	values []string
}

// value returns a field's, "" for none.
func (l *look) value(field string) string {
	if i, ok := l.fields[field]; ok && i < len(l.values) {
		return l.values[i]
	}
	return ""
}

type seenLease struct {
	lease registry.Lease
	apart time.Duration // our clock less the one of the lease
	mark  string        // of its text without beat and clock
	at    time.Time
	looks int // at this instance
	still int // looks in turn that saw the same beat
}

// Fields of the hash of heads: a kind's is its head, "@" the revision of the members,
// "@london" the mark and beat of a lease, "votes|london" the beat of a note.
const membersField = "@"

func leaseField(node pbxmesh.NodeID) string { return "@" + string(node) }

func beatField(kind registry.NoteKind, key string) string { return string(kind) + "|" + key }

// lookHeads answers OK, a sum of the names of all fields, the names when the sum is another
// one than the caller knows, and the values, all in one order; of a replica the number under the second key, too.
// KEYS heads [number]; ARGV known-sum most-fields longest-name
var lookHeads = redis.NewScript(`
local number = KEYS[2] and redis.pcall('GET', KEYS[2])
number = type(number) == 'string' and number or ''
local all = redis.call('HGETALL', KEYS[1])
if #all > 2 * tonumber(ARGV[2]) then return {'OK', '', '', '', number} end
local names, values = {}, {}
for i = 1, #all, 2 do
  if #all[i] <= tonumber(ARGV[3]) and string.find(all[i], '^[!-~]+$') then
    names[#names + 1] = all[i]
    values[all[i]] = all[i + 1]
  end
end
table.sort(names)
local out = {}
for i, name in ipairs(names) do
  local v = values[name]
  out[i] = (#v <= 24 and string.find(v, '^[!-~]+$')) and v or '?'
end
local sum = redis.sha1hex(table.concat(names, '\n'))
if sum == ARGV[1] then names = {} end
return {'OK', sum, table.concat(names, '\n'), table.concat(out, ' '), number}`)

// markField writes the mark of a lease; what a stranger put in the place of the hash goes.
const markField = `
local function markField(heads, field, value)
  local res = redis.pcall('HSET', heads, field, value)
  if type(res) == 'table' and res.err then
    if not string.find(res.err, 'WRONGTYPE', 1, true) then return redis.error_reply(res.err) end
    redis.call('DEL', heads)
    redis.call('HSET', heads, field, value)
  end
end
`

// announce writes an announcement when it is another one than before.
// KEYS members heads; ARGV node text field
var announce = redis.NewScript(boardGuard + `
if not is(KEYS[1], 'hash') then redis.call('DEL', KEYS[1]) end
if not is(KEYS[2], 'hash') then redis.call('DEL', KEYS[2]) end
local before = redis.call('HGET', KEYS[2], ARGV[3])
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] and before then return {'OK'} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
local ms, us = now()
redis.call('HSET', KEYS[2], ARGV[3], text(math.max((before and num(before) or 0) + 1, us)))
return {'OK'}`)

const markLen = 4 // characters of a mark

// beatDigits are how beats modulo registry.BeatTurn are written.
const beatDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

func beatDigit(beat uint64) string { return beatDigits[beat%registry.BeatTurn:][:1] }

var beatOrClock = [2]*regexp.Regexp{regexp.MustCompile(`"beat":[0-9]+`), regexp.MustCompile(`"clock":[0-9]+`)}

// withoutBeat leaves out of a lease's text what changes with every renewal.
func withoutBeat(text string) string {
	for _, field := range beatOrClock {
		if at := field.FindStringIndex(text); at != nil {
			text = text[:at[0]] + text[at[1]:]
		}
	}
	return text
}

// markOf stands for a text of withoutBeat.
func markOf(text string) string {
	sum := sha1.Sum([]byte(text)) //nolint:gosec // as above
	return base64.RawURLEncoding.EncodeToString(sum[:markLen*6/8])
}

// lookAt returns what the heads were at most age ago.
func (s *Store) lookAt(ctx context.Context, age time.Duration) (look, error) {
	select {
	case s.seen.looking <- struct{}{}:
		defer func() { <-s.seen.looking }()
	case <-ctx.Done():
		return look{}, wrap("look for changes", context.Cause(ctx))
	}
	s.seen.mu.Lock()
	l := s.seen.look
	s.seen.mu.Unlock()
	if !l.at.IsZero() && time.Since(l.at) < age {
		return l, nil
	}
	began := time.Now()
	s.seen.mu.Lock()
	clear(s.seen.news)
	s.seen.mu.Unlock()
	answer, from, old, err := s.askHeads(ctx, l.sum)
	if err != nil && !errors.Is(err, registry.ErrCorrupt) {
		return look{}, err
	}
	l = l.next(answer, began)
	l.from, l.old = from, old
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	s.seen.look = l
	return l, nil
}

// next takes in an answer of lookHeads; what it does not say is unknown.
func (l look) next(answer []string, at time.Time) look {
	out := look{at: at}
	if len(answer) < 4 || answer[1] == "" {
		return out
	}
	out.sum, out.fields, out.values = answer[1], l.fields, strings.Fields(answer[3])
	if out.sum != l.sum {
		out.fields = make(map[string]int)
		for i, name := range strings.Fields(answer[2]) {
			out.fields[name] = i
		}
	}
	if len(out.values) != len(out.fields) {
		return look{at: at}
	}
	return out
}

// head returns the head of a kind, 0 for none.
func (l *look) head(kind registry.NoteKind) uint64 { return parseHead(l.value(string(kind))) }

// errOld says that leases and beats cannot be told from those of a replica that nobody writes to.
var errOld = fmt.Errorf("%w: redis: the primary does not answer, and the replica is behind", pbxmesh.ErrUnavailable)

// Members implements registry.Source. It is asked every second by everybody, so what is
// too long to be an announcement stays where it is.
func (s *Store) Members(ctx context.Context) ([]registry.Announcement, int, error) {
	l, err := s.lookAt(ctx, 0)
	if err != nil {
		return nil, 0, err
	}
	revision, now := l.value(membersField), time.Now()
	s.seen.mu.Lock()
	s.seen.spare = true
	if revision != "" && revision == s.seen.revision && now.Sub(s.seen.at) < membersAnyhow {
		defer s.seen.mu.Unlock()
		return slices.Clone(s.seen.members), s.seen.bad, nil
	}
	s.seen.mu.Unlock()
	members, bad, err := s.readMembers(ctx, l.from)
	if err != nil {
		return nil, 0, err
	}
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	s.seen.revision, s.seen.at, s.seen.members, s.seen.bad = revision, now, members, bad
	return slices.Clone(members), bad, nil
}

// Leases implements registry.Source.
func (s *Store) Leases(ctx context.Context, nodes []pbxmesh.NodeID) (map[pbxmesh.NodeID]registry.Lease, int, error) {
	if len(nodes) == 0 {
		return map[pbxmesh.NodeID]registry.Lease{}, 0, nil
	}
	age := time.Duration(0)
	s.seen.mu.Lock()
	if s.seen.spare { // members and leases are asked for together
		s.seen.spare, age = false, lookAge
	}
	s.seen.mu.Unlock()
	l, err := s.lookAt(ctx, age)
	if err != nil {
		return map[pbxmesh.NodeID]registry.Lease{}, 0, err
	}
	if l.old {
		return map[pbxmesh.NodeID]registry.Lease{}, 0, errOld
	}
	leases, rest := s.unchanged(&l, nodes, time.Now())
	if len(rest) == 0 {
		return leases, 0, nil
	}
	read, bad, err := s.readLeases(ctx, l.from, rest)
	for id, lease := range read {
		leases[id] = lease
	}
	return leases, bad, err
}

// unchanged returns the leases of nodes that l shows to be as they were but for their beats,
// and the nodes whose leases must be read.
func (s *Store) unchanged(l *look, nodes []pbxmesh.NodeID, now time.Time) (map[pbxmesh.NodeID]registry.Lease, []pbxmesh.NodeID) {
	leases := make(map[pbxmesh.NodeID]registry.Lease, len(nodes))
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	// When one lease is due to be read anyhow, all are that have been read half as long ago.
	anyhow := leaseAnyhow
	for _, id := range nodes {
		if known := s.seen.leases[id]; known != nil && now.Sub(known.at) >= leaseAnyhow {
			anyhow = leaseAnyhow / 2
		}
	}
	var rest []pbxmesh.NodeID
	for _, id := range nodes {
		if known := s.seen.leases[id]; known != nil && now.Sub(known.at) < anyhow && known.goOn(l.value(leaseField(id)), l.at) {
			leases[id] = known.lease
		} else {
			rest = append(rest, id)
		}
	}
	return leases, rest
}

// goOn brings l's beat up to date by a look of the time at, and reports whether nothing else of
// it changed and it goes on.
func (l *seenLease) goOn(mark string, at time.Time) bool {
	if len(mark) != markLen+1 || mark[:markLen] != l.mark || l.looks < leaseLooks {
		return false
	}
	beat := strings.IndexByte(beatDigits, mark[markLen])
	if beat < 0 || !at.After(l.at) { // the look may be older than the lease
		return false
	}
	more := (uint64(beat) + registry.BeatTurn - l.lease.Beat%registry.BeatTurn) % registry.BeatTurn
	if more == 0 {
		l.still++
		return l.still < leaseStill
	}
	if more > registry.BeatTurn/2 { // a replica that has not come so far, or a long time
		return false
	}
	l.still = 0
	l.lease.Beat += more
	l.lease.Clock = 0 // that of this renewal was not read
	return true
}

// readLeases reads the leases themselves.
func (s *Store) readLeases(ctx context.Context, from redis.UniversalClient, nodes []pbxmesh.NodeID) (map[pbxmesh.NodeID]registry.Lease, int, error) {
	leases := make(map[pbxmesh.NodeID]registry.Lease, len(nodes))
	texts, err := s.leaseTexts(ctx, from, nodes)
	if err != nil {
		return leases, 0, err
	}
	if from != s.client {
		if err := s.confirmAbsent(ctx, nodes, texts); err != nil {
			return leases, 0, err
		}
	}
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	bad := 0
	for i, id := range nodes {
		before := s.seen.leases[id]
		delete(s.seen.leases, id)
		if texts[i] == "" {
			if before != nil { // an older daemon that stops says so in its announcement alone
				s.seen.revision = ""
			}
			continue
		}
		lease, err := registry.DecodeLease(id, texts[i])
		if err != nil {
			bad++
			continue
		}
		leases[id] = lease
		now := time.Now()
		l := &seenLease{lease: lease, mark: markOf(withoutBeat(texts[i])), at: now, looks: 1, apart: now.Sub(time.UnixMilli(lease.Clock))}
		if before != nil && before.lease.Instance == lease.Instance {
			if l.looks += before.looks; (l.apart-before.apart).Abs() > clockApart && before.still == 0 {
				l.looks = 1
			}
			if before.lease.Beat == lease.Beat {
				l.still = before.still + 1
			}
		}
		s.seen.leases[id] = l
	}
	return leases, bad, nil
}

// confirmAbsent asks the primary for leases that the replica does not have, and fills them in: in
// one that has just been cut off they end although they are renewed.
func (s *Store) confirmAbsent(ctx context.Context, nodes []pbxmesh.NodeID, texts []string) error {
	var ask []pbxmesh.NodeID
	var at []int
	s.seen.mu.Lock()
	for i, id := range nodes {
		switch {
		case texts[i] != "":
			delete(s.seen.absent, id)
		case s.seen.absent[id] < absentAsked:
			ask, at = append(ask, id), append(at, i)
		}
	}
	s.seen.mu.Unlock()
	if len(ask) == 0 {
		return nil
	}
	found, err := s.leaseTexts(ctx, s.client, ask)
	if err != nil {
		return err
	}
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	for i, text := range found {
		if texts[at[i]] = text; text == "" {
			s.seen.absent[ask[i]]++
		} else {
			delete(s.seen.absent, ask[i])
		}
	}
	return nil
}

// leaseTexts returns the texts of leases, "" for none.
func (s *Store) leaseTexts(ctx context.Context, from redis.UniversalClient, nodes []pbxmesh.NodeID) ([]string, error) {
	texts, keys := make([]string, len(nodes)), make([]string, len(nodes))
	for i, id := range nodes {
		keys[i] = s.key(id, "lease")
	}
	var answers []any
	err := s.read(ctx, from, func(ctx context.Context, c redis.UniversalClient) (err error) {
		answers, err = c.MGet(ctx, keys...).Result()
		return wrap("read the leases", err)
	})
	if err != nil {
		return texts, err
	}
	for i := range min(len(texts), len(answers)) {
		texts[i], _ = answers[i].(string)
	}
	return texts, nil
}
