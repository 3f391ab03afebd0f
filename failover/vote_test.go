package failover

import (
	"strings"
	"testing"
	"time"

	"pbxmesh"
)

// TestSameVote: a vote says the same as long as nothing in it changed but its ages, which
// grow with the clock.
func TestSameVote(t *testing.T) {
	t.Parallel()
	vote := func(change func(*Vote)) Vote {
		v := Vote{
			Observer: "la", Instance: "i", Self: "la", Site: "west", Load: 10, LoadWhy: "busy",
			Nodes: map[pbxmesh.NodeID]Opinion{
				"a": {Phones: WordAnswers, Mesh: WordAnswers, For: time.Hour},
				"b": {Phones: WordSilent, For: time.Minute, Return: Return{Age: time.Second, Hold: time.Minute}},
				"c": {Phones: WordSilent, For: time.Minute, Return: Return{Hold: time.Minute}},
			},
		}
		change(&v)
		return v
	}
	node := func(id pbxmesh.NodeID, change func(*Opinion)) func(*Vote) {
		return func(v *Vote) { o := v.Nodes[id]; change(&o); v.Nodes[id] = o }
	}
	was := vote(func(*Vote) {})
	const d = 10 * time.Second
	aged := was.After(d)
	if n := aged.Nodes; n["a"].For != time.Hour+d || n["b"].Return.Age != 11*time.Second || n["c"].Return.Age != 0 || was.Nodes["a"].For != time.Hour {
		t.Errorf("ten seconds later it reads %+v", n)
	}
	if long := was.After(2 * maxAge); long.Nodes["a"].For != maxAge || long.validate() != nil {
		t.Errorf("very much later it reads %+v", long)
	}
	for name, tt := range map[string]struct {
		now  Vote
		same bool
	}{
		"as it was, later":      {aged, true},
		"as it was, no later":   {was, false},
		"another observer":      {vote(func(v *Vote) { v.Observer = "ny" }), false},
		"another run":           {vote(func(v *Vote) { v.Instance = "j" }), false},
		"another node":          {vote(func(v *Vote) { v.Self = "" }), false},
		"another site":          {vote(func(v *Vote) { v.Site = "east" }), false},
		"its switch":            {vote(func(v *Vote) { v.Switch = SwitchAlive }), false},
		"its load":              {vote(func(v *Vote) { v.Load++ }), false},
		"why":                   {vote(func(v *Vote) { v.LoadWhy = "" }), false},
		"cut off":               {vote(func(v *Vote) { v.CutOff = true }), false},
		"a node less":           {vote(func(v *Vote) { delete(v.Nodes, "a") }), false},
		"a node for another":    {vote(func(v *Vote) { v.Nodes["z"] = v.Nodes["a"]; delete(v.Nodes, "a") }), false},
		"another word":          {vote(node("a", func(o *Opinion) { o.Phones = WordDoubted })), false},
		"of its mesh address":   {vote(node("a", func(o *Opinion) { o.Mesh = WordSilent })), false},
		"since just now":        {vote(node("a", func(o *Opinion) { o.For = 0 })), false},
		"it comes back":         {vote(node("c", func(o *Opinion) { o.Return.Age = time.Millisecond })), false},
		"it comes back quicker": {vote(node("b", func(o *Opinion) { o.Return.Age = 20 * time.Second })), false},
		"it comes back later":   {vote(node("b", func(o *Opinion) { o.Return.Hold = time.Hour })), false},
	} {
		now := tt.now
		if !strings.HasPrefix(name, "as it was") {
			now = now.After(d)
		}
		if got := now.Same(aged); got != tt.same {
			t.Errorf("%s: the same is %v", name, got)
		}
	}
}
