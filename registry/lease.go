package registry

import (
	"encoding/json"
	"fmt"
	"time"

	"pbxmesh"
)

// Bounds of leases and announcements, in bytes unless said otherwise.
const (
	MaxLeaseLen        = 4096
	MaxAnnouncementLen = 4096
	MaxMembers         = 1024 // nodes
	MaxNameLen         = 128  // owner, instance, epoch, software
	maxAddresses       = 16
	maxLockLen         = 64
)

// SwitchState is what a node's own daemon says about its switch.
type SwitchState struct {
	// Known says that the daemon has looked at its switch since it started. Until
	// then the rest says nothing: a daemon that restarts does not report its
	// switch as dead.
	Known bool `json:"known"`

	Alive bool `json:"alive"` // the event socket answers

	// Dead says that the switch is known to be gone: nobody listens on its event
	// socket, or it accepts and says nothing. Neither Alive nor Dead: the daemon
	// cannot tell, because it has just started or is refused.
	Dead bool `json:"dead,omitempty"`

	Sessions    int     `json:"sessions"`
	MaxSessions int     `json:"max_sessions"`
	IdleCPU     float64 `json:"idle_cpu"` // percent
}

// Lease is a node's sign of life. It is gone from the store TTL after its last
// renewal.
type Lease struct {
	Node pbxmesh.NodeID `json:"node"`

	// Instance is new with every start of a daemon. A live lease keeps every
	// other one away, but one that puts this one's name in Over. Owner tells people
	// whose it is (a host name).
	Owner    string `json:"owner"`
	Instance string `json:"instance"`

	// Beat grows with every renewal, so that a reader sees one without trusting
	// the writer's clock.
	Beat uint64 `json:"beat"`

	// Epoch is the switch's Core-UUID. Term 0 says that the daemon lives but
	// does not publish (yet): it has not read its switch, or is publishing
	// everything anew. Term, Seq and Digests then mean nothing.
	Epoch   string  `json:"epoch"`
	Term    uint64  `json:"term"`
	Seq     uint64  `json:"seq"`
	Digests Digests `json:"digests,omitempty"`

	Switch SwitchState   `json:"switch"`
	TTL    time.Duration `json:"ttl"` // nanoseconds

	// Clock is the writer's clock at the renewal, in Unix milliseconds; 0 in
	// leases of older versions. Records expire by that clock.
	Clock int64 `json:"clock,omitempty"`

	// Over is the instance whose lease may be replaced because it is known to be
	// gone. It is said to the store and not stored.
	Over string `json:"-"`
}

// Validate returns pbxmesh.ErrInvalidRecord when a field is out of bounds.
func (l *Lease) Validate() error {
	if id, err := pbxmesh.ParseNodeID(string(l.Node)); err != nil || id != l.Node {
		return fmt.Errorf("%w: lease of node %s", pbxmesh.ErrInvalidRecord, show(string(l.Node)))
	}
	for _, s := range [...]string{l.Owner, l.Instance, l.Epoch} {
		if len(s) > MaxNameLen || !printable(s) {
			return fmt.Errorf("%w: lease of %s names %s", pbxmesh.ErrInvalidRecord, l.Node, show(s))
		}
	}
	switch {
	case l.Term > MaxNumber || l.Seq > MaxNumber || l.Beat > MaxNumber || l.Clock < 0 || l.Clock > maxUnixMilli:
		return fmt.Errorf("%w: lease of %s has a number out of range", pbxmesh.ErrInvalidRecord, l.Node)
	case l.TTL <= 0 || l.TTL > time.Hour:
		return fmt.Errorf("%w: lease of %s lasts %s", pbxmesh.ErrInvalidRecord, l.Node, l.TTL)
	case l.Switch.Sessions < 0 || l.Switch.MaxSessions < 0:
		return fmt.Errorf("%w: lease of %s counts fewer than no sessions", pbxmesh.ErrInvalidRecord, l.Node)
	case l.Switch.IdleCPU < 0 || l.Switch.IdleCPU > 100:
		return fmt.Errorf("%w: lease of %s says %f %% idle", pbxmesh.ErrInvalidRecord, l.Node, l.Switch.IdleCPU)
	}
	return l.Digests.validate()
}

// Announcement is what membership keeps of a node.
type Announcement struct {
	Node pbxmesh.Node `json:"node"`

	// Left says that the node's daemon was stopped in an orderly way. Its switch
	// may well run on.
	Left bool `json:"left,omitempty"`

	// Gone says that the node was removed for good: forget it and its records.
	Gone bool `json:"gone,omitempty"`
}

