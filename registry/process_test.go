package registry_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

const processEnv = "PBXMESH_TEST_DAEMON"

// TestDaemonProcess is no test: it is london's daemon in a process of its own, for the
// tests that kill it. It ends when it is killed.
func TestDaemonProcess(t *testing.T) {
	url := os.Getenv(processEnv)
	if url == "" {
		t.Skip("it is run by other tests")
	}
	devices, _ := strconv.Atoi(os.Getenv(processEnv + "_DEVICES"))
	store, err := redisstore.New(redisstore.Options{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	r := registry.NewReplica(registry.ReplicaOptions{Local: "london"})
	w, err := registry.NewWriter(registry.WriterOptions{
		Node: pbxmesh.Node{ID: "london"}, Replica: r, Backend: store, Owner: "host",
		LeaseTTL: 3 * time.Second, RenewEvery: 40 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	regs := make([]pbxmesh.Registration, devices)
	for n := range regs {
		regs[n] = device("london", n)
	}
	w.Reset("core-"+os.Getenv(processEnv+"_LIFE"), regs)
	_ = w.Run(context.Background())
}

// process starts london's daemon with so many devices; end kills it like kill -9.
func process(t *testing.T, url, life string, devices int) (end func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestDaemonProcess$")
	cmd.Env = append(os.Environ(), processEnv+"="+farURL(t, url), processEnv+"_LIFE="+life, fmt.Sprintf("%s_DEVICES=%d", processEnv, devices))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = func() { _, _ = cmd.Process.Kill(), cmd.Wait() }
	t.Cleanup(end)
	return end
}

func devicesOf(n int) map[string]bool {
	want := map[string]bool{}
	for i := range n {
		reg := device("london", i)
		want[line(&reg)] = true
	}
	return want
}

// A daemon is killed by SIGKILL between the chunks of a full publication. Others go on
// with what it published before; its next life takes over and everybody converges.
func TestFaultProcessKilledWhilePublishing(t *testing.T) {
	t.Parallel()
	server := registrytest.StartRedis(t)
	link := registrytest.StartProxy(t, server.Addr())
	dns := start(t, "", opened(t, redisstore.Options{URL: server.URL()}), tuning{})
	holds := func(n int) func() bool { return func() bool { return maps.Equal(view(dns.r), devicesOf(n)) } }

	end := process(t, server.URL(), "1", 50)
	registrytest.WaitFor(t, "the first life", holds(50))
	end()
	raw := rawClient(t, server.URL())
	old, err := raw.HGet(t.Context(), "pbxmesh:{london}:meta", "term").Result()
	if err != nil {
		t.Fatal(err)
	}

	const many = 8000 // sixteen chunks
	link.SetDelay(30 * time.Millisecond)
	end = process(t, link.URL(), "2", many)
	half := func() (string, int64) {
		keys, err := raw.Keys(t.Context(), "pbxmesh:{london}:rec:*").Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			if key != "pbxmesh:{london}:rec:"+old {
				return key, raw.HLen(t.Context(), key).Val()
			}
		}
		return "", 0
	}
	registrytest.WaitFor(t, "the middle of the publication", func() bool { _, n := half(); return n > 0 })
	end()
	if key, n := half(); n == 0 || n >= many {
		t.Fatalf("%s holds %d of %d records: it was not killed in the middle", key, n, many)
	}
	if term := raw.HGet(t.Context(), "pbxmesh:{london}:meta", "term").Val(); term != old {
		t.Fatalf("term %s counts, want %s", term, old)
	}
	registrytest.WaitFor(t, "the lease to end", func() bool { return !member(dns, "london").LeaseHeld })
	if !holds(50)() {
		t.Error("half a publication was read")
	}

	link.Heal()
	began := time.Now()
	process(t, server.URL(), "3", many)
	registrytest.WaitFor(t, "the next life", holds(many))
	t.Logf("a process killed while publishing: converged %.2f s after its restart", time.Since(began).Seconds())
	late := start(t, "", opened(t, redisstore.Options{URL: server.URL()}), tuning{})
	registrytest.WaitFor(t, "a reader that starts now", func() bool { return maps.Equal(view(late.r), devicesOf(many)) })
}

// Two daemon processes for one node: the second one publishes nothing while the first
// lives, and takes over when that is killed.
func TestFaultTwoProcesses(t *testing.T) {
	t.Parallel()
	server := registrytest.StartRedis(t)
	dns := start(t, "", opened(t, redisstore.Options{URL: server.URL()}), tuning{})
	end := process(t, server.URL(), "1", 10)
	registrytest.WaitFor(t, "the first", func() bool { return maps.Equal(view(dns.r), devicesOf(10)) && member(dns, "london").LeaseHeld })
	instance := member(dns, "london").Lease.Instance
	process(t, server.URL(), "2", 20)
	// A third one, in this process, is refused as well, and named whom by.
	third := start(t, "london", opened(t, redisstore.Options{URL: server.URL()}), tuning{owner: "elsewhere"})
	third.boot("core-3", 1)
	registrytest.WaitFor(t, "a refusal", func() bool { return errors.Is(third.w.Status().Err, registry.ErrFenced) })
	for range 5 {
		beat := member(dns, "london").Lease.Beat
		registrytest.WaitFor(t, "the first one's next renewal", func() bool { return member(dns, "london").Lease.Beat > beat })
	}
	if got := member(dns, "london").Lease.Instance; got != instance || !maps.Equal(view(dns.r), devicesOf(10)) {
		t.Errorf("instance %s, want %s; the reader holds %d devices, want 10", got, instance, len(view(dns.r)))
	}
	third.stop()
	end()
	began := time.Now()
	registrytest.WaitFor(t, "the second one to take over", func() bool { return maps.Equal(view(dns.r), devicesOf(20)) })
	t.Logf("two processes: the second took over %.2f s after the first was killed", time.Since(began).Seconds())
}
