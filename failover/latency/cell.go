package latency

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// One phone has one phone's weight.
const (
	// maxPhones is how many phones of a network are followed. Which ones says the order
	// of their secret numbers, not who registers most often.
	maxPhones = 16

	// perAddress is how many of them one address may have while others want the room:
	// accounts are cheaper than addresses.
	perAddress = 3

	// voice is how long what a phone showed counts while others of its network are heard.
	voice = 30 * time.Minute

	// idle is how long a silent phone keeps its place from one that is not.
	idle = 2 * time.Hour
)

// cell is one network's history.
type cell struct {
	phones []account // at most maxPhones
	seen   uint32    // registrations since the network is known or its route changed, one a phone and minute
}

// phone returns the phone with an id, and makes room for a new one; nil when others have
// the room.
func (c *cell) phone(id uint64, from uint32, now int64) *account {
	for i := range c.phones {
		if c.phones[i].id == id {
			return &c.phones[i]
		}
	}
	fresh := account{id: id, from: from}
	if len(c.phones) < maxPhones {
		c.phones = append(c.phones, fresh)
		return &c.phones[len(c.phones)-1]
	}
	out := c.victim(id, from, now)
	if out < 0 {
		return nil
	}
	c.phones[out] = fresh
	return &c.phones[out]
}

// victim returns the phone that makes room for a newcomer, -1 for none.
func (c *cell) victim(id uint64, from uint32, now int64) int {
	mine, crowd, most, oldest := 0, from, 0, 0
	for i := range c.phones {
		p := &c.phones[i]
		if p.from == from {
			mine++
		}
		n := 0
		for k := range c.phones {
			if c.phones[k].from == p.from {
				n++
			}
		}
		if n > most {
			most, crowd = n, p.from
		}
		if p.heard() < c.phones[oldest].heard() {
			oldest = i
		}
	}
	if mine >= perAddress {
		return c.highest(id, func(p *account) bool { return p.from == from })
	}
	if now-c.phones[oldest].heard() > int64(idle/time.Second) {
		return oldest
	}
	if most > perAddress {
		return c.highest(0, func(p *account) bool { return p.from == crowd })
	}
	return c.highest(id, func(*account) bool { return true })
}

// highest returns the phone with the highest number above least, -1 for none.
func (c *cell) highest(least uint64, of func(*account) bool) int {
	out := -1
	for i := range c.phones {
		if p := &c.phones[i]; of(p) && p.id > least {
			out, least = i, p.id
		}
	}
	return out
}

func (c *cell) add(id uint64, from uint32, s *Sample) bool {
	now := s.At.Unix()
	p := c.phone(id, from, now)
	if p == nil {
		return false
	}
	p.from = from
	if s.Visit {
		if now-int64(p.visit) >= 60 {
			c.seen++
		}
		p.visit = seconds(now)
	}
	if s.RTT > 0 {
		p.add(s)
		c.shift(now)
	}
	return true
}

// shift forgets what was before a change of route for the worse: when most of the phones
// say so, with as many samples as one of them alone would need.
func (c *cell) shift(now int64) {
	heard, slow, samples := 0, 0, 0
	for i := range c.phones {
		p := &c.phones[i]
		if p.n == 0 || now-p.latest() > int64(voice/time.Second) {
			continue
		}
		heard++
		if run := p.slower(); run > 0 {
			slow++
			samples += int(run)
		}
	}
	if 2*slow <= heard || samples < shifted {
		return
	}
	for i := range c.phones {
		c.phones[i].n = c.phones[i].slower()
	}
	c.phones = slices.DeleteFunc(c.phones, func(p account) bool { return p.n == 0 })
	c.seen = uint32(samples) //nolint:gosec // few
}

// latest returns when the last sample came, in Unix seconds.
func (c *cell) latest() (at int64) {
	for i := range c.phones {
		at = max(at, c.phones[i].latest())
	}
	return at
}

func (c *cell) visitsAt(now int64) (sum float64) {
	for i := range c.phones {
		sum += c.phones[i].presence(now)
	}
	return sum
}

// joined is what the phones of a network showed together.
type joined struct {
	ms      float64
	samples int     // at most ringSize
	phones  int     // 0 when nobody has anything to say
	hosts   int     // addresses of these
	visits  float64 // phones that are there now, about
	age     int64   // seconds; a quarter of the phones were heard since
}

// join returns the mean of what the phones around the middle one show. Each counts once,
// however often it was heard: less than half of them move the middle nowhere but between
// the others. Of an even number the upper one is taken, because nobody is followed by
// what he says of himself. Phones that count elsewhere are left out, and those beyond
// perAddress of one address where there are others.
func (c *cell) join(now int64, elsewhere func(*account) bool) (j joined) {
	var speak [maxPhones]*account
	list := speak[:0]
	for i := range c.phones {
		if p := &c.phones[i]; !elsewhere(p) {
			j.visits += p.presence(now)
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *account) int { return cmp.Compare(a.id, b.id) })
	heard := func(limit time.Duration) []*account {
		var out [maxPhones]*account
		used := out[:0]
		for _, p := range list {
			if p.n > 0 && now-p.latest() <= int64(limit/time.Second) {
				used = append(used, p)
			}
		}
		return used
	}
	used := heard(voice)
	if len(used) < 2 {
		used = heard(keep) // one phone alone does not replace what others showed
	}
	j.hosts = hosts(used)
	if j.hosts > 1 {
		counts := make(map[uint32]int, j.hosts)
		used = slices.DeleteFunc(used, func(p *account) bool {
			counts[p.from]++
			return counts[p.from] > perAddress
		})
	}
	if j.phones = len(used); j.phones > 0 {
		j.middle(used, now)
	}
	return j
}

// middle fills in what some phones, at least one, show together.
func (j *joined) middle(used []*account, now int64) {
	type shown struct {
		ms     float64
		coarse bool
	}
	var all [maxPhones]shown
	var ages [maxPhones]int64
	for i, p := range used {
		all[i].ms, all[i].coarse = p.estimate(now)
		ages[i] = max(0, now-p.latest())
		j.samples = min(j.samples+int(p.n), ringSize)
	}
	slices.SortFunc(all[:j.phones], func(a, b shown) int { return cmp.Compare(a.ms, b.ms) })
	slices.Sort(ages[:j.phones])
	middle := all[j.phones/2]
	near := 0.0
	for _, s := range all[:j.phones] {
		if math.Abs(s.ms-middle.ms) <= windowMS(middle.coarse) {
			j.ms += s.ms
			near++
		}
	}
	j.ms /= near
	j.age = ages[j.phones/4]
}

// hosts returns how many addresses phones have.
func hosts(list []*account) (n int) {
	for i, p := range list {
		if !slices.ContainsFunc(list[:i], func(q *account) bool { return q.from == p.from }) {
			n++
		}
	}
	return n
}
