package main

import (
	"strings"
	"testing"
	"time"

	"pbxmesh/internal/control"
)

// TestAlarms has each alarm stand below the table and below a single node.
func TestAlarms(t *testing.T) {
	t.Parallel()
	const (
		allDown = "EVERY NODE IS DOWN: no phone can register. Name servers answer with all nodes.\n"
		panics  = "PANIC RULE: fewer than half of the nodes take phones. Name servers answer with the others, too.\n"
		cutOff  = "No node answers losangeles itself: it is cut off, and goes by what others see.\n"
	)
	for _, tt := range []struct {
		name  string
		reply control.NodesReply
		want  string
	}{
		{"nothing is wrong", control.NodesReply{}, ""},
		{"panic", control.NodesReply{PanicRule: true}, panics},
		{"all down says the same and more", control.NodesReply{PanicRule: true, AllDown: true}, allDown},
		{"cut off in a panic", control.NodesReply{PanicRule: true, CutOff: true}, panics + cutOff},
	} {
		r := tt.reply
		r.Observer, r.Nodes = "losangeles", []control.Node{{ID: "london"}}
		var table, single strings.Builder
		if err := printNodes(&table, &r, time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := printVotes(&single, &r, time.Now()); err != nil {
			t.Fatal(err)
		}
		if _, below, _ := strings.Cut(table.String(), "old.\n"); below != tt.want {
			t.Errorf("%s: below the table stands %q, want %q", tt.name, below, tt.want)
		}
		if _, below, _ := strings.Cut(single.String(), "answers 0 of them.\n"); below != tt.want {
			t.Errorf("%s: below the node stands %q, want %q", tt.name, below, tt.want)
		}
	}
}

// TestWhyNoPhones names the reason for which a node gets no new phones.
func TestWhyNoPhones(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		node control.Node
		want string
	}{
		{control.Node{Wanted: "in service"}, "Name servers send phones here."},
		{control.Node{Wanted: "in service", Shed: 1000, ShedReason: "its daemon is silent"}, "Name servers send 100 % of the phones elsewhere while they can: its daemon is silent."},
		{control.Node{Wanted: "draining"}, "Name servers send no phones here while they can: an operator wants it draining."},
		{control.Node{Wanted: "out", Shed: 1000, ShedReason: "it is down"}, "Name servers send no phones here while they can: an operator wants it out."},
	} {
		var out strings.Builder
		if err := printVotes(&out, &control.NodesReply{Nodes: []control.Node{tt.node}}, time.Now()); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), "  "+tt.want+"\n") {
			t.Errorf("%+v shows no %q:\n%s", tt.node, tt.want, out.String())
		}
	}
}
