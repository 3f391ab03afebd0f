package latency

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
)

// How much what others showed counts against own samples, in samples.
const (
	ownWeight    = 0.25 // of the expectation against own samples
	ownLeast     = 0.5  // an own sample, however old
	parentWeight = 2.0  // of AS and distance against the parent's samples
	asWeight     = 4.0  // of distance against the AS's samples

	// A sample of the parent or the AS is worth so much of an own one as evidence.
	parentShare, asShare = 0.25, 0.125

	// An estimate that rests on less than half as many phones as the one with the most, or as
	// manyPhones, is a hint: it is evidence of this much when it is better than what others
	// expect, so that it is followed up and changes nothing. Half of manyPhones is more than
	// perAddress.
	manyPhones = 8
	hint       = 1.9

	// groupShare is the share of the phones of a parent or an AS that must have shown a
	// node, and two of them where there are two, so that neighbours are told.
	groupShare = 0.25

	// enough is the evidence, in samples, that a node needs to be chosen for its
	// latency when others were measured.
	enough = 2.0

	// evidenceHalfLife, in minutes, is the age of the latest sample at which evidence
	// is half; scoreHalfLife that at which an estimate weighs half against others, so
	// that what one network finds out today counts more than what another knew once.
	evidenceHalfLife = 60.0
	scoreHalfLife    = 10.0

	// settledShare of a network's registrations is at the present answer.
	settledShare = 2.0 / 3
	fewVisits    = 1.5 // below it a network's registrations say nothing

	// placeSlackMS is how far a database of places may be off: 200 km.
	placeSlackMS = 2.0
)

// Exploration: per mille of a network's slots that go to another node.
const (
	exploreBetter = 800 // one that is expected to be better, so that a try costs nothing
	exploreNew    = 650 // one that could be better
	exploreRare   = 250 // one that could be better against all expectation
	exploreKeep   = 40  // one that was worse, and could have become better
	exploreDoubt  = 5   // one that few found worse than everybody expects
	worthMS       = 2.0 // a possible gain below it is not looked for

	// rare is how much below expectation a node must be so that a try is rare; a node that
	// was worse is tried again when nobody around showed anything for retryAfter minutes.
	rare       = 0.6
	retryAfter = 10.0

	// severalPhones that found a node worse are not tried against their will because a
	// neighbour found it better: networks have routes of their own.
	severalPhones = 4

	// A node that so many registrations of a network left without any sample is tried
	// no more often than one that was worse: it may not be reachable from there, which
	// nobody tells us. By then it was tried some ten times.
	patience = 64.0
)

// Figure is what is known of the latency between a client network and one node.
// Times are milliseconds.
type Figure struct {
	Node int // index into View.Nodes

	Score    float64 // the estimate that ranks
	Own      float64 // low quantile of the network's own samples, 0 without any
	Samples  int     // behind Own
	Phones   float64 // behind Own
	Few      bool    // Own rests on too few of the network's phones to change anything
	Visits   float64 // phones of the network that are at the node now, about
	Seen     float64 // registrations since the network is known or its route changed
	Parent   float64 // of the parent network, 0 without samples
	AS       float64 // of the AS in this part of the world, 0 without samples
	Prior    float64 // by distance
	Lowest   float64 // what no path can beat
	Expected float64 // the estimate without Own
	Evidence float64 // in samples
	Age      float64 // minutes since the latest sample, of the network or its parent
	OwnAge   float64 // minutes since the network's own latest sample
}

// Source says what weighs most in Score.
func (f *Figure) Source() string {
	switch {
	case f.Own > 0:
		return "own samples"
	case f.Parent > 0:
		return "parent network"
	case f.AS > 0:
		return "AS"
	default:
		return "distance"
	}
}

// Judgement is the order of the nodes for a network, and why.
type Judgement struct {
	Order     []int // indexes into View.Nodes, best first
	Incumbent int   // the present answer, which only a clear gain changes; -1 for none
	Kept      bool  // another node is better, but not by enough
	Try       []int // nodes worth a try, and how many slots of a thousand they get
	TryShare  int
}

