package failover

import (
	"cmp"
	"time"

	"pbxmesh"
)

// Word is what an observer says of one path to a node.
type Word uint8

// The words. A reader takes a word that it does not know for WordNone.
const (
	WordNone       Word = iota // no opinion: not probed, or no way to tell whose fault a silence is
	WordAnswers                // it answers
	WordDoubted                // it answered, and the last probe was lost; counts as an answer
	WordOverloaded             // it answers 503
	WordSilent                 // it does not answer, while other nodes answer this observer
)

// words is the table of the texts that notes, listings and metrics use.
var words = [...]string{WordNone: "none", WordAnswers: "answers", WordDoubted: "doubted", WordOverloaded: "overloaded", WordSilent: "silent"}

// String returns the text that notes, listings and metrics use.
func (w Word) String() string {
	if int(w) < len(words) {
		return words[w]
	}
	return words[WordNone]
}

// parseWord is the reverse of String.
func parseWord(s string) Word {
	for w, text := range words {
		if s == text {
			return Word(w)
		}
	}
	return WordNone
}

// Opinion is what an observer says of one node.
type Opinion struct {
	Phones Word // of the path that decides about the node, see Path
	Mesh   Word // of its mesh address, where that is another one

	// For is how long Phones has been so, at least 0.
	For time.Duration

	// Return is how far the node is on its way back, the zero value for a node that
	// was never away.
	Return Return
}

// Return is how a node comes back to its phones: none for Hold, then more and more.
type Return struct {
	Age  time.Duration // since it came back; 0 while it is away
	Hold time.Duration // 0: there is no return
}

// Vote is what one observer says of all nodes at one time. It travels as a note of the
// registry, see EncodeVote, so that all observers come to the same verdict.
type Vote struct {
	Observer string // its name, unique in the mesh
	Instance string // new with every start: two observers of one name are told apart

	// Self is the node beside the observer, "" for a name server that is no node;
	// Switch is what that node's event socket shows.
	Self   pbxmesh.NodeID
	Switch SwitchWord

	// Site is what shares fate with the observer. Empty is a site of its own: that of Self,
	// or one of the observer's name.
	Site string

	// Load is the share of phones, in per mille, that Self wants sent elsewhere because
	// its switch is loaded, and LoadWhy the reason in words.
	Load    uint16
	LoadWhy string

	// CutOff says that no remote node answers the observer.
	CutOff bool

	// Beats is how often the observer says that it lives and says the same, in whole
	// milliseconds, at most an hour; 0 for one that posts its vote again instead.
	Beats time.Duration

	Nodes map[pbxmesh.NodeID]Opinion
}

// SeenVote is another observer's vote and when it was last seen posted, on our clock.
type SeenVote struct {
	Vote
	Seen time.Time
}

// After returns the vote as it reads d after it was made, when its observer says the same
// all the time: everything has lasted for longer.
func (v *Vote) After(d time.Duration) Vote {
	later := *v
	if d <= 0 {
		return later
	}
	later.Nodes = make(map[pbxmesh.NodeID]Opinion, len(v.Nodes))
	for id, o := range v.Nodes {
		o.For = min(o.For+d, maxAge)
		if o.Return.Age > 0 {
			o.Return.Age = min(o.Return.Age+d, maxAge)
		}
		later.Nodes[id] = o
	}
	return later
}

// sameFor is by how much two ages of votes may differ that say the same: rounding, and the
// time between two looks at a clock.
const sameFor = 500 * time.Millisecond

// Same reports whether v says what w says.
func (v *Vote) Same(w Vote) bool {
	if v.Observer != w.Observer || v.Instance != w.Instance || v.Self != w.Self || v.Switch != w.Switch || v.Site != w.Site ||
		v.Load != w.Load || v.LoadWhy != w.LoadWhy || v.CutOff != w.CutOff || v.Beats != w.Beats || len(v.Nodes) != len(w.Nodes) {
		return false
	}
	for id, a := range v.Nodes {
		b, known := w.Nodes[id]
		if !known || a.Phones != b.Phones || a.Mesh != b.Mesh || a.Return.Hold != b.Return.Hold ||
			(a.Return.Age > 0) != (b.Return.Age > 0) || (a.Return.Age-b.Return.Age).Abs() > sameFor || (a.For-b.For).Abs() > sameFor {
			return false
		}
	}
	return true
}

// SiteName returns the site of the observer.
func (v *Vote) SiteName() string { return cmp.Or(v.Site, string(v.Self), v.Observer) }