// Validate returns pbxmesh.ErrInvalidRecord when a field is out of bounds.
func (a *Announcement) Validate() error {
	n := &a.Node
	if id, err := pbxmesh.ParseNodeID(string(n.ID)); err != nil || id != n.ID {
		return fmt.Errorf("%w: announcement of node %s", pbxmesh.ErrInvalidRecord, show(string(n.ID)))
	}
	if len(n.Addresses) > maxAddresses {
		return fmt.Errorf("%w: node %s announces %d addresses, at most %d are allowed",
			pbxmesh.ErrInvalidRecord, n.ID, len(n.Addresses), maxAddresses)
	}
	for _, addr := range n.Addresses {
		if !addr.IsValid() || addr.Zone() != "" {
			return fmt.Errorf("%w: node %s announces the address %s", pbxmesh.ErrInvalidRecord, n.ID, show(addr.String()))
		}
	}
	// An IPv6 literal cannot stand in a bridge string; see pbxmesh.Node.
	if n.Mesh.IsValid() && !n.Mesh.Addr().Is4() {
		return fmt.Errorf("%w: node %s announces the mesh address %s, which is not IPv4",
			pbxmesh.ErrInvalidRecord, n.ID, show(n.Mesh.String()))
	}
	if !n.Location.Valid() || n.Capacity < 0 {
		return fmt.Errorf("%w: node %s announces the place %v or the capacity %d", pbxmesh.ErrInvalidRecord, n.ID, n.Location, n.Capacity)
	}
	if n.Site != "" && !pbxmesh.ValidSite(n.Site) {
		return fmt.Errorf("%w: node %s announces the site %s", pbxmesh.ErrInvalidRecord, n.ID, show(n.Site))
	}
	if len(n.Software) > MaxNameLen || !printable(n.Software) {
		return fmt.Errorf("%w: node %s runs %s", pbxmesh.ErrInvalidRecord, n.ID, show(n.Software))
	}
	return nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// EncodeLease returns the form that stores without a type of their own keep.
func EncodeLease(l *Lease) (string, error) {
	if err := l.Validate(); err != nil {
		return "", err
	}
	return encodeVersioned(l)
}

// DecodeLease reads the form of EncodeLease, which anyone may have written. The
// lease must be node's.
func DecodeLease(node pbxmesh.NodeID, text string) (Lease, error) {
	var l Lease
	if err := decodeVersioned("lease", text, MaxLeaseLen, &l); err != nil {
		return Lease{}, err
	}
	if err := l.Validate(); err != nil {
		return Lease{}, err
	}
	if l.Node != node {
		return Lease{}, fmt.Errorf("%w: lease of %s stands under the key of %s", pbxmesh.ErrInvalidRecord, l.Node, node)
	}
	return l, nil
}

// EncodeAnnouncement returns the form that stores without a type of their own keep.
func EncodeAnnouncement(a *Announcement) (string, error) {
	if err := a.Validate(); err != nil {
		return "", err
	}
	return encodeVersioned(a)
}

// DecodeAnnouncement reads the form of EncodeAnnouncement, which anyone may have
// written. The announcement must be node's.
func DecodeAnnouncement(node, text string) (Announcement, error) {
	var a Announcement
	if err := decodeVersioned("announcement", text, MaxAnnouncementLen, &a); err != nil {
		return Announcement{}, err
	}
	if err := a.Validate(); err != nil {
		return Announcement{}, err
	}
	if string(a.Node.ID) != node {
		return Announcement{}, fmt.Errorf("%w: announcement of %s stands under the key of %s",
			pbxmesh.ErrInvalidRecord, a.Node.ID, show(node))
	}
	return a, nil
}

// encodeVersioned wraps body: {"v":1,"body":{...}}.
func encodeVersioned(body any) (string, error) {
	text, err := json.Marshal(struct {
		Version int `json:"v"`
		Body    any `json:"body"`
	}{wireVersion, body})
	if err != nil {
		return "", fmt.Errorf("%w: %w", pbxmesh.ErrInvalidRecord, err)
	}
	return string(text), nil
}

// decodeVersioned looks at the version before it reads the body, so that a later
// version's body can have any form.
func decodeVersioned(what, text string, limit int, body any) error {
	if len(text) > limit {
		return fmt.Errorf("%w: %s of %d bytes, at most %d are allowed", pbxmesh.ErrInvalidRecord, what, len(text), limit)
	}
	var outer struct {
		Version int             `json:"v"`
		Body    json.RawMessage `json:"body"`
	}
	if err := json.Unmarshal([]byte(text), &outer); err != nil {
		return fmt.Errorf("%w: %s: %w", pbxmesh.ErrInvalidRecord, what, err)
	}
	if outer.Version != wireVersion {
		return fmt.Errorf("%w: %s has version %d, this daemon reads %d", pbxmesh.ErrInvalidRecord, what, outer.Version, wireVersion)
	}
	if err := json.Unmarshal(outer.Body, body); err != nil {
		return fmt.Errorf("%w: %s: %w", pbxmesh.ErrInvalidRecord, what, err)
	}
	return nil
}