// judge ranks figures, which are in the order that breaks ties. maxCost bounds what a
// try may cost, in milliseconds; 0 tries nothing.
func judge(figures []Figure, maxCost float64) Judgement {
	j := Judgement{Incumbent: -1, Order: make([]int, len(figures))}
	for i := range figures {
		j.Order[i] = i
	}
	slices.SortStableFunc(j.Order, func(a, b int) int { return cmp.Compare(figures[a].Score, figures[b].Score) })
	if len(figures) == 0 {
		return j
	}

	// Whoever was not measured enough cannot overtake who was.
	best, lowest := j.Order[0], j.Order[0]
	for _, i := range j.Order {
		if figures[i].Evidence >= enough {
			best = i
			break
		}
	}

	// The present answer is where the phones are: every name server sees the same, and
	// none forgets it when it restarts.
	most, sum, seen := 0, 0.0, 0.0
	for i := range figures {
		sum += figures[i].Visits
		seen += figures[i].Seen
		if figures[i].Visits > figures[most].Visits {
			most = i
		}
	}
	if sum >= fewVisits && !figures[most].Few && figures[most].Visits >= settledShare*sum {
		j.Incumbent = most
		gain := figures[most].Score - figures[best].Score
		if best != most && (figures[best].Evidence < enough || gain <= threshold(figures[most].Score)) {
			best = most
		}
		j.Kept = best == most && figures[lowest].Score < figures[most].Score
	}
	at := slices.Index(j.Order, best)
	copy(j.Order[1:at+1], j.Order[:at])
	j.Order[0] = best
	j.explore(figures, maxCost, seen >= patience)
	return j
}

// explore finds the nodes that could be better than the first of the order: by what
// physics allows where they were not measured, by their estimate and its uncertainty
// where they were. A tired network looks less for nodes that never showed anything.
func (j *Judgement) explore(figures []Figure, maxCost float64, tired bool) {
	first := &figures[j.Order[0]]
	if maxCost <= 0 || first.Own == 0 {
		return
	}
	// What was measured is an upper bound; shrinking must not make room for hope.
	present := min(first.Score, first.Own)
	var better, fresh, unlikely, known, doubted []int
	for _, i := range j.Order[1:] { // by score
		f := &figures[i]
		cost := f.Score - present
		if f.Few {
			cost = min(cost, f.Expected-present) // one phone keeps nobody from looking
		}
		if cost > maxCost || f.Lowest > present-worthMS {
			continue
		}
		hope := max(f.Lowest, f.Score*(1-1/(1+f.Evidence)))
		shown := f.Score
		if f.Few {
			shown = min(shown, f.Own) // somebody says so: look at it
		}
		told := f.Parent > 0 && f.Age < retryAfter && f.OwnAge >= retryAfter && f.Expected < present-threshold(present)
		switch {
		case f.Evidence == 0 && tired:
			known = append(known, i)
		case f.Evidence < enough && shown < present-worthMS, told && f.Phones < severalPhones:
			// Not measured enough, or a neighbour just found a better route.
			better = append(better, i)
		case f.Evidence < enough && hope < present-worthMS && rare*f.Score < present:
			fresh = append(fresh, i)
		case f.Evidence < enough && hope < present-worthMS, told:
			unlikely = append(unlikely, i)
		case f.Score-present <= maxCost && f.Age >= retryAfter && f.Lowest < present-threshold(present):
			known = append(known, i)
		case f.Few && f.Expected < present-threshold(present):
			doubted = append(doubted, i)
		}
	}
	switch {
	case len(better) > 0:
		j.Try, j.TryShare = slices.Concat(better, fresh), exploreBetter
	case len(fresh) > 0:
		j.Try, j.TryShare = fresh, exploreNew
	case len(unlikely) > 0:
		j.Try, j.TryShare = unlikely, exploreRare
	case len(known) > 0:
		j.Try, j.TryShare = known, exploreKeep
	case len(doubted) > 0:
		j.Try, j.TryShare = doubted, exploreDoubt
	}
}

// tried returns the node that a network tries in a slot; ok is false when it gets the
// best one. Each node of Try gets half as many slots as the one before it, because the
// first ones promise most; the last one gets as many as the one before.
func (j *Judgement) tried(network, slot uint64) (node int, ok bool) {
	if len(j.Try) == 0 {
		return 0, false
	}
	h := mix(network ^ mix(slot+0x9e3779b97f4a7c15))
	if int(h%1000) >= j.TryShare { //nolint:gosec // below 1000
		return 0, false
	}
	return j.Try[min(bits.TrailingZeros64(h/1000|1<<62), len(j.Try)-1)], true
}

// estimated is a latency with its weight in samples.
type estimated struct{ ms, weight float64 }

// blend returns what the two say together.
func blend(a estimated, b float64, weight float64) float64 {
	return (a.ms*a.weight + b*weight) / (a.weight + weight)
}

// weightedMedian of what several networks showed; zero weight without any.
func weightedMedian(list []estimated) estimated {
	slices.SortFunc(list, func(a, b estimated) int { return cmp.Compare(a.ms, b.ms) })
	sum := 0.0
	for _, e := range list {
		sum += e.weight
	}
	below := 0.0
	for _, e := range list {
		if below += e.weight; below >= sum/2 {
			return estimated{e.ms, sum}
		}
	}
	return estimated{}
}

// quantised makes sums that differ in the last bits equal.
func quantised(ms float64) float64 { return math.Round(ms*10) / 10 }
