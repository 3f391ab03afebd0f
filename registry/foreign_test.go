package registry_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// rawClient is a stranger with the password.
func rawClient(t testing.TB, url string) *redis.Client {
	t.Helper()
	o, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(o)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// What a stranger writes into Redis is skipped, found, and repaired by the node
// whose place it is.
func TestForeignDataInRedis(t *testing.T) {
	t.Parallel()
	const tag = "pbxmesh:{buffalo}:"
	recordsKey := func(t *testing.T, c *redis.Client) string {
		t.Helper()
		term, err := c.HGet(context.Background(), tag+"meta", "term").Result()
		if err != nil {
			t.Fatal(err)
		}
		return tag + "rec:" + term
	}
	// In one step, or the owner writes its own between the two.
	replace := func(t *testing.T, c *redis.Client, key string, write func(redis.Pipeliner, string)) error {
		t.Helper()
		_, err := c.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
			p.Del(t.Context(), key)
			write(p, key)
			return nil
		})
		return err
	}
	for name, harm := range map[string]func(t *testing.T, c *redis.Client) error{
		"the log is a string":  func(t *testing.T, c *redis.Client) error { return c.Set(t.Context(), tag+"log", "x", 0).Err() },
		"the meta is a string": func(t *testing.T, c *redis.Client) error { return c.Set(t.Context(), tag+"meta", "x", 0).Err() },
		"the lease is a list": func(t *testing.T, c *redis.Client) error {
			return replace(t, c, tag+"lease", func(p redis.Pipeliner, key string) { p.RPush(t.Context(), key, "x") })
		},
		"the lease is no JSON": func(t *testing.T, c *redis.Client) error { return c.Set(t.Context(), tag+"lease", `{"v":1`, 0).Err() },
		"the members are a set": func(t *testing.T, c *redis.Client) error {
			return replace(t, c, "pbxmesh:members", func(p redis.Pipeliner, key string) { p.SAdd(t.Context(), key, "x") })
		},
		"hostile members": func(t *testing.T, c *redis.Client) error {
			return c.HSet(t.Context(), "pbxmesh:members", "x}y", "{}", "paris", "null").Err()
		},
		"the records are a string": func(t *testing.T, c *redis.Client) error { return c.Set(t.Context(), recordsKey(t, c), "x", 0).Err() },
		"a record too many": func(t *testing.T, c *redis.Client) error {
			return c.HSet(t.Context(), recordsKey(t, c), "registration|1001,sofia/gateway/x@pbx.test|AAAAAAAAAAAAAAAA", `1 {"v":1}`).Err()
		},
		"a record too few": func(t *testing.T, c *redis.Client) error {
			fields, err := c.HKeys(t.Context(), recordsKey(t, c)).Result()
			if err != nil {
				return err
			}
			return c.HDel(t.Context(), recordsKey(t, c), fields[0]).Err()
		},
		"an entry of the last id": func(t *testing.T, c *redis.Client) error {
			return c.XAdd(t.Context(), &redis.XAddArgs{Stream: tag + "log", ID: "18446744073709551615-18446744073709551615", Values: []string{"a", "b"}}).Err()
		},
		"an entry without meaning": func(t *testing.T, c *redis.Client) error {
			return c.XAdd(t.Context(), &redis.XAddArgs{Stream: tag + "log", Values: []string{"v", "1", "p", "zero"}}).Err()
		},
		"a term beyond numbers": func(t *testing.T, c *redis.Client) error {
			return c.HSet(t.Context(), tag+"meta", "term", "99999999999999999999", "next", "1e300").Err()
		},
		"a sequence ahead": func(t *testing.T, c *redis.Client) error {
			return c.HSet(t.Context(), tag+"meta", "seq", "777777").Err()
		},
		"a stranger's lease that never ends": func(t *testing.T, c *redis.Client) error {
			l := registry.Lease{Node: "buffalo", Owner: "stranger", Instance: "x", Beat: 1, TTL: time.Hour}
			text, err := registry.EncodeLease(&l)
			if err != nil {
				return err
			}
			return c.Set(t.Context(), tag+"lease", text, 0).Err()
		},
		"a lease of numbers": func(t *testing.T, c *redis.Client) error {
			return c.Set(t.Context(), tag+"lease", `{"v":1,"body":{"node":1,"owner":[],"instance":{},"beat":"x"}}`, time.Hour).Err()
		},
		"a huge record": func(t *testing.T, c *redis.Client) error {
			return c.HSet(t.Context(), recordsKey(t, c), "registration|1001@pbx.test|AAAAAAAAAAAAAAAA", "1 "+strings.Repeat("[", 8<<20)).Err()
		},
		"a huge announcement": func(t *testing.T, c *redis.Client) error {
			return c.HSet(t.Context(), "pbxmesh:members", "paris", strings.Repeat("[", 8<<20)).Err()
		},
		"a record of a later version": func(t *testing.T, c *redis.Client) error {
			return c.HSet(t.Context(), recordsKey(t, c), "registration|1001@pbx.test|AAAAAAAAAAAAAAAA", `1 {"v":2,"future":true}`).Err()
		},
		"no meta": func(t *testing.T, c *redis.Client) error { return c.Del(t.Context(), tag+"meta").Err() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := registrytest.StartRedis(t)
			store, err := redisstore.New(redisstore.Options{URL: server.URL(), Timeout: 500 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = store.Close() })
			buffalo, london, dns := three(t, faults{store: store})
			if err := harm(t, rawClient(t, server.URL())); err != nil {
				t.Fatal(err)
			}
			buffalo.register(100)
			london.register(100)
			converge(t, []*daemon{buffalo, london}, dns)
			// Who starts now reads nothing but the store.
			converge(t, []*daemon{buffalo, london}, start(t, "", store, tuning{}))
		})
	}
}

