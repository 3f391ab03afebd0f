package config

import (
	"fmt"
	"net/netip"
	"slices"

	"pbxmesh"
)

// Redirect is the SIP server that sends callers to the node that holds the callee.
// It is off while UDP, TCP and TLS are empty.
type Redirect struct {
	UDP      []netip.AddrPort `yaml:"udp"`
	TCP      []netip.AddrPort `yaml:"tcp"`
	TLS      []netip.AddrPort `yaml:"tls"`
	CertFile File             `yaml:"cert_file"`
	KeyFile  File             `yaml:"key_file"`

	// Allow are the networks whose requests are answered; empty is this machine.
	Allow []netip.Prefix `yaml:"allow"`

	// DefaultNode gets the calls to addresses that nobody is registered for.
	DefaultNode string `yaml:"default_node"`

	// DIDFile is the table from dialled numbers to addresses of record.
	DIDFile File `yaml:"did_file"`

	// Register sends REGISTER to the nodes that DNS would answer with.
	Register bool `yaml:"register"`
}

// On reports whether there is anything to listen at.
func (r *Redirect) On() bool { return len(r.UDP)+len(r.TCP)+len(r.TLS) > 0 }

func (d *decoder) validateRedirect(r *Redirect) {
	streams := make(map[netip.AddrPort]string) // TCP and TLS cannot share a port
	for _, list := range []struct {
		name string
		at   []netip.AddrPort
	}{{"udp", r.UDP}, {"tcp", r.TCP}, {"tls", r.TLS}} {
		for i, l := range list.at {
			path := fmt.Sprintf("router.redirect.%s[%d]", list.name, i)
			switch {
			case !l.IsValid():
				d.check(path, "is empty: write an IP address and port such as 192.0.2.10:5070, or remove the entry")
			case l.Addr().IsUnspecified() || l.Addr().IsMulticast():
				// An answer has to leave from the address that was asked.
				d.check(path, "%s is no address of this machine: write each address to listen at", l)
			case !l.Addr().IsLoopback() && len(r.Allow) == 0:
				d.check(path, "%s can be reached from other machines: name the networks that are answered in router.redirect.allow, or listen on 127.0.0.1", l)
			case l.Port() != 0 && slices.Contains(list.at[:i], l):
				d.check(path, "%s stands in the list twice: remove one", l)
			case l.Port() != 0 && list.name != "udp" && streams[l] != "":
				d.check(path, "%s is in router.redirect.%s too: give TLS a port of its own, such as 5061", l, streams[l])
			}
			if list.name != "udp" {
				streams[l] = list.name
			}
		}
	}
	if len(r.TLS) > 0 && r.CertFile == "" {
		d.check("router.redirect.cert_file", "is missing: router.redirect.tls needs a certificate and its key, in PEM")
	}
	if (r.CertFile == "") != (r.KeyFile == "") {
		d.check("router.redirect.key_file", "goes together with cert_file: name both or none")
	}
	if r.DefaultNode != "" {
		if id, err := pbxmesh.ParseNodeID(r.DefaultNode); err != nil {
			d.check("router.redirect.default_node", "%s is no node's id: 1 to 63 letters, digits and '-' are allowed", show(r.DefaultNode))
		} else {
			r.DefaultNode = string(id)
		}
	}
	for i, p := range r.Allow {
		if slices.Contains(r.Allow[:i], p) {
			d.check(fmt.Sprintf("router.redirect.allow[%d]", i), "%s stands in the list twice: remove one", p)
		}
	}
}
