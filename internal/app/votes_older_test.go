package app

import (
	"testing"
	"time"

	"pbxmesh/failover"
	"pbxmesh/registry"
)

// TestVoteOfAnOlderDaemon: one that does not beat puts off the end of its note while it says the
// same. It counts for as long as it does so, and not much longer.
func TestVoteOfAnOlderDaemon(t *testing.T) {
	t.Parallel()
	b := newBallot(t)
	old, p := b.voter("old", "1"), b.voter("new", "1")
	p.told.yes.Store(true)
	vote := old.tracker.Vote(b.now)
	text, err := failover.EncodeVote(&vote)
	if err != nil {
		t.Fatal(err)
	}
	b.write("old", text, 3*time.Second)
	p.hears(t, "old")
	notes, _, _, err := b.store.Notes(t.Context(), registry.NoteVotes, 0)
	if err != nil || len(notes) != 1 {
		t.Fatal(notes, err)
	}
	for n := range 12 {
		b.now = b.now.Add(time.Second)
		if err := b.store.Hold(t.Context(), registry.NoteVotes, "old", notes[0].Revision, 3*time.Second); err != nil {
			t.Fatalf("after %d s: %v", n, err)
		}
		p.hears(t, "old")
	}
	for range 4 {
		b.now = b.now.Add(time.Second)
		_ = p.readOnce(t.Context())
	}
	p.hears(t)
	if p.older {
		t.Error("all votes are read for one that is over")
	}
}
