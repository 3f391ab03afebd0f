package redisstore_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// replicated is a primary, a replica that reaches it through a link, and a store that reads there.
type replicated struct {
	primary, near *registrytest.Redis
	link, way     *registrytest.Proxy // of the replica and of the store to the primary
	writer, store *redisstore.Store
	beat          uint64
}

func replicate(t *testing.T, args ...string) *replicated {
	t.Helper()
	r := &replicated{primary: registrytest.StartRedis(t)}
	r.link, r.way = registrytest.StartProxy(t, r.primary.Addr()), registrytest.StartProxy(t, r.primary.Addr())
	r.near = registrytest.StartReplica(t, r.link.Addr(), args...)
	r.writer = open(t, redisstore.Options{URL: r.primary.URL()})
	r.store = open(t, redisstore.Options{URL: r.way.URL(), Read: r.near.URL(), Behind: 200 * time.Millisecond})
	return r
}

// renew writes the lease of a node that lives, for two seconds.
func (r *replicated) renew(t *testing.T) {
	t.Helper()
	r.beat++
	l := registry.Lease{Node: "london", Owner: "h", Instance: "i", TTL: 2 * time.Second, Beat: r.beat, Clock: time.Now().UnixMilli()}
	if err := r.writer.Renew(t.Context(), l); err != nil {
		t.Fatal(err)
	}
}

// reads waits until the store reads the replica or, with false, the primary. Whatever it reads
// meanwhile, the node that renews its lease has one.
func (r *replicated) reads(t *testing.T, replica bool) {
	t.Helper()
	registrytest.WaitFor(t, "another server to be read", func() bool {
		r.renew(t)
		held, err := r.held(t)
		if err == nil && !held {
			t.Fatal("a node that lives has no lease")
		}
		st, _ := r.store.Replica()
		return err == nil && st.Used == replica
	})
}

func (r *replicated) held(t *testing.T) (bool, error) {
	t.Helper()
	if _, _, err := r.store.Members(t.Context()); err != nil {
		return false, err
	}
	leases, _, err := r.store.Leases(t.Context(), []pbxmesh.NodeID{"london"})
	_, held := leases["london"]
	return held, err
}

// What is written goes to the primary, and what is read comes from the replica, from the first look on.
func TestReadsFromReplica(t *testing.T) {
	t.Parallel()
	primary := registrytest.StartRedis(t)
	near := registrytest.StartReplica(t, primary.Addr())
	s := open(t, redisstore.Options{URL: primary.URL() + "/2", Read: near.URL()})
	ctx := context.Background()
	if err := s.Announce(ctx, registry.Announcement{Node: pbxmesh.Node{ID: "london"}}); err != nil {
		t.Fatal(err)
	}
	registrytest.WaitFor(t, "the member at the replica", func() bool {
		members, _, err := s.Members(ctx)
		return err == nil && len(members) == 1
	})
	if n := called(t, client(t, primary.Addr()), "hgetall"); n != 0 {
		t.Errorf("the primary was read %d times", n)
	}
	told := make(chan string, 1)
	heard := make(chan struct{}, 1)
	go func() {
		_ = s.Listen(t.Context(), s.KeyPrefix()+"told", func(payload string, begins bool) {
			if begins {
				heard <- struct{}{}
				return
			}
			told <- payload
		})
	}()
	<-heard
	if err := client(t, primary.Addr()).Publish(ctx, s.KeyPrefix()+"told", "hello").Err(); err != nil {
		t.Fatal(err)
	}
	if got := <-told; got != "hello" {
		t.Errorf("the replica told %q", got)
	}
	if n := called(t, client(t, primary.Addr()), "subscribe"); n != 0 {
		t.Errorf("the primary was listened to %d times", n)
	}
}

// A replica that follows no more is read no more, before anything that it shows is taken for
// silence; and is read again when it follows.
func TestReplicaCutOff(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(*replicated){
		"cut":     func(r *replicated) { r.link.Cut() },
		"stalled": func(r *replicated) { r.link.Stall(true) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := replicate(t)
			r.reads(t, true)
			stop(r)
			r.reads(t, false)
			if st, ok := r.store.Replica(); !ok || st.Err == nil || st.Behind == 0 {
				t.Errorf("status %+v", st)
			}
			if lag := r.store.Lag(); lag != 0 {
				t.Errorf("what the primary shows is %s old", lag)
			}
			r.link.Heal()
			r.reads(t, true)
		})
	}
}

