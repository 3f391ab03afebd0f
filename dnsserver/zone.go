package dnsserver

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"pbxmesh"
	"pbxmesh/dnsserver/selection"
)

// Defaults of ZoneOptions. Resolvers stretch short TTLs and a phone's DNS cache
// ignores them now and then, so less than half a minute gains nothing.
const (
	DefaultTTL         = 30 * time.Second
	DefaultHostTTL     = 300 * time.Second
	DefaultNSTTL       = 24 * time.Hour
	DefaultNegativeTTL = 10 * time.Second
)

// Source is where the snapshots come from. Mesh never blocks, and what it returns
// is never written to; nil means that nothing is known yet.
type Source interface {
	Mesh() *pbxmesh.Mesh
}

// NameServer is a name server of the zones, as NS records name it.
type NameServer struct {
	// Name is "losangeles" (under the origin) or, with a dot, a full name.
	Name string

	// Addresses are served for a name within the zones, which needs at least one.
	Addresses []netip.Addr
}

// ZoneOptions say what the name server is authoritative for.
type ZoneOptions struct {
	// Origin is the main zone, "pbx.example.com". It is a service name itself, and
	// the nodes' host names stand directly under it.
	Origin string

	// Names are more service names within the zones: full names such as
	// "sip.pbx.example.com", or wildcards such as "*.pbx.example.com" for tenants.
	Names []string

	// TenantZones are zones outside of Origin, with a SOA and NS records of their
	// own, whose apex is a service name: "phones.customer.example".
	TenantZones []string

	NameServers []NameServer // at least one
	Hostmaster  string       // RNAME as a mail address; "" means hostmaster@Origin

	// Serial is the SOA serial; 0 means 1. Answers depend on the mesh and no zone
	// is transferred, so it only has to be the same on all name servers.
	Serial uint32

	// TTL is that of everything that depends on the client, 1 s to 1 h; half of
	// it while any node is down or draining. HostTTL is for node host names, NSTTL
	// for NS records and name server addresses, NegativeTTL for what is not there
	// (1 s to 1 h). 0 means the default.
	TTL, HostTTL, NSTTL, NegativeTTL time.Duration

	// Transports is the order in which NAPTR prefers transports: "udp", "tcp", "tls", "wss",
	// "ws". Those left out follow in this order.
	Transports []string

	// KeepHosts is how long the host name of a node that is no member any more goes on
	// answering, up to 7 days; 0 means DefaultKeepHosts.
	KeepHosts time.Duration

	// ZoneFile holds further records of the zones, in the format of RFC 1035 section 5;
	// "" is none. Run reads it again when it changes.
	ZoneFile string

	// KeyDir is the folder with the keys of all zones, which are then signed (see
	// ReadKeys); "" signs none. Run reads it again when it changes. GenerateKeys makes a
	// key for each zone that has none there, which only one name server may do: all of
	// them need the same keys.
	KeyDir       string
	GenerateKeys bool

	// NSID is what this server calls itself when asked (RFC 5001); "" is silent.
	NSID string

	// Chooser decides which nodes a client gets. nil makes one of Preferences.
	Chooser     *selection.Chooser
	Preferences *selection.Preferences
	Source      Source
	Logger      *slog.Logger // nil discards
}

// Zone answers queries. It is safe for concurrent use. Answering does no I/O but
// logging; NewZone and Run read the files that the options name.
type Zone struct {
	opts   ZoneOptions
	origin string // canonical: lower case, final dot
	log    *slog.Logger

	apexes map[string]*apex
	names  map[string]entry // every configured name and everything above it

	chooser *selection.Chooser
	naptr   []*transport // in the order of preference

	static   atomic.Pointer[static]
	keys     atomic.Pointer[keyring] // nil when no zone is signed
	viewed   atomic.Pointer[view]
	renew    sync.Mutex // held while a view is made
	now      func() time.Time
	zoneFile watched[fileState]
	keyDir   watchedKeys

	// edition is raised after anything changed that answers are made from, besides
	// the choices: copies of older answers are then void.
	edition atomic.Uint64

	panics limiter // panic rule log lines
	stats  counters
}

