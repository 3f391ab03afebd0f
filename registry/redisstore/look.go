package redisstore

import (
	"context"
	"crypto/sha1" //nolint:gosec // tells whether a text changed; strangers gain nothing by making two alike
	"encoding/hex"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/registry"
)

// Everybody asks for members and leases every second, and most of the time nothing in them
// changed but the beats. What was read is kept, and what is asked is what changed.
const (
	membersAnyhow = 30 * time.Second // read in spite of an unchanged revision: older daemons write none
	leaseAnyhow   = 15 * time.Second // read in spite of an unchanged text: its clock says how ours differs
	leaseLooks    = 8                // of a new instance, whose clock is not known yet
	beatTurn      = 100              // beats are told modulo this
)

// seen is what the last calls read.
type seen struct {
	mu       sync.Mutex
	revision string // of the members; "" for never, or a store that has none
	at       time.Time
	members  []registry.Announcement
	bad      int
	names    []string // of all fields of the members, sorted as bytes
	sum      string   // of names
	leases   map[pbxmesh.NodeID]*seenLease
}

type seenLease struct {
	lease registry.Lease
	mark  string // of its text without beat and clock
	at    time.Time
	looks int // at this instance
}

func (s *Store) membersRevisionKey() string { return s.o.Prefix + ":{" + s.membersKey() + "}:revision" }

// announce writes an announcement when it is another one than before.
// KEYS members revision; ARGV node text
var announce = redis.NewScript(boardGuard + `
if not is(KEYS[1], 'hash') then redis.call('DEL', KEYS[1]) end
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] and redis.call('TYPE', KEYS[2]).ok == 'string' then return {'OK'} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
local ms, us = now()
local before = redis.pcall('GET', KEYS[2])
redis.call('SET', KEYS[2], text(math.max((type(before) == 'string' and num(before) or 0) + 1, us)))
return {'OK'}`)

// lookLeases answers OK, a sum of the names of all members, and for each of them in the order
// of names "-" when it has no lease, else the mark of its text and its beat.
// KEYS members; ARGV prefix, most members, most bytes of a lease
var lookLeases = redis.NewScript(`
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[2]) then return {'OK', '', ''} end
local names = redis.call('HKEYS', KEYS[1])
if #names == 0 then return {'OK', '', ''} end
table.sort(names)
local keys, out = {}, {}
for i, name in ipairs(names) do keys[i] = ARGV[1] .. ':{' .. name .. '}:lease' end
local texts = redis.call('MGET', unpack(keys))
for i = 1, #names do
  local t = texts[i]
  if not t then
    out[i] = '-'
  elseif #t > tonumber(ARGV[3]) then
    out[i] = '?'
  else
    local beat = tonumber(string.match(t, '"beat":(%d+)') or '') or 0
    t = string.gsub(string.gsub(t, '"beat":%d+', '', 1), '"clock":%d+', '', 1)
    out[i] = string.sub(redis.sha1hex(t), 1, 8) .. string.format('%.0f', beat % 100)
  end
end
return {'OK', redis.sha1hex(table.concat(names, '\n')), table.concat(out, ' ')}`)

const markLen = 8 // hexadecimal digits of a mark

var beatOrClock = [2]*regexp.Regexp{regexp.MustCompile(`"beat":[0-9]+`), regexp.MustCompile(`"clock":[0-9]+`)}

// markOf is what lookLeases says of a lease's text.
func markOf(text string) string {
	for _, field := range beatOrClock {
		if at := field.FindStringIndex(text); at != nil {
			text = text[:at[0]] + text[at[1]:]
		}
	}
	return sumOf(text)[:markLen]
}

func sumOf(text string) string {
	sum := sha1.Sum([]byte(text)) //nolint:gosec // as above
	return hex.EncodeToString(sum[:])
}

// Members implements registry.Source. It is asked every second by everybody, so what is
// too long to be an announcement stays where it is.
func (s *Store) Members(ctx context.Context) ([]registry.Announcement, int, error) {
	callCtx, cancel := s.bound(ctx)
	revision, err := s.client.Get(callCtx, s.membersRevisionKey()).Result()
	cancel()
	if err != nil && !errors.Is(err, redis.Nil) && !errors.Is(wrap("", err), registry.ErrCorrupt) {
		return nil, 0, wrap("read "+s.membersKey(), err)
	}
	now := time.Now()
	s.seen.mu.Lock()
	if revision != "" && revision == s.seen.revision && now.Sub(s.seen.at) < membersAnyhow {
		defer s.seen.mu.Unlock()
		return slices.Clone(s.seen.members), s.seen.bad, nil
	}
	s.seen.mu.Unlock()
	members, names, bad, err := s.readMembers(ctx)
	if err != nil {
		return nil, 0, err
	}
	slices.Sort(names)
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	s.seen.revision, s.seen.at, s.seen.members, s.seen.bad = revision, now, members, bad
	s.seen.names, s.seen.sum = names, sumOf(strings.Join(names, "\n"))
	return slices.Clone(members), bad, nil
}