// A record that is valid but not what its node published is found by the digest of
// whoever reads it, and by its node when that looks, which publishes it again.
func TestDriftIsRepaired(t *testing.T) {
	t.Parallel()
	store := memory.New(memory.Options{})
	buffalo, london, _ := three(t, faults{store: store})
	victim := buffalo.held[5]
	store.Tamper("buffalo", func(get func(registry.Kind, string) (registry.Record, bool), set func(registry.Record)) {
		key := registry.RegistrationKey(victim.ID())
		rec, ok := get(registry.KindRegistration, key)
		if !ok {
			t.Fatal("no such record")
		}
		changed := strings.Replace(rec.Value, "192.0.2.9", "192.0.2.8", 1)
		if changed == rec.Value {
			t.Fatalf("%s has no such contact", rec.Value)
		}
		rec.Value = changed // as good as any other, but nobody published it
		set(rec)
	})
	late := start(t, "", store, tuning{})
	converge(t, []*daemon{buffalo, london}, late)
	if s := late.r.Stats(); s.Drift == 0 || s.Bad != 0 {
		t.Errorf("stats %+v: drift must be counted, and no record was bad", s)
	}
	if m := member(late, "buffalo"); m.Drift == 0 {
		t.Errorf("member %+v", m)
	}
}

// A daemon of a later version publishes kinds of records that this one does not
// know. They are skipped and counted, and are no reason to repair anything.
func TestVersionsSideBySide(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		buffalo, london, dns := three(t, f)
		ctx := context.Background()
		later := func(key string, seq uint64) registry.Record {
			return registry.Record{Kind: "presence", Key: key, Value: "\x01 another format", Seq: seq}
		}
		future := registry.Digests{"presence": {Count: 2, Sum: 77}, "voicemail": {}}
		term, err := f.store.Publish(ctx, registry.Publication{
			Node: "paris", Epoch: "core-p", Owner: "later", Instance: "later", Term: 1,
			Records: []registry.Record{later("1001@pbx.test", 1), later("1002@pbx.test", 1)}, Digests: future,
		})
		if err != nil {
			t.Fatal(err)
		}
		lease := registry.Lease{Node: "paris", Owner: "later", Instance: "later", Term: term, Seq: 1, Digests: future, TTL: time.Minute}
		if err := errors.Join(f.store.Announce(ctx, registry.Announcement{Node: pbxmesh.Node{ID: "paris"}}), f.store.Renew(ctx, lease)); err != nil {
			t.Fatal(err)
		}
		registrytest.WaitFor(t, "paris to be read", func() bool { return member(dns, "paris").LeaseHeld && dns.r.Stats().UnknownKinds >= 2 })
		b := registry.Batch{Node: "paris", Term: term, Seq: 2, Prev: 1, Epoch: "core-p", Records: []registry.Record{later("1001@pbx.test", 2)}, Digests: future}
		if err := f.store.Append(ctx, b); err != nil {
			t.Fatal(err)
		}
		registrytest.WaitFor(t, "its change", func() bool { return dns.r.Stats().UnknownKinds >= 3 })
		for beat := uint64(2); beat < 6; beat++ { // digests are compared at every renewal that is seen
			lease.Beat, lease.Seq = beat, 2
			if err := f.store.Renew(ctx, lease); err != nil {
				t.Fatalf("the later version is asked for a repair: %v", err)
			}
			registrytest.WaitFor(t, "the renewal", func() bool { return member(dns, "paris").Lease.Beat == beat })
		}
		buffalo.register(100)
		converge(t, []*daemon{buffalo, london}, dns)
		if s := dns.r.Stats(); s.Drift != 0 || s.Bad != 0 {
			t.Errorf("stats %+v: what is unknown is not wrong", s)
		}
	})
}

// A later version publishes registrations that this one cannot read: each is counted,
// named once, and costs nobody anything, the node that wrote it least of all.
func TestUnreadCostsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(memory.Options{})
		var log bytes.Buffer
		later := start(t, "paris", store, tuning{productive: true})
		reader := start(t, "london", store, tuning{productive: true, bugs: registry.Older, log: &log})
		later.boot("core-1", 1, 2, 3)
		later.registerLater(4)
		time.Sleep(10 * time.Second)
		later.registerLater(5)
		later.registerLater(1) // what was known of it before is over
		time.Sleep(10 * time.Second)
		synctest.Wait()
		before, published := reader.r.Stats(), later.w.Status()
		if before.Registrations != 2 || before.Bad != 3 || before.Drift != 0 || published.Publications != 1 {
			t.Fatalf("reader %+v, writer %+v", before, published)
		}
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		if after, s := reader.r.Stats(), later.w.Status(); after != before || s.Publications != 1 || s.Foreign != 0 || s.Batches != published.Batches {
			t.Errorf("50 minutes later: reader %+v, before %+v; writer %+v", after, before, s)
		}
		if m := member(reader, "paris"); m.Unread != 3 || time.Since(m.Fresh) > 2*time.Second {
			t.Errorf("member %+v", m)
		}
		// They can be read again, and end.
		later.register(5)
		later.unregister(1, 4)
		time.Sleep(time.Second)
		synctest.Wait()
		if after := reader.r.Stats(); after.Registrations != 3 || after.Drift != 0 || after.Loads != before.Loads || member(reader, "paris").Unread != 0 {
			t.Errorf("reader %+v", after)
		}
		reader.stop()
		later.stop()
		if n := strings.Count(log.String(), "cannot be read by this version"); n != 1 {
			t.Errorf("it was said %d times:\n%s", n, log.String())
		}
	})
}
