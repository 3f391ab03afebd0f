package app

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pbxmesh/registry/redisstore"
)

// replicaEvery is how often it is looked whether the replica is read, for the log alone.
const replicaEvery = time.Second

// replicated is a store that may read a replica of itself.
type replicated interface {
	Replica() (redisstore.ReplicaStatus, bool)
}

// watchReplica says when the replica of registry.read is read and when it is not, until ctx ends.
func (a *App) watchReplica(ctx context.Context) error {
	store, ok := a.backend.(replicated)
	if !ok { // a test's
		<-ctx.Done()
		return ctx.Err()
	}
	var said, used bool
	return every(ctx, replicaEvery, func() {
		st, _ := store.Replica()
		if said && st.Used == used || !said && !st.Used && st.Err == nil { // nobody has looked yet
			return
		}
		said, used = true, st.Used
		if used {
			a.log.Info("the replica of the registry is read", "behind", st.Behind)
		} else {
			a.log.Warn("the replica of the registry is not read, but the primary", "behind", st.Behind, "err", st.Err)
		}
	})
}

type replicaCollector struct{ a *App }

var (
	descReplicaUsed = prometheus.NewDesc("pbxmesh_registry_replica_used",
		"1 while the replica of registry.read is read, 0 while the primary is. Absent without one.", nil, nil)
	descReplicaBehind = prometheus.NewDesc("pbxmesh_registry_replica_behind_seconds",
		"How far the replica of registry.read was behind when it was looked at, up to a second less than it is.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c replicaCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- descReplicaUsed
	ch <- descReplicaBehind
}

// Collect implements prometheus.Collector.
func (c replicaCollector) Collect(ch chan<- prometheus.Metric) {
	store, ok := c.a.backend.(replicated)
	if !ok {
		return
	}
	st, ok := store.Replica()
	if !ok {
		return
	}
	used := 0.0
	if st.Used {
		used = 1
	}
	ch <- prometheus.MustNewConstMetric(descReplicaUsed, prometheus.GaugeValue, used)
	ch <- prometheus.MustNewConstMetric(descReplicaBehind, prometheus.GaugeValue, st.Behind.Seconds())
}
