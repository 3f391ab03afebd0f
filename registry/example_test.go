package registry_test

import (
	"context"
	"fmt"
	"sync"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
)

// A daemon has a replica, a writer for its own switch, and a sync for everybody
// else's. A name server has no writer.
func Example() {
	store := memory.New(memory.Options{}) // or redisstore.New
	ctx, stop := context.WithCancel(context.Background())
	var tasks sync.WaitGroup

	london := registry.NewReplica(registry.ReplicaOptions{Local: "london"})
	writer, err := registry.NewWriter(registry.WriterOptions{Node: pbxmesh.Node{ID: "london"}, Replica: london, Backend: store})
	if err != nil {
		panic(err)
	}
	tasks.Go(func() { _ = writer.Run(ctx) })

	began := make(chan *pbxmesh.Registration, 1)
	dns := registry.NewReplica(registry.ReplicaOptions{OnChange: func(c registry.Change) { began <- c.New }})
	follow, err := registry.NewSync(registry.SyncOptions{Replica: dns, Backend: store})
	if err != nil {
		panic(err)
	}
	tasks.Go(func() { _ = follow.Run(ctx) })

	aor, err := pbxmesh.ParseAOR("1001@pbx.test")
	if err != nil {
		panic(err)
	}
	writer.Reset("core-uuid", []pbxmesh.Registration{{AOR: aor, Node: "london", CallID: "1", Expires: time.Now().Add(time.Hour)}})
	<-began
	for _, reg := range dns.Lookup(aor) {
		fmt.Println(reg.AOR, "is on", reg.Node, "and live:", reg.Live(time.Now()))
	}
	stop()
	tasks.Wait()
	// Output: 1001@pbx.test is on london and live: true
}
