package failover

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"pbxmesh"
)

// Bounds of votes, on both sides.
const (
	MaxVoteLen      = 64 << 10 // bytes of an encoded vote
	MaxVoteNodes    = 1024
	maxObserverLen  = 128 // bytes, instance as well
	maxWhyLen       = 120
	maxAge          = 365 * 24 * time.Hour
	maxHold         = time.Hour
	maxBeats        = time.Hour
	voteWireVersion = 1
)

// ErrVote says that a note is no vote, or one of a version that is not read here.
var ErrVote = errors.New("invalid vote")

// wireVote is the form of a vote in the registry. Ages travel and times do not: two
// machines' clocks need not agree.
type wireVote struct {
	Version  int                 `json:"v"`
	Observer string              `json:"o"`
	Instance string              `json:"i"`
	Self     string              `json:"self,omitempty"`
	Site     string              `json:"site,omitempty"`
	Switch   string              `json:"sw,omitempty"`
	Load     int                 `json:"load,omitempty"`
	LoadWhy  string              `json:"why,omitempty"`
	CutOff   bool                `json:"cut,omitempty"`
	Beats    int64               `json:"b,omitempty"` // milliseconds
	Nodes    map[string]wireWord `json:"n"`
}

type wireWord struct {
	Phones string `json:"w,omitempty"`
	Mesh   string `json:"m,omitempty"`
	For    int64  `json:"f,omitempty"` // milliseconds, as the next two
	Age    int64  `json:"ra,omitempty"`
	Hold   int64  `json:"rh,omitempty"`
}

// EncodeVote returns the form of v that is posted, at most MaxVoteLen bytes. When the
// nodes are too many for that, words that say "answers" are left out first: an observer
// that says nothing of a node is not counted.
func EncodeVote(v *Vote) (string, error) {
	if err := v.validate(); err != nil {
		return "", err
	}
	w := wireVote{
		Version: voteWireVersion, Observer: v.Observer, Instance: v.Instance, Self: string(v.Self), Site: v.Site,
		Load: int(v.Load), LoadWhy: v.LoadWhy, CutOff: v.CutOff, Beats: v.Beats.Milliseconds(), Nodes: make(map[string]wireWord, len(v.Nodes)),
	}
	if v.Switch != SwitchUnknown {
		w.Switch = v.Switch.String()
	}
	head, err := json.Marshal(w)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrVote, err)
	}
	room := MaxVoteLen - len(head)
	ids := slices.SortedFunc(maps.Keys(v.Nodes), func(a, b pbxmesh.NodeID) int {
		// The loudest words first, and the same ones in every vote.
		return cmp.Or(cmp.Compare(v.Nodes[b].Phones, v.Nodes[a].Phones), cmp.Compare(a, b))
	})
	for _, id := range ids {
		o := v.Nodes[id]
		word := wireWord{
			Phones: o.Phones.String(), For: o.For.Milliseconds(),
			Age: o.Return.Age.Milliseconds(), Hold: o.Return.Hold.Milliseconds(),
		}
		if o.Mesh != WordNone {
			word.Mesh = o.Mesh.String()
		}
		text, err := json.Marshal(word)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrVote, err)
		}
		if room -= len(text) + len(id) + len(`"":,`); room < 0 {
			break
		}
		w.Nodes[string(id)] = word
	}
	text, err := json.Marshal(w)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrVote, err)
	}
	return string(text), nil
}

