package native

import (
	"context"
	"errors"
	"sync"
	"time"

	"pbxmesh"
)

// The kinds of state that nodes tell one another.
const (
	KindCall    = "presence" // a running call of a local user: Key is its unique id and the user
	KindStatus  = "status"   // presence without a call: Key is the protocol and who is watched
	KindMailbox = "mwi"      // messages in a mailbox of this node: Key is the user
)

// State is one thing that a node knows and others show. Its owner repeats it while
// it holds and says when it ends; who hears nothing for TTL takes it for ended.
// Lifetimes are counted by the receiver's clock, so no two clocks need to agree.
type State struct {
	Kind string         `json:"kind"`
	Node pbxmesh.NodeID `json:"node"` // the owner
	Key  string         `json:"key"`  // unique within kind and node
	AOR  pbxmesh.AOR    `json:"aor,omitzero"`

	// From is whom the state is about as the owner's switch wrote it, with its capital
	// letters. What is no AOR, such as a feature code, has this alone. "" is the AOR.
	From string `json:"from,omitempty"`

	// Epoch is the Core-UUID of the owner's switch: calls of another one are over.
	Epoch string `json:"epoch"`

	// Run and Seq order the states of one key: within a Run the higher Seq is the
	// newer one; a Run is one life of the owner's daemon.
	Run string `json:"run"`
	Seq uint64 `json:"seq"`

	// Change numbers what is shown: a repetition keeps it.
	Change uint64 `json:"change"`

	TTL    time.Duration     `json:"ttl"`
	Ended  bool              `json:"ended,omitempty"`
	Fields map[string]string `json:"fields,omitempty"` // headers of the switch's event

	told time.Time // by the owner's clock, for its own use
}

// Exchange carries states between nodes. It may lose some: owners repeat them.
type Exchange interface {
	// Publish makes st known to all followers, this node's included, and stores it
	// for those who come later until it ends or nobody repeats it. It returns when
	// ctx ends at the latest; the error is for statistics.
	Publish(ctx context.Context, st State) error

	// Follow calls fn for what is stored of kind and then for what is published,
	// in the order of each owner, and returns when ctx ends or nothing more would
	// come; the caller then follows again. fn does not block.
	Follow(ctx context.Context, kind string, fn func(State)) error
}

// errBehind ends a follower that did not keep up.
var errBehind = errors.New("follower is too slow: it starts again from what is stored")

// Memory is an Exchange within one process: for tests, the demo and a mesh of one.
type Memory struct {
	mu        sync.Mutex
	states    map[memoryKey]State
	followers map[*memoryFollower]struct{}
}

type memoryKey struct {
	kind string
	node pbxmesh.NodeID
	key  string
}

type memoryFollower struct {
	kind   string
	queue  chan State
	behind chan struct{}
}

var _ Exchange = (*Memory)(nil)

// memoryQueue bounds what waits for one follower.
const memoryQueue = 4096

// NewMemory returns an empty exchange.
func NewMemory() *Memory {
	return &Memory{states: make(map[memoryKey]State), followers: make(map[*memoryFollower]struct{})}
}

// Publish implements Exchange; it never fails.
func (m *Memory) Publish(_ context.Context, st State) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := memoryKey{st.Kind, st.Node, st.Key}
	if st.Ended {
		delete(m.states, k)
	} else {
		m.states[k] = st
	}
	for f := range m.followers {
		if f.kind != st.Kind {
			continue
		}
		select {
		case f.queue <- st:
		default:
			delete(m.followers, f)
			close(f.behind)
		}
	}
	return nil
}

// Follow implements Exchange.
func (m *Memory) Follow(ctx context.Context, kind string, fn func(State)) error {
	f := &memoryFollower{kind: kind, queue: make(chan State, memoryQueue), behind: make(chan struct{})}
	m.mu.Lock()
	var stored []State
	for k, st := range m.states {
		if k.kind == kind {
			stored = append(stored, st)
		}
	}
	m.followers[f] = struct{}{}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.followers, f)
	}()
	for _, st := range stored {
		fn(st)
	}
	for {
		select {
		case st := <-f.queue:
			fn(st)
		case <-f.behind:
			return errBehind
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