// A replica that is killed, hangs, or refuses is not waited for: the same call reads the primary.
func TestReplicaGone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args       []string
		stop, heal func(*testing.T, *replicated) error
	}{
		"killed": {
			stop: func(_ *testing.T, r *replicated) error { return r.near.Kill() },
			heal: func(_ *testing.T, r *replicated) error { return r.near.Start() },
		},
		"hangs": {
			stop: func(_ *testing.T, r *replicated) error { return r.near.Pause() },
			heal: func(_ *testing.T, r *replicated) error { return r.near.Resume() },
		},
		"MASTERDOWN": {
			args: []string{"--replica-serve-stale-data", "no"},
			stop: func(_ *testing.T, r *replicated) error { r.link.Cut(); return nil },
		},
		"NOPERM": {
			stop: func(t *testing.T, r *replicated) error {
				return client(t, r.near.Addr()).Do(t.Context(), "ACL", "SETUSER", "default", "-hgetall", "-eval", "-evalsha").Err()
			},
		},
		"promoted": {
			stop: func(t *testing.T, r *replicated) error {
				return client(t, r.near.Addr()).Do(t.Context(), "REPLICAOF", "NO", "ONE").Err()
			},
		},
		"follows another": {
			stop: func(t *testing.T, r *replicated) error {
				other := registrytest.StartRedis(t)
				s := open(t, redisstore.Options{URL: other.URL()})
				if err := s.Announce(t.Context(), registry.Announcement{Node: pbxmesh.Node{ID: "stranger"}}); err != nil {
					return err
				}
				c := client(t, r.near.Addr())
				host, port, _ := net.SplitHostPort(other.Addr())
				return c.Do(t.Context(), "REPLICAOF", host, port).Err()
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := replicate(t, c.args...)
			r.reads(t, true)
			if err := c.stop(t, r); err != nil {
				t.Fatal(err)
			}
			r.renew(t)
			for range 20 {
				members, _, err := r.store.Members(t.Context())
				if err != nil || len(members) != 0 {
					t.Fatalf("members %v, %v", members, err)
				}
			}
			r.reads(t, false)
			if c.heal == nil {
				return
			}
			if err := c.heal(t, r); err != nil {
				t.Fatal(err)
			}
			r.reads(t, true)
		})
	}
}

// While the primary is away, records are read from the replica and are as old as they are; nobody
// is silent for that.
func TestPrimaryGone(t *testing.T) {
	t.Parallel()
	r := replicate(t)
	r.reads(t, true)
	if err := r.writer.Announce(t.Context(), registry.Announcement{Node: pbxmesh.Node{ID: "london"}}); err != nil {
		t.Fatal(err)
	}
	registrytest.WaitFor(t, "the member at the replica", func() bool {
		members, _, err := r.store.Members(t.Context())
		return err == nil && len(members) == 1
	})
	if err := r.primary.Pause(); err != nil {
		t.Fatal(err)
	}
	r.way.Cut()
	began := time.Now()
	registrytest.WaitFor(t, "the replica to be older than a lease", func() bool {
		members, _, err := r.store.Members(t.Context())
		if err == nil && len(members) != 1 {
			t.Fatalf("members %v", members)
		}
		held, err := r.held(t)
		if err == nil && !held || r.store.Lag() > 500*time.Millisecond && !errors.Is(err, pbxmesh.ErrUnavailable) {
			t.Fatalf("leases that nobody renews: %v, %v", held, err)
		}
		if _, _, err := r.store.Beats(t.Context(), registry.NoteVotes); r.store.Lag() > 500*time.Millisecond && !errors.Is(err, pbxmesh.ErrUnavailable) {
			t.Fatalf("beats of nobody: %v", err)
		}
		return r.store.Lag() > 3*time.Second
	})
	if lag, gone := r.store.Lag(), time.Since(began); lag > gone+2*time.Second {
		t.Errorf("%s behind, %s after the primary went", lag, gone)
	}
	if err := r.primary.Resume(); err != nil {
		t.Fatal(err)
	}
	r.way.Heal()
	r.reads(t, true)
}

// Who publishes a node sees what the primary has of it.
func TestOwnRecordsFromPrimary(t *testing.T) {
	t.Parallel()
	r := replicate(t)
	r.reads(t, true)
	r.link.Stall(true)
	ctx := t.Context()
	term, err := r.store.Publish(ctx, registry.Publication{Node: "paris", Owner: "h", Instance: "p", Term: 1, Digests: registry.Digests{}})
	if err != nil {
		t.Fatal(err)
	}
	at, err := r.store.Snapshot(ctx, "paris", func(registry.Record) {})
	if err != nil || at.Term != term {
		t.Errorf("at %+v, %v", at, err)
	}
	if _, err := r.store.Changes(ctx, []registry.Cursor{{Node: "paris", Term: 1}}); err != nil {
		t.Error(err)
	}
}

// A replica that has not come as far as a reader has lost no notes.
func TestNotesOfLateReplica(t *testing.T) {
	t.Parallel()
	r := replicate(t)
	r.reads(t, true)
	r.link.Stall(true)
	ctx := t.Context()
	note := registry.Note{Kind: registry.NoteWanted, Key: "london", Value: "1"}
	if err := r.writer.Post(ctx, note); err != nil {
		t.Fatal(err)
	}
	notes, revision, _, err := r.store.Notes(ctx, note.Kind, 0) // all of them: the primary knows
	if err != nil || len(notes) != 1 {
		t.Fatalf("notes %v, %v", notes, err)
	}
	if notes, next, _, err := r.store.Notes(ctx, note.Kind, revision); err != nil || next < revision {
		t.Errorf("%v, revision %d after %d, %v", notes, next, revision, err)
	}
}

