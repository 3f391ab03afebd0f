package redisstore_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// lostAnswers lets commands through and loses the answer to the one at which armed is 1.
type lostAnswers struct {
	armed atomic.Int64
	lost  func()
}

func (l *lostAnswers) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (l *lostAnswers) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd.Name() == "evalsha" && err == nil && l.armed.Add(-1) == 0 {
			l.lost()
			err = context.Canceled
			cmd.SetErr(err)
		}
		return err
	}
}

func (l *lostAnswers) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A publication whose end was not heard of may count: what it published stays.
func TestLostEndOfPublication(t *testing.T) {
	t.Parallel()
	server := registrytest.StartRedis(t)
	writer, reader := open(t, redisstore.Options{URL: server.URL()}), open(t, redisstore.Options{URL: server.URL()})
	rec := registry.Record{Kind: registry.KindRegistration, Key: "a@b|c", Value: "{}", Seq: 1}
	p := registry.Publication{Node: "london", Instance: "i", Epoch: "e", Records: []registry.Record{rec}}
	if _, err := writer.Publish(t.Context(), p); err != nil { // the scripts are known from now on
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	hook := &lostAnswers{lost: cancel}
	hook.armed.Store(2) // the beginning, and the end
	writer.Client().AddHook(hook)
	if _, err := writer.Publish(ctx, p); !errors.Is(err, pbxmesh.ErrUnavailable) {
		t.Fatalf("a publication without an answer: %v", err)
	}
	n := 0
	if _, err := reader.Snapshot(t.Context(), "london", func(registry.Record) { n++ }); err != nil || n != 1 {
		t.Errorf("%d records are left, %v", n, err)
	}
}