type apex struct {
	name string
	soa  dns.SOA
}

// entry is what stands at a configured name. The zero entry is an empty
// non-terminal: the name exists because something below it does (RFC 8020).
type entry struct {
	service   bool
	addresses []netip.Addr // of a name server
	host      bool
	apex      *apex
}

// NewZone checks o and returns the Zone. Errors name the field and what it allows.
func NewZone(o ZoneOptions) (*Zone, error) {
	if o.Source == nil {
		return nil, errors.New("dnsserver: no source of snapshots; set Source")
	}
	for _, t := range []struct {
		name  string
		value *time.Duration
		def   time.Duration
		limit time.Duration
	}{
		{"TTL", &o.TTL, DefaultTTL, time.Hour},
		{"host TTL", &o.HostTTL, DefaultHostTTL, 7 * 24 * time.Hour},
		{"NS TTL", &o.NSTTL, DefaultNSTTL, 7 * 24 * time.Hour},
		{"time to keep hosts", &o.KeepHosts, DefaultKeepHosts, 7 * 24 * time.Hour},
		{"negative TTL", &o.NegativeTTL, DefaultNegativeTTL, time.Hour},
	} {
		if *t.value == 0 {
			*t.value = t.def
		}
		if *t.value < time.Second || *t.value > t.limit {
			return nil, fmt.Errorf("dnsserver: %s %v, 1s to %v are allowed", t.name, *t.value, t.limit)
		}
	}
	if o.Serial == 0 {
		o.Serial = 1
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	z := &Zone{
		opts:   o,
		log:    o.Logger.With("component", "dns"),
		apexes: make(map[string]*apex),
		names:  make(map[string]entry),
		panics: limiter{every: 10 * time.Second},
		now:    time.Now,
	}
	z.static.Store(&static{})
	if z.chooser = o.Chooser; z.chooser == nil {
		z.chooser = selection.NewChooser(o.Preferences)
	}
	var err error
	if z.naptr, err = preferred(o.Transports); err != nil {
		return nil, err
	}
	if err := z.compile(); err != nil {
		return nil, err
	}
	if err := z.pollZoneFile(); err != nil {
		return nil, fmt.Errorf("dnsserver: zone file: %w", err)
	}
	if err := z.loadKeys(); err != nil {
		return nil, fmt.Errorf("dnsserver: keys: %w", err)
	}
	return z, nil
}

// SetPreferences replaces the preferences for all queries that start from now on, in
// everything that shares the zone's Chooser.
func (z *Zone) SetPreferences(p *selection.Preferences) {
	z.chooser.SetPreferences(p)
	z.edition.Add(1)
}

// choices returns the choices on the present snapshot.
func (z *Zone) choices() *selection.Choices { return z.chooser.On(z.opts.Source.Mesh()) }

// Origin returns the main zone, lower case with its final dot.
func (z *Zone) Origin() string { return z.origin }

// NodeName returns the host name of a node, with its final dot.
func (z *Zone) NodeName(id pbxmesh.NodeID) string { return string(id) + "." + z.origin }

func (z *Zone) compile() error {
	o := &z.opts
	origin, err := canonical(o.Origin)
	if err != nil {
		return fmt.Errorf("dnsserver: origin: %w", err)
	}
	z.origin = origin
	if len(o.NameServers) == 0 {
		return errors.New("dnsserver: no name servers; a zone needs at least one NS record")
	}
	for _, name := range append([]string{origin}, o.TenantZones...) {
		name, err := canonical(name)
		if err != nil {
			return fmt.Errorf("dnsserver: tenant zone: %w", err)
		}
		if z.apexes[name] != nil {
			return fmt.Errorf("dnsserver: the zone %s is listed twice", name)
		}
		a := &apex{name: name}
		z.apexes[name] = a
		z.names[name] = entry{service: true, apex: a}
	}
	for _, name := range o.Names {
		base, wild := strings.CutPrefix(name, "*.")
		base, err := canonical(base)
		if err != nil {
			return fmt.Errorf("dnsserver: service name: %w", err)
		}
		if wild {
			base = "*." + base
		}
		if err := z.add(base, entry{service: true}); err != nil {
			return err
		}
	}
	for i := range o.NameServers {
		if err := z.addNameServer(&o.NameServers[i]); err != nil {
			return err
		}
	}
	return z.makeSOA()
}

func (z *Zone) addNameServer(ns *NameServer) error {
	if !strings.Contains(ns.Name, ".") {
		ns.Name += "." + z.origin
	}
	name, err := canonical(ns.Name)
	if err != nil {
		return fmt.Errorf("dnsserver: name server: %w", err)
	}
	ns.Name = name
	if z.zoneOf(name) == nil {
		return nil // somebody else's name: its addresses are theirs to serve
	}
	if len(ns.Addresses) == 0 {
		return fmt.Errorf("dnsserver: the name server %s is within the zone and has no address; nobody could find it", name)
	}
	return z.add(name, entry{host: true, addresses: ns.Addresses})
}

// add puts a name in, and the empty non-terminals above it.
func (z *Zone) add(name string, e entry) error {
	a := z.zoneOf(name)
	if a == nil {
		return fmt.Errorf("dnsserver: the name %s is in none of the zones; add its zone to the tenant zones", name)
	}
	if old, ok := z.names[name]; ok && (old.service || old.host) {
		return fmt.Errorf("dnsserver: the name %s is listed twice", name)
	}
	e.apex = z.names[name].apex
	z.names[name] = e
	for up := parent(name); len(up) > len(a.name); up = parent(up) {
		if _, ok := z.names[up]; !ok {
			z.names[up] = entry{}
		}
	}
	return nil
}

func (z *Zone) makeSOA() error {
	mailbox := z.opts.Hostmaster
	if mailbox == "" {
		mailbox = "hostmaster@" + strings.TrimSuffix(z.origin, ".")
	}
	local, domain, ok := strings.Cut(mailbox, "@")
	if !ok || local == "" {
		return fmt.Errorf("dnsserver: hostmaster %q is no mail address", mailbox)
	}
	rname := strings.ReplaceAll(local, ".", `\.`) + "." + dns.Fqdn(domain)
	if _, ok := dns.IsDomainName(rname); !ok {
		return fmt.Errorf("dnsserver: hostmaster %q is no mail address", mailbox)
	}
	for _, a := range z.apexes {
		a.soa = dns.SOA{
			Ns:      z.opts.NameServers[0].Name,
			Mbox:    rname,
			Serial:  z.opts.Serial,
			Refresh: 3600, Retry: 600, Expire: 604800, // for secondaries; there are none
			Minttl: seconds(z.opts.NegativeTTL),
		}
	}
	return nil
}

// zoneOf returns the zone that holds name (canonical), the innermost one; nil
// when it is none of ours.
func (z *Zone) zoneOf(name string) *apex {
	for ; name != "."; name = parent(name) {
		if a := z.apexes[name]; a != nil {
			return a
		}
	}
	return nil
}

// canonical returns a host name in lower case with its final dot.
func canonical(name string) (string, error) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == "" || len(name) > 253 {
		return "", fmt.Errorf("the name %q has %d bytes, 1 to 253 are allowed", name, len(name))
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return "", fmt.Errorf("the name %q has a label of %d bytes, 1 to 63 are allowed", name, len(label))
		}
		// No underscore: the names of SRV records stand below service names, and a
		// service name that looked like one would make them ambiguous.
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return "", fmt.Errorf("the name %q has the byte %q; letters, digits, '-' and dots are allowed", name, c)
			}
		}
	}
	return name + ".", nil
}

// parent cuts the first label off a name in presentation format, where a label
// may hold an escaped dot; "." for a single label.
func parent(name string) string {
	i, end := dns.NextLabel(name, 0)
	if end || i >= len(name) {
		return "."
	}
	return name[i:]
}

func seconds(d time.Duration) uint32 { return uint32(d / time.Second) }