// A replica that follows nobody is not read when a daemon starts, whether the primary is there or not.
func TestOldReplicaAtStart(t *testing.T) {
	t.Parallel()
	r := replicate(t)
	if err := r.writer.Announce(t.Context(), registry.Announcement{Node: pbxmesh.Node{ID: "london"}}); err != nil {
		t.Fatal(err)
	}
	near := client(t, r.near.Addr())
	registrytest.WaitFor(t, "the member at the replica", func() bool {
		n, err := near.HLen(t.Context(), "pbxmesh:members").Result()
		return err == nil && n == 1
	})
	if err := near.Do(t.Context(), "REPLICAOF", "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	if err := r.writer.Forget(t.Context(), "london"); err != nil {
		t.Fatal(err)
	}
	members, _, err := r.store.Members(t.Context())
	if err != nil || len(members) != 1 || !members[0].Gone {
		t.Errorf("members %v, %v", members, err)
	}
	if err := r.primary.Kill(); err != nil {
		t.Fatal(err)
	}
	s := open(t, redisstore.Options{URL: r.way.URL(), Read: r.near.URL()})
	if members, _, err := s.Members(t.Context()); !errors.Is(err, pbxmesh.ErrUnavailable) {
		t.Errorf("members %v, %v", members, err)
	}
}

// Where a replica cannot be read, or is asked for another mesh, there is no store.
func TestReadRefused(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]redisstore.Options{
		"cluster":  {Addresses: []string{"127.0.0.1:1"}, Read: "redis://127.0.0.1:2"},
		"no URL":   {URL: "redis://127.0.0.1:1", Read: "127.0.0.1"},
		"database": {URL: "redis://127.0.0.1:1/2", Read: "redis://127.0.0.1:2/3"},
	} {
		if s, err := redisstore.New(o); err == nil {
			t.Errorf("%s: %v", name, errors.Join(err, s.Close()))
		}
	}
}

// A lease that the replica does not have is asked for at the primary, a few times.
func TestAbsentLeaseIsConfirmed(t *testing.T) {
	t.Parallel()
	r := replicate(t)
	l := registry.Lease{Node: "london", Owner: "h", Instance: "i", TTL: time.Hour, Beat: 1}
	if err := r.writer.Renew(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	r.beat = l.Beat
	near, primary := client(t, r.near.Addr()), client(t, r.primary.Addr())
	const key = "pbxmesh:{london}:lease"
	registrytest.WaitFor(t, "the lease at the replica", func() bool {
		n, err := near.Exists(t.Context(), key).Result()
		return err == nil && n == 1
	})
	if err := errors.Join(near.ConfigSet(t.Context(), "replica-read-only", "no").Err(), near.Del(t.Context(), key).Err()); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if held, err := r.held(t); err != nil || !held {
			t.Fatalf("held %v, %v", held, err)
		}
	}
	if st, _ := r.store.Replica(); !st.Used {
		t.Fatalf("%+v", st)
	}
	if err := primary.Del(t.Context(), key).Err(); err != nil {
		t.Fatal(err)
	}
	asked := called(t, primary, "mget")
	for range 20 {
		if held, err := r.held(t); err != nil || held {
			t.Fatalf("held %v, %v", held, err)
		}
	}
	if n := called(t, primary, "mget") - asked; n != 5 {
		t.Errorf("the primary was asked %d times", n)
	}
	r.way.Cut() // what is not known is no verdict
	s := open(t, redisstore.Options{URL: r.way.URL(), Read: r.near.URL()})
	if _, _, err := s.Leases(t.Context(), []pbxmesh.NodeID{"london"}); !errors.Is(err, pbxmesh.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

// Between two looks, too, a replica that is gone or shows another mesh is not believed.
func TestReplicaLostBetweenLooks(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*testing.T, *replicated) error{
		"gone": func(_ *testing.T, r *replicated) error { return r.near.Kill() },
		"emptied": func(t *testing.T, r *replicated) error {
			near := client(t, r.near.Addr())
			if err := near.ConfigSet(t.Context(), "replica-read-only", "no").Err(); err != nil {
				return err
			}
			return errors.Join(near.Do(t.Context(), "REPLICAOF", "NO", "ONE").Err(), near.FlushAll(t.Context()).Err())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := replicate(t)
			r.reads(t, true)
			if err := lose(t, r); err != nil {
				t.Fatal(err)
			}
			primary := client(t, r.primary.Addr())
			if _, err := r.store.Changes(t.Context(), []registry.Cursor{{Node: "london", Term: 1}}); err != nil {
				t.Error(err)
			}
			if n := called(t, primary, "xread"); n != 1 {
				t.Errorf("the primary was asked %d times", n)
			}
		})
	}
}
