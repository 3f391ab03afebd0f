package failover_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
)

func fullVote() *failover.Vote {
	v := vote("losangeles@buffalo! b+ l- s5 lm-")
	v.CutOff, v.Load, v.LoadWhy = true, 300, "loaded: more than 80 % of its sessions are in use"
	o := v.Nodes[london]
	o.For, o.Return = 2300*time.Millisecond, failover.Return{Age: time.Minute, Hold: 30 * time.Second}
	v.Nodes[london] = o
	return v
}

func TestVoteThereAndBack(t *testing.T) {
	t.Parallel()
	for _, v := range []*failover.Vote{fullVote(), vote("la"), vote("la b?")} {
		text, err := failover.EncodeVote(v)
		if err != nil {
			t.Fatal(err)
		}
		got, err := failover.DecodeVote(v.Observer, text)
		if err != nil || !reflect.DeepEqual(&got, v) {
			t.Errorf("%s\nis read as %+v, %v\nwant       %+v", text, got, err, *v)
		}
	}
}

// TestVoteOnManyNodes fills a vote beyond its bound: who is silent must still be in it.
func TestVoteOnManyNodes(t *testing.T) {
	t.Parallel()
	v := vote("la")
	for i := range failover.MaxVoteNodes {
		id := pbxmesh.NodeID(fmt.Sprintf("n%d-%s", i, strings.Repeat("x", 50)))
		v.Nodes[id] = failover.Opinion{Phones: failover.WordAnswers, For: time.Hour}
		if i%100 == 7 {
			v.Nodes[id] = failover.Opinion{Phones: failover.WordSilent, For: time.Hour}
		}
	}
	text, err := failover.EncodeVote(v)
	if err != nil || len(text) > failover.MaxVoteLen {
		t.Fatalf("%d bytes, %v", len(text), err)
	}
	got, err := failover.DecodeVote("la", text)
	if err != nil {
		t.Fatal(err)
	}
	silent := 0
	for _, o := range got.Nodes {
		if o.Phones == failover.WordSilent {
			silent++
		}
	}
	if silent != 11 || len(got.Nodes) < 500 || len(got.Nodes) == failover.MaxVoteNodes {
		t.Errorf("%d nodes arrive, %d of 11 silent ones", len(got.Nodes), silent)
	}
}

func TestHostileVotes(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"empty":             ``,
		"no JSON":           `{`,
		"a list":            `[]`,
		"no version":        `{"o":"la","n":{}}`,
		"a later version":   `{"v":2,"o":"la","n":{}}`,
		"another observer":  `{"v":1,"o":"ja","n":{}}`,
		"too long":          `{"v":1,"o":"la","why":"` + strings.Repeat("x", failover.MaxVoteLen) + `"}`,
		"a long instance":   `{"v":1,"o":"la","i":"` + strings.Repeat("x", 200) + `"}`,
		"a terminal escape": `{"v":1,"o":"la","i":"\u001b[2J"}`,
		"an escape in why":  `{"v":1,"o":"la","why":"a\nb"}`,
		"a long why":        `{"v":1,"o":"la","why":"` + strings.Repeat("x", 200) + `"}`,
		"load":              `{"v":1,"o":"la","load":1001}`,
		"negative load":     `{"v":1,"o":"la","load":-1}`,
		"no node":           `{"v":1,"o":"la","n":{"":{"w":"silent"}}}`,
		"a node with case":  `{"v":1,"o":"la","n":{"London":{"w":"silent"}}}`,
		"self":              `{"v":1,"o":"la","self":"a b"}`,
		"negative age":      `{"v":1,"o":"la","n":{"london":{"f":-1}}}`,
		"endless age":       `{"v":1,"o":"la","n":{"london":{"f":9223372036854775807}}}`,
		"endless hold":      `{"v":1,"o":"la","n":{"london":{"rh":9223372036854775807}}}`,
		"a fraction":        `{"v":1,"o":"la","n":{"london":{"rh":1e3000}}}`,
	} {
		if v, err := failover.DecodeVote("la", text); !errors.Is(err, failover.ErrVote) {
			t.Errorf("%s: read as %+v, %v", name, v, err)
		}
	}
	// What a later version may add is no opinion, and no reason to drop the vote.
	v, err := failover.DecodeVote("la", `{"v":1,"o":"la","i":"x","sw":"tired","n":{"london":{"w":"bored","m":"sulking","x":1}},"y":2}`)
	if err != nil || v.Nodes[london].Phones != failover.WordNone || v.Nodes[london].Mesh != failover.WordNone || v.Switch != failover.SwitchUnknown {
		t.Errorf("unknown words: %+v, %v", v, err)
	}
	if _, err := failover.EncodeVote(vote("la@UPPER b+")); !errors.Is(err, failover.ErrVote) {
		t.Errorf("an invalid vote is encoded: %v", err)
	}
}

func FuzzDecodeVote(f *testing.F) {
	full, err := failover.EncodeVote(fullVote())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	f.Add(`{"v":1,"o":"losangeles","i":"","n":{"london":{"w":"silent","m":"x","f":1,"ra":2,"rh":3}}}`)
	f.Add(`{"v":2}`)
	f.Fuzz(func(t *testing.T, text string) {
		v, err := failover.DecodeVote("losangeles", text)
		if err != nil {
			if !errors.Is(err, failover.ErrVote) {
				t.Fatalf("the error is %v", err)
			}
			return
		}
		if v.Load > pbxmesh.ShedAll || len(v.Nodes) > failover.MaxVoteNodes {
			t.Fatalf("out of bounds: %+v", v)
		}
		again, err := failover.EncodeVote(&v)
		if err != nil {
			t.Fatalf("%+v is read and cannot be written: %v", v, err)
		}
		if w, err := failover.DecodeVote("losangeles", again); err != nil || len(v.Nodes) < 100 && !reflect.DeepEqual(v, w) {
			t.Fatalf("%+v\ncomes back as %+v, %v", v, w, err)
		}
		c := failover.Count(three, []*failover.Vote{&v})[london]
		if c.Counted > 1 || c.Down() && v.Nodes[london].Phones != failover.WordSilent {
			t.Fatalf("%+v is counted as %+v", v, c)
		}
	})
}