// DecodeVote reads the form of EncodeVote, which anyone may have written. The vote must
// be observer's, under whose key it was found. The error is ErrVote.
func DecodeVote(observer, text string) (Vote, error) {
	if len(text) > MaxVoteLen {
		return Vote{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrVote, len(text), MaxVoteLen)
	}
	var w wireVote
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		return Vote{}, fmt.Errorf("%w: %w", ErrVote, err)
	}
	switch {
	case w.Version != voteWireVersion:
		return Vote{}, fmt.Errorf("%w: version %d, this daemon reads %d", ErrVote, w.Version, voteWireVersion)
	case w.Observer != observer:
		return Vote{}, fmt.Errorf("%w: a vote of %.40q stands under the name %.40q", ErrVote, w.Observer, observer)
	case len(w.Nodes) > MaxVoteNodes:
		return Vote{}, fmt.Errorf("%w: %d nodes, at most %d are allowed", ErrVote, len(w.Nodes), MaxVoteNodes)
	case w.Load < 0 || w.Load > pbxmesh.ShedAll:
		return Vote{}, fmt.Errorf("%w: load %d, 0 to %d are allowed", ErrVote, w.Load, pbxmesh.ShedAll)
	}
	v := Vote{
		Observer: w.Observer, Instance: w.Instance, Self: pbxmesh.NodeID(w.Self), Site: w.Site,
		Load: uint16(w.Load), LoadWhy: w.LoadWhy, CutOff: w.CutOff, Nodes: make(map[pbxmesh.NodeID]Opinion, len(w.Nodes)),
	}
	var err error
	if v.Beats, err = milliseconds(w.Beats, maxBeats); err != nil {
		return Vote{}, err
	}
	switch w.Switch {
	case SwitchAlive.String():
		v.Switch = SwitchAlive
	case SwitchDead.String():
		v.Switch = SwitchDead
	}
	for id, word := range w.Nodes {
		o := Opinion{Phones: parseWord(word.Phones), Mesh: parseWord(word.Mesh)}
		if o.For, err = milliseconds(word.For, maxAge); err != nil {
			return Vote{}, err
		}
		if o.Return.Age, err = milliseconds(word.Age, maxAge); err != nil {
			return Vote{}, err
		}
		if o.Return.Hold, err = milliseconds(word.Hold, maxHold); err != nil {
			return Vote{}, err
		}
		v.Nodes[pbxmesh.NodeID(id)] = o
	}
	if err := v.validate(); err != nil {
		return Vote{}, err
	}
	return v, nil
}

func milliseconds(n int64, limit time.Duration) (time.Duration, error) {
	if n < 0 || n > limit.Milliseconds() {
		return 0, fmt.Errorf("%w: %d ms, 0 to %d are allowed", ErrVote, n, limit.Milliseconds())
	}
	return time.Duration(n) * time.Millisecond, nil
}

// validate returns ErrVote when a field is out of bounds. Ages beyond the bound are
// cut by the tracker before.
func (v *Vote) validate() error {
	switch {
	case v.Observer == "" || len(v.Observer) > maxObserverLen || !graphic(v.Observer, false):
		return fmt.Errorf("%w: the observer's name is %.40q", ErrVote, v.Observer)
	case len(v.Instance) > maxObserverLen || !graphic(v.Instance, false):
		return fmt.Errorf("%w: the observer's instance is %.40q", ErrVote, v.Instance)
	case len(v.LoadWhy) > maxWhyLen || !graphic(v.LoadWhy, true):
		return fmt.Errorf("%w: the reason of its load is %.40q", ErrVote, v.LoadWhy)
	case v.Load > pbxmesh.ShedAll:
		return fmt.Errorf("%w: load %d, 0 to %d are allowed", ErrVote, v.Load, pbxmesh.ShedAll)
	case len(v.Nodes) > MaxVoteNodes:
		return fmt.Errorf("%w: %d nodes, at most %d are allowed", ErrVote, len(v.Nodes), MaxVoteNodes)
	case v.Beats < 0 || v.Beats > maxBeats:
		return fmt.Errorf("%w: the observer says every %s that it lives", ErrVote, v.Beats)
	case v.Site != "" && !pbxmesh.ValidSite(v.Site):
		return fmt.Errorf("%w: the observer's site is %.40q", ErrVote, v.Site)
	case v.Self != "" && !isNodeID(v.Self):
		return fmt.Errorf("%w: the observer stands beside the node %.40q", ErrVote, v.Self)
	}
	for id, o := range v.Nodes {
		switch {
		case !isNodeID(id):
			return fmt.Errorf("%w: it names the node %.40q", ErrVote, id)
		case o.For < 0 || o.For > maxAge || o.Return.Age < 0 || o.Return.Age > maxAge || o.Return.Hold < 0 || o.Return.Hold > maxHold:
			return fmt.Errorf("%w: an age of node %s is out of bounds", ErrVote, id)
		}
	}
	return nil
}

func isNodeID(id pbxmesh.NodeID) bool {
	parsed, err := pbxmesh.ParseNodeID(string(id))
	return err == nil && parsed == id
}

// graphic reports whether s is printable ASCII, spaces as it is told.
func graphic(s string, spaces bool) bool {
	for i := range len(s) {
		if s[i] > '~' || s[i] < ' ' || s[i] == ' ' && !spaces {
			return false
		}
	}
	return true
}
