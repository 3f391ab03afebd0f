package demo_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"pbxmesh/internal/demo"
	"pbxmesh/registry/registrytest"
)

func TestMain(m *testing.M) {
	// A pool that cannot reach its Redis tries again in a second, and only then sees that
	// it was closed.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

// play runs the demo to its end and returns what it printed.
func play(t *testing.T, o demo.Options) (string, error) {
	t.Helper()
	var out bytes.Buffer
	o.Once, o.Out = true, &out
	err := demo.Run(t.Context(), o)
	return out.String(), err
}

func TestStoryHolds(t *testing.T) {
	t.Parallel()
	store := registrytest.StartRedis(t)
	for _, registry := range []string{"memory", store.URL()} {
		text, err := play(t, demo.Options{Registry: registry})
		if err != nil {
			t.Fatalf("%s: %v\n%s", registry, err, text)
		}
		if n := strings.Count(text, "    ok, "); n != 10 {
			t.Errorf("%s: %d steps are told as ok, want 10:\n%s", registry, n, text)
		}
		for _, want := range []string{"path: 1001 127.11.0.1:", "pbxmesh_result=not-registered", "london is down", "All 10 steps held"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: the story does not say %q:\n%s", registry, want, text)
			}
		}
	}
	if left := keys(t, store.URL()); len(left) > 0 {
		t.Errorf("the demo left %v in somebody's Redis", left)
	}
}

// TestStoryCanFail takes the registry away: the demo must name the step and fail.
func TestStoryCanFail(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var out bytes.Buffer
	err := demo.Run(ctx, demo.Options{Once: true, Registry: "redis://127.0.0.1:1/0", Out: &out})
	if err == nil || !strings.Contains(err.Error(), "step 1 ") || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want step 1 and the deadline", err)
	}
	if !strings.Contains(out.String(), "FAILED") {
		t.Errorf("the story does not say that it failed:\n%s", out.String())
	}
}

// TestStoryStaysUp ends a demo that stays up as Ctrl-C does.
func TestStoryStaysUp(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &watched{needle: "Ctrl-C ends it.", found: cancel}
	err := demo.Run(ctx, demo.Options{Out: out})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want that of the context", err)
	}
	for _, want := range []string{"dig @", "pbxmesh lookup 2001@pbx.test --api ", "pbxmesh explain "} {
		if !strings.Contains(out.text.String(), want) {
			t.Errorf("it does not tell to try %q:\n%s", want, out.text.String())
		}
	}
}

// watched calls found when needle was written.
type watched struct {
	text   bytes.Buffer
	needle string
	found  func()
}

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.text.Write(p)
	if strings.Contains(string(p), w.needle) {
		w.found()
	}
	return n, err
}

// keys returns every key of a Redis.
func keys(t *testing.T, url string) []string {
	t.Helper()
	o, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(o)
	defer func() { _ = client.Close() }()
	all, err := client.Keys(t.Context(), "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	return all
}
