package fsconf

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"pbxmesh"
	"pbxmesh/internal/meshcontext"
)

// MaxPeers bounds the nodes of one list; it is the registry's bound of members.
const MaxPeers = 1024

// Peer is a node that may call the mesh profile.
type Peer struct {
	Name    pbxmesh.NodeID
	Address netip.Addr // where its calls come from
}

// EventSocket is how the daemon reaches mod_event_socket.
type EventSocket struct {
	// Listen is where the switch shall listen. It must be a loopback address, or
	// the zero value: then the event socket is left as it is, because the daemon
	// does not reach it on this machine.
	Listen netip.AddrPort

	// Password is what the daemon logs in with. It goes into the file that is
	// written, and nowhere else: texts for people name PasswordFile instead.
	Password     string
	PasswordFile string
}

// Settings say everything about a node that its switch must know.
type Settings struct {
	// Mesh is where the other nodes send their calls. IPv4.
	Mesh netip.AddrPort

	// Bind is the address that the switch itself has when Mesh belongs to a
	// router in front of it (NAT); the zero value means that the switch has Mesh.
	Bind netip.Addr

	// Profile names the mesh profile; its dialplan context and its access list
	// have the same name.
	Profile string

	// Profiles are the profiles with the phones, asked in this order.
	Profiles []string

	// Peers are all nodes, this one among them or not. The order does not matter.
	Peers []Peer

	EventSocket EventSocket

	// Domain is the one of the phones on all nodes, for vars.xml; "" leaves that file
	// as it is.
	Domain string

	// Hook is where the daemon serves the dialplan's socket application; zero
	// when it does not.
	Hook netip.AddrPort
}

// profileName is what FreeSWITCH can have in a file name, a dial string and an
// event socket command without being quoted.
var profileName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

// Check returns all that is wrong with s.
func (s *Settings) Check() error {
	var problems []error
	if !s.Mesh.IsValid() || s.Mesh.Port() == 0 || !s.Mesh.Addr().Is4() || s.Mesh.Addr().IsUnspecified() {
		problems = append(problems, fmt.Errorf("the mesh address %v is no IPv4 address with port", s.Mesh))
	}
	if s.Bind.IsValid() && (!s.Bind.Is4() || s.Bind.IsUnspecified()) {
		problems = append(problems, fmt.Errorf("the address to bind %v is no IPv4 address of one interface", s.Bind))
	}
	for _, name := range append([]string{s.Profile}, s.Profiles...) {
		if !profileName.MatchString(name) {
			problems = append(problems, fmt.Errorf("the profile %+.70q cannot be written: letters, digits, '.', '-' and '_' are allowed", name))
		}
	}
	if len(s.Profiles) == 0 {
		problems = append(problems, errors.New("no profile holds the phones"))
	}
	if slices.Contains(s.Profiles, s.Profile) {
		problems = append(problems, fmt.Errorf("the profile %s cannot hold phones and the calls between nodes", s.Profile))
	}
	if s.Domain != "" {
		if _, err := pbxmesh.NewAOR("1", s.Domain); err != nil || ownAddress.MatchString(s.Domain) {
			problems = append(problems, fmt.Errorf("the domain %+.70q is no name that all nodes can have", s.Domain))
		}
	}
	if l := s.EventSocket.Listen; l.IsValid() {
		if !l.Addr().IsLoopback() || l.Port() == 0 {
			problems = append(problems, fmt.Errorf("the event socket %v is no loopback address with port", l))
		}
		if strings.ContainsFunc(s.EventSocket.Password, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			problems = append(problems, errors.New("the event socket password holds a control character"))
		}
	}
	return errors.Join(append(problems, s.checkPeers())...)
}

func (s *Settings) checkPeers() error {
	if len(s.Peers) > MaxPeers {
		return fmt.Errorf("%d nodes, at most %d are allowed", len(s.Peers), MaxPeers)
	}
	var problems []error
	for _, p := range s.Peers {
		if _, err := pbxmesh.ParseNodeID(string(p.Name)); err != nil {
			problems = append(problems, err)
		}
		// An unspecified address would be a network of everybody.
		if !p.Address.IsValid() || p.Address.IsUnspecified() || p.Address.IsMulticast() || p.Address.Zone() != "" {
			problems = append(problems, fmt.Errorf("node %s: %v is no address that calls can come from", p.Name, p.Address))
		}
	}
	return errors.Join(problems...)
}

// peers returns the nodes by name and address, each pair once.
func (s *Settings) peers() []Peer {
	list := slices.Clone(s.Peers)
	for i := range list {
		list[i].Address = list[i].Address.Unmap()
	}
	slices.SortFunc(list, func(a, b Peer) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), a.Address.Compare(b.Address))
	})
	return slices.Compact(list)
}

// cidr is the network of exactly one address.
func (p Peer) cidr() string { return netip.PrefixFrom(p.Address, p.Address.BitLen()).String() }

// profileSettings are the settings of the mesh profile, in the order of the file.
func (s *Settings) profileSettings() []meshcontext.Setting {
	return meshcontext.Profile{Name: s.Profile, Mesh: s.Mesh, Bind: s.Bind}.Settings()
}

// actions ring the user's devices on this switch.
func (s *Settings) actions(more ...meshcontext.Action) []meshcontext.Action {
	c := meshcontext.Dialled
	return c.Actions(c.Bridge(s.Profiles...), more...)
}