// Leases implements registry.Source.
func (s *Store) Leases(ctx context.Context, nodes []pbxmesh.NodeID) (map[pbxmesh.NodeID]registry.Lease, int, error) {
	if len(nodes) == 0 {
		return map[pbxmesh.NodeID]registry.Lease{}, 0, nil
	}
	if s.cluster {
		return s.readLeases(ctx, nodes)
	}
	callCtx, cancel := s.bound(ctx)
	answer, err := lookLeases.Run(callCtx, s.client, []string{s.membersKey()}, s.o.Prefix, 4*registry.MaxMembers, registry.MaxLeaseLen).StringSlice()
	cancel()
	if err != nil && !errors.Is(wrap("", err), registry.ErrCorrupt) {
		return map[pbxmesh.NodeID]registry.Lease{}, 0, wrap("read the leases", err)
	}
	leases, rest := s.unchanged(answer, nodes, time.Now())
	if len(rest) == 0 {
		return leases, 0, nil
	}
	read, bad, err := s.readLeases(ctx, rest)
	for id, lease := range read {
		leases[id] = lease
	}
	return leases, bad, err
}

// unchanged returns the leases of nodes that the answer of lookLeases shows to be as they were
// but for their beats, and the nodes whose leases must be read. Who is in neither has none.
func (s *Store) unchanged(answer []string, nodes []pbxmesh.NodeID, now time.Time) (map[pbxmesh.NodeID]registry.Lease, []pbxmesh.NodeID) {
	leases := make(map[pbxmesh.NodeID]registry.Lease, len(nodes))
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	var marks []string
	if len(answer) == 3 && answer[1] == s.seen.sum {
		marks = strings.Fields(answer[2])
	}
	if len(marks) != len(s.seen.names) {
		return leases, nodes // other members than are known
	}
	var rest []pbxmesh.NodeID
	for _, id := range nodes {
		i, known := slices.BinarySearch(s.seen.names, string(id))
		switch {
		case known && marks[i] == "-":
			delete(s.seen.leases, id)
		case known && s.seen.leases[id].goOn(marks[i], now):
			leases[id] = s.seen.leases[id].lease
		default:
			rest = append(rest, id)
		}
	}
	return leases, rest
}

// goOn brings l's beat up to date, and reports whether nothing else of it changed.
func (l *seenLease) goOn(mark string, now time.Time) bool {
	if l == nil || len(mark) <= markLen || mark[:markLen] != l.mark || now.Sub(l.at) >= leaseAnyhow || l.looks < leaseLooks {
		return false
	}
	beat, err := strconv.ParseUint(mark[markLen:], 10, 16)
	if err != nil || beat >= beatTurn {
		return false
	}
	if more := (beat + beatTurn - l.lease.Beat%beatTurn) % beatTurn; more > 0 {
		l.lease.Beat += more
		l.lease.Clock = 0 // that of this renewal was not read
	}
	return true
}

// readLeases reads the leases themselves.
func (s *Store) readLeases(ctx context.Context, nodes []pbxmesh.NodeID) (map[pbxmesh.NodeID]registry.Lease, int, error) {
	leases := make(map[pbxmesh.NodeID]registry.Lease, len(nodes))
	texts, bad, err := s.leaseTexts(ctx, nodes)
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	if s.seen.leases == nil {
		s.seen.leases = map[pbxmesh.NodeID]*seenLease{}
	}
	for i, id := range nodes {
		before := s.seen.leases[id]
		delete(s.seen.leases, id)
		if texts[i] == "" {
			continue
		}
		lease, err := registry.DecodeLease(id, texts[i])
		if err != nil {
			bad++
			continue
		}
		leases[id] = lease
		l := &seenLease{lease: lease, mark: markOf(texts[i]), at: time.Now(), looks: 1}
		if before != nil && before.lease.Instance == lease.Instance {
			l.looks += before.looks
		}
		s.seen.leases[id] = l
	}
	return leases, bad, err
}

// leaseTexts returns the texts of leases, "" for none. With an error those that could be read.
func (s *Store) leaseTexts(ctx context.Context, nodes []pbxmesh.NodeID) (texts []string, bad int, failed error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	texts = make([]string, len(nodes))
	if !s.cluster {
		keys := make([]string, len(nodes))
		for i, id := range nodes {
			keys[i] = s.key(id, "lease")
		}
		answers, err := s.client.MGet(ctx, keys...).Result()
		if err != nil {
			return texts, 0, wrap("read the leases", err)
		}
		for i := range min(len(texts), len(answers)) {
			texts[i], _ = answers[i].(string)
		}
		return texts, 0, nil
	}
	pipe := s.client.Pipeline()
	answers := make([]*redis.StringCmd, len(nodes))
	for i, id := range nodes {
		answers[i] = pipe.Get(ctx, s.key(id, "lease"))
	}
	// Its error is that of one of the answers, which are looked at one by one.
	_, _ = pipe.Exec(ctx)
	for i := range answers {
		text, err := answers[i].Result()
		switch {
		case errors.Is(err, redis.Nil):
		case err == nil:
			texts[i] = text
		case errors.Is(wrap("", err), registry.ErrCorrupt):
			bad++
		default:
			failed = wrap("read the leases", err)
		}
	}
	return texts, bad, failed
}
