package redisstore_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

const votes = "pbxmesh:{#board}:votes:"

// Whatever a stranger put on the board is skipped and counted, never comes to a
// reader, and is gone after the next note.
func TestBoardForeign(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(c *redis.Client, ctx context.Context) error{
		"a value without a revision": func(c *redis.Client, ctx context.Context) error {
			return c.HSet(ctx, votes+"notes", "x", "1").Err()
		},
		"a revision without a value": func(c *redis.Client, ctx context.Context) error {
			return c.ZAdd(ctx, votes+"revisions", redis.Z{Score: 5, Member: "x"}).Err()
		},
		"an odd revision": func(c *redis.Client, ctx context.Context) error {
			return c.ZAdd(ctx, votes+"revisions", redis.Z{Score: 5.5, Member: "x"}).Err()
		},
		"an endless revision": func(c *redis.Client, ctx context.Context) error {
			return c.Do(ctx, "ZADD", votes+"revisions", "+inf", "x").Err()
		},
		"a huge value": func(c *redis.Client, ctx context.Context) error {
			c.ZAdd(ctx, votes+"revisions", redis.Z{Score: 5, Member: "x"})
			return c.HSet(ctx, votes+"notes", "x", strings.Repeat("v", 4<<20)).Err()
		},
		"a huge key": func(c *redis.Client, ctx context.Context) error {
			return c.ZAdd(ctx, votes+"revisions", redis.Z{Score: 5, Member: strings.Repeat("x", 1<<20)}).Err()
		},
		"a key with a line break": func(c *redis.Client, ctx context.Context) error {
			c.ZAdd(ctx, votes+"revisions", redis.Z{Score: 5, Member: "a\r\nb"})
			return c.HSet(ctx, votes+"notes", "a\r\nb", "1").Err()
		},
		"an end that is none": func(c *redis.Client, ctx context.Context) error {
			c.HSet(ctx, votes+"notes", "x", "1")
			c.ZAdd(ctx, votes+"revisions", redis.Z{Score: 5, Member: "x"})
			return c.Do(ctx, "ZADD", votes+"ends", "-inf", "x").Err()
		},
		"a flood": func(c *redis.Client, ctx context.Context) error {
			_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
				for i := range 3 * registry.MaxNotes {
					p.ZAdd(ctx, votes+"revisions", redis.Z{Score: float64(i), Member: fmt.Sprint("x", i)})
				}
				return nil
			})
			return err
		},
		"a head that is none": func(c *redis.Client, ctx context.Context) error {
			return c.HSet(ctx, "pbxmesh:{#board}:heads", "votes", "many").Err()
		},
		"a head at the end of numbers": func(c *redis.Client, ctx context.Context) error {
			return c.HSet(ctx, "pbxmesh:{#board}:heads", "votes", registry.MaxNumber).Err()
		},
		"notes of another type":     wrongType(votes + "notes"),
		"revisions of another type": wrongType(votes + "revisions"),
		"ends of another type":      wrongType(votes + "ends"),
		"heads of another type":     wrongType("pbxmesh:{#board}:heads"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := registrytest.StartRedis(t)
			c := client(t, r.Addr())
			s := open(t, redisstore.Options{URL: r.URL()})
			mine := registry.Note{Kind: registry.NoteVotes, Key: "mine", Value: "1", TTL: time.Hour}
			if err := s.Post(t.Context(), mine); err != nil {
				t.Fatal(err)
			}
			if err := harm(c, t.Context()); err != nil {
				t.Fatal(err)
			}
			notes, _, _, err := s.Notes(t.Context(), registry.NoteVotes, 0)
			if err != nil || len(notes) > 1 || len(notes) == 1 && notes[0].Key != "mine" {
				t.Fatalf("read %v, err %v", notes, err)
			}
			if err := s.Post(t.Context(), mine, registry.Note{Kind: registry.NoteVotes, Key: "other", Value: "2"}); err != nil {
				t.Fatal(err)
			}
			notes, next, _, err := s.Notes(t.Context(), registry.NoteVotes, 0)
			if err != nil || len(notes) != 2 {
				t.Fatalf("after the next note: %v, err %v", notes, err)
			}
			if notes, again, _, err := s.Notes(t.Context(), registry.NoteVotes, next); err != nil || len(notes) != 0 || again != next {
				t.Fatalf("nothing was posted: %v, next %d after %d, err %v", notes, again, next, err)
			}
			if err := s.Post(t.Context(), registry.Note{Kind: registry.NoteVotes, Key: "other", Value: "3"}); err != nil {
				t.Fatal(err)
			}
			if notes, _, _, err := s.Notes(t.Context(), registry.NoteVotes, next); err != nil || len(notes) != 1 || notes[0].Value != "3" {
				t.Fatalf("newer than %d: %v, err %v", next, notes, err)
			}
		})
	}
}

func wrongType(key string) func(*redis.Client, context.Context) error {
	return func(c *redis.Client, ctx context.Context) error {
		c.Del(ctx, key)
		return c.RPush(ctx, key, "x").Err()
	}
}

// A server that was emptied does not count on from where a reader is, so that nothing
// is taken for seen that was not.
func TestBoardLost(t *testing.T) {
	t.Parallel()
	r := registrytest.StartRedis(t)
	s := open(t, redisstore.Options{URL: r.URL()})
	post := func(key string) {
		t.Helper()
		if err := s.Post(t.Context(), registry.Note{Kind: registry.NoteVotes, Key: key, Value: "1"}); err != nil {
			t.Fatal(err)
		}
	}
	for range 50 {
		post("a")
	}
	_, next, _, err := s.Notes(t.Context(), registry.NoteVotes, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := client(t, r.Addr()).FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		post("b")
	}
	post("c")
	notes, after, _, err := s.Notes(t.Context(), registry.NoteVotes, next)
	if err != nil || len(notes) != 2 || after <= next {
		t.Fatalf("newer than %d: %v, next %d, err %v; want both", next, notes, after, err)
	}
	if err := s.Dissolve(t.Context()); err != nil {
		t.Fatal(err)
	}
	if keys, err := client(t, r.Addr()).Keys(t.Context(), "*").Result(); err != nil || len(keys) != 0 {
		t.Errorf("left: %v, err %v", keys, err)
	}
}
