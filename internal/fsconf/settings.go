package fsconf

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"pbxmesh"
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

// param is one setting of a sofia profile.
type param struct{ name, value, why string }

// profileParams are the settings of the mesh profile, in the order of the file.
func (s *Settings) profileParams() []param {
	bind := s.Mesh.Addr()
	if s.Bind.IsValid() {
		bind = s.Bind
	}
	out := []param{
		{"sip-ip", bind.String(), ""},
		{"rtp-ip", bind.String(), ""},
		{"sip-port", strconv.Itoa(int(s.Mesh.Port())), ""},
	}
	if bind != s.Mesh.Addr() {
		out = append(out,
			param{"ext-sip-ip", s.Mesh.Addr().String(), "node.mesh_address: what the other nodes reach through the router"},
			param{"ext-rtp-ip", s.Mesh.Addr().String(), ""})
	}
	return append(out,
		param{"dialplan", "XML", ""},
		param{"context", s.Profile, "rings devices of this switch only: a call between nodes cannot loop"},
		param{"auth-calls", "true", "whom the list lets in is not asked for a password; others are, and have none"},
		param{"apply-inbound-acl", s.Profile, "the nodes of the mesh, see acl.conf"},
		param{"disable-register", "true", ""},
		param{"manage-presence", "false", "lamps belong to the phones' profiles"},
		param{"multiple-registrations", "true", "one row for each remote node that a user is on"},
		param{"timer-T1X64", "4000", "a call to a dead node fails after 4 s instead of 32 s"},
		param{"inbound-codec-prefs", "$${global_codec_prefs}", ""},
		param{"outbound-codec-prefs", "$${global_codec_prefs}", ""},
		param{"rtp-timer-name", "soft", ""},
	)
}

// destination are the users that the mesh routes (pbxmesh.NewAOR), and hosts their
// domains. Nothing else may reach the bridge string: a dialled `,` or `$` means something there.
const (
	destination = `^([A-Za-z0-9._+-]{1,64})$`
	hosts       = `^[A-Za-z0-9._-]{1,253}$`
)

// action is one application of the mesh context with its data.
type action struct{ name, data, why string }

// actions ring the user's devices on this switch.
func (s *Settings) actions() []action {
	return []action{
		{"set", "hangup_after_bridge=true", ""},
		{"set", "domain_name=${sip_req_host}", ""},
		{"set", "force_transfer_context=${user_data($1@${sip_req_host} var user_context)}", "where a call goes on that the callee transfers: to whom the callee may dial"},
		{"export", "nolocal:alert_info=${alert_info}", "ring tone and intercom as the caller's node asked for them"},
		{"export", "nolocal:sip_auto_answer=${sip_auto_answer_detected}", ""},
		{"bridge", s.bridge(), ""},
		{"hangup", "${originate_disposition}", "without it a callee who does not answer would be told to the caller's node as NORMAL_CLEARING"},
	}
}

// bridge returns the dial string. Without presence_id the callee's lamp stays dark, and
// without sip_invite_domain the phone is shown a caller of this switch's address
// instead of the tenant's. They stand in braces: in brackets they would be the first
// device's alone.
func (s *Settings) bridge() string {
	legs := make([]string, len(s.Profiles))
	for i, profile := range s.Profiles {
		legs[i] = "${sofia_contact(" + profile + "/$1@${sip_req_host})}"
	}
	return "{presence_id=$1@${sip_req_host},sip_invite_domain=${sip_req_host}}" + strings.Join(legs, ",")
}
