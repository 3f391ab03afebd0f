package redirect

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
)

// envBench is the UDP address that scripts/bench-redirect.sh wants a server at.
const envBench = "PBXMESH_REDIRECT_BENCH"

// replicaDirectory looks up in the replica that a daemon has.
type replicaDirectory struct{ *registry.Replica }

func (d replicaDirectory) Lookup(_ context.Context, aor pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
	return d.Replica.Lookup(aor), 0, nil
}

// TestBenchServer is no test: it is the server that sipp asks, with 10,000 users in
// a registry.Replica, until it is interrupted. PBXMESH_REDIRECT_PROFILE names a file
// for a CPU profile.
func TestBenchServer(t *testing.T) {
	at := os.Getenv(envBench)
	if at == "" {
		t.Skip("run by make bench-redirect")
	}
	const users = 10_000
	backend := memory.New(memory.Options{})
	defer backend.Close()
	replica := registry.NewReplica(registry.ReplicaOptions{Local: "london"})
	w := newWorld()
	writer, err := registry.NewWriter(registry.WriterOptions{Node: w.mesh.Nodes["london"], Replica: replica, Backend: backend})
	if err != nil {
		t.Fatal(err)
	}
	regs := make([]pbxmesh.Registration, 0, users)
	for i := range users {
		user := fmt.Sprintf("u%05d", i)
		aor, err := pbxmesh.NewAOR(user, domain)
		if err != nil {
			t.Fatal(err)
		}
		regs = append(regs, pbxmesh.Registration{
			AOR: aor, Node: "london", CallID: "call-" + user, Contact: "sip:" + user + "@192.0.2.7:5060",
			Profile: "internal", Transport: "udp", UserAgent: "bench", Expires: time.Now().Add(time.Hour),
		})
	}
	writer.Reset("bench", regs)
	if n := replica.Stats().Registrations; n != users {
		t.Fatalf("the replica holds %d users", n)
	}
	o := w.options()
	o.Directory, o.UDP = replicaDirectory{replica}, []netip.AddrPort{netip.MustParseAddrPort(at)}
	s := newServer(t, o)
	if file := os.Getenv("PBXMESH_REDIRECT_PROFILE"); file != "" {
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			t.Fatal(err)
		}
		defer pprof.StopCPUProfile()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	<-ctx.Done()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.Logf("%+v", s.Stats())
	t.Logf("garbage collections %d", m.NumGC)
}

// BenchmarkAnswer is the way of one INVITE through the server without its sockets.
func BenchmarkAnswer(b *testing.B) {
	world := newWorld()
	world.register(b, "1002", domain, "london")
	s, err := New(world.options())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Shutdown(context.Background())
	packet := []byte(invite("INVITE", "sip:1002@pbx.test"))
	from := netip.MustParseAddrPort("127.0.0.1:5999")
	w := new(worker)
	b.ReportAllocs()
	b.SetBytes(int64(len(packet)))
	for b.Loop() {
		if out, _ := s.answer(w, packet, from, UDP); out == nil {
			b.Fatal("no answer")
		}
	}
}
