package config

import (
	"net/netip"
	"os"
	"time"

	"pbxmesh"
)

// Config is everything that pbxmesh serve can be told. Defaults, Parse and Load
// are the ways to get one; what Parse and Load return has passed every check.
type Config struct {
	// Name is what this daemon calls itself as an observer. Empty in the file
	// means the node's id, or the host's name where there is no node.
	Name string `yaml:"name"`

	// Site names what shares fate with this machine; see pbxmesh.Node. Empty is a site of
	// its own.
	Site string `yaml:"site"`

	// Node is this machine's switch. Nil makes the daemon a name server and
	// observer that holds no registrations of its own.
	Node *Node `yaml:"node"`

	FreeSWITCH FreeSWITCH `yaml:"freeswitch"`
	Registry   Registry   `yaml:"registry"`
	Router     Router     `yaml:"router"`
	Failover   Failover   `yaml:"failover"`
	DNS        DNS        `yaml:"dns"`
	API        API        `yaml:"api"`
	Log        Log        `yaml:"log"`
}

// Owner names the daemon in its node's lease, across restarts: the host. Two hosts
// that were given one node.id by mistake are then told apart.
func (c *Config) Owner() string {
	if host, err := os.Hostname(); err == nil && validName(host) {
		return host
	}
	return c.Name
}

// Node is what this machine's switch announces to the mesh.
type Node struct {
	ID          pbxmesh.NodeID `yaml:"id"`
	Addresses   []netip.Addr   `yaml:"addresses"`
	MeshAddress netip.AddrPort `yaml:"mesh_address"`
	SIP         SIP            `yaml:"sip"`

	// Location is where the node stands.
	Location Location `yaml:"location"`

	// Capacity is how many registrations the node is meant to hold; 0 is not known.
	Capacity int `yaml:"capacity"`
}

// Announcement returns the node in the words of the mesh. There must be one.
func (c *Config) Announcement() pbxmesh.Node {
	n := c.Node
	return pbxmesh.Node{
		ID:        n.ID,
		Site:      c.Site,
		Addresses: append([]netip.Addr(nil), n.Addresses...),
		Ports:     pbxmesh.SIPPorts(n.SIP),
		Mesh:      n.MeshAddress,
		Location:  n.Location.Place(),
		Capacity:  n.Capacity,
	}
}

// SIP are the ports that phones use, by transport; 0 is not offered.
type SIP struct {
	UDP uint16 `yaml:"udp"`
	TCP uint16 `yaml:"tcp"`
	TLS uint16 `yaml:"tls"`
	WS  uint16 `yaml:"ws"`
	WSS uint16 `yaml:"wss"`
}

// FreeSWITCH says how the local switch is reached. It counts only with a Node.
type FreeSWITCH struct {
	EventSocket EventSocket `yaml:"event_socket"`

	// Profiles are the sofia profiles whose registrations are published.
	Profiles []string `yaml:"profiles"`

	// MeshProfile is the sofia profile of calls between nodes.
	MeshProfile string `yaml:"mesh_profile"`

	// ACLFile is the switch's acl.conf.xml. When it is set, the daemon keeps the list
	// of the mesh profile in it equal to the membership.
	ACLFile File `yaml:"acl_file"`

	// SnapshotInterval is how often the whole registration table is read again,
	// to repair what a lost event broke.
	SnapshotInterval time.Duration `yaml:"snapshot_interval"`

	// LateMargin is how long the switch keeps a registration past the expiry it
	// granted (sip-expires-late-margin of the profile).
	LateMargin time.Duration `yaml:"late_margin"`
}

// EventSocket is mod_event_socket's inbound listener.
type EventSocket struct {
	Address      HostPort   `yaml:"address"`
	PasswordFile SecretFile `yaml:"password_file"`
}

// Registry says where the shared store is. Mode tells which of URL, Addresses
// and Sentinel counts.
type Registry struct {
	URL          URL        `yaml:"url"`
	Addresses    []HostPort `yaml:"addresses"`
	Sentinel     Sentinel   `yaml:"sentinel"`
	Read         ReplicaURL `yaml:"read"` // a replica near this daemon; "" for none
	Username     string     `yaml:"username"`
	PasswordFile SecretFile `yaml:"password_file"`
	TLS          TLS        `yaml:"tls"`

	// LeaseTTL is how long a node counts as alive after its last sign of life,
	// LeaseRenew how often it gives one.
	LeaseTTL   time.Duration `yaml:"lease_ttl"`
	LeaseRenew time.Duration `yaml:"lease_renew"`

	// KeyPrefix starts every key in the store; it separates meshes that share one.
	KeyPrefix string `yaml:"key_prefix"`

	// StateFile keeps the last known membership over restarts; empty keeps none.
	StateFile File `yaml:"state_file"`
}

// Sentinel names a primary that Redis Sentinel watches.
type Sentinel struct {
	Master       string     `yaml:"master"`
	Addresses    []HostPort `yaml:"addresses"`
	Username     string     `yaml:"username"`
	PasswordFile SecretFile `yaml:"password_file"`
}

// TLS is how a TLS connection to the store is made.
type TLS struct {
	// Enabled turns TLS on for cluster and Sentinel; with a URL the scheme
	// "rediss" does.
	Enabled    bool   `yaml:"enabled"`
	CAFile     File   `yaml:"ca_file"`
	CertFile   File   `yaml:"cert_file"`
	KeyFile    File   `yaml:"key_file"`
	ServerName string `yaml:"server_name"`
}

// Router is how calls are routed.
type Router struct {
	Native Native `yaml:"native"`
	Socket Socket `yaml:"socket"`
	HTTP   HTTP   `yaml:"http"`

	Redirect Redirect `yaml:"redirect"`

	// DefaultDomain completes a dialled number when the call names no domain.
	// Empty leaves such a call to the dialplan.
	DefaultDomain string `yaml:"default_domain"`
}

// Native is the hook that writes the mesh's users into the switch's own
// registration table, with their lamps and message counts.
type Native struct {
	Enabled bool `yaml:"enabled"`

	// RowTTL is how long the switch keeps a row that nobody refreshes: how long
	// calls go astray after a daemon died. RepairInterval is the time between two
	// comparisons with the switch.
	RowTTL         time.Duration `yaml:"row_ttl"`
	RepairInterval time.Duration `yaml:"repair_interval"`

	Presence bool `yaml:"presence"` // lamps (BLF) across nodes
	MWI      bool `yaml:"mwi"`      // message counts across nodes

	// SharedVoicemail says that all switches keep messages in one place, where they do
	// not say so themselves.
	SharedVoicemail bool `yaml:"shared_voicemail"`
}

// Socket is the listener for the dialplan's socket application.
type Socket struct {
	// Listen is the zero AddrPort when the hook is off.
	Listen netip.AddrPort `yaml:"listen"`

	// DecisionTimeout bounds the time until the plan is known; Deadline bounds
	// everything before the bridge command, then the call goes back. Two fifths of
	// it are for the switch to tell about the call.
	DecisionTimeout time.Duration `yaml:"decision_timeout"`
	Deadline        time.Duration `yaml:"deadline"`

	// MaxCalls bounds the calls that wait on the hook at once; more go straight
	// back to the dialplan.
	MaxCalls int `yaml:"max_calls"`
}

// HTTP is the listener for mod_curl, mod_xml_curl and scripts.
type HTTP struct {
	// Listen is the zero AddrPort when the hook is off.
	Listen    netip.AddrPort `yaml:"listen"`
	TokenFile SecretFile     `yaml:"token_file"`

	// Deadline bounds a request; then the switch goes on with its own configuration.
	Deadline time.Duration `yaml:"deadline"`

	// MaxRequests bounds the requests that are served at once; more get 503.
	MaxRequests int `yaml:"max_requests"`

	// Contexts are the dialplan contexts that the binding answers for; "*" is all.
	Contexts []string `yaml:"contexts"`

	// ACLList names the list of acl.conf that gets the nodes of the mesh, ACLFile
	// the switch's own acl.conf.xml, whose lists the answer repeats. Both or none.
	ACLList string `yaml:"acl_list"`
	ACLFile File   `yaml:"acl_file"`
}

// Failover is how nodes are watched.
type Failover struct {
	Probe  Probe     `yaml:"probe"`
	Return Return    `yaml:"return"`
	Load   LoadMarks `yaml:"load"`
	Drain  Drain     `yaml:"drain"`

	// RestartGrace is how long the daemon of a node may be stopped in an orderly way
	// before new phones are sent elsewhere.
	RestartGrace time.Duration `yaml:"restart_grace"`

	Latency Latency `yaml:"latency"`
}

// Probe is one observer's way to look at a node.
type Probe struct {
	Interval     time.Duration `yaml:"interval"`
	Timeout      time.Duration `yaml:"timeout"`       // the longest wait
	SuspectAfter int           `yaml:"suspect_after"` // failed probes in a row
	DownAfter    int           `yaml:"down_after"`    // failed probes in a row
	UpAfter      int           `yaml:"up_after"`      // answered probes in a row
	SIP          bool          `yaml:"sip"`           // send OPTIONS; false leaves leases and the event socket
	Mesh         bool          `yaml:"mesh"`          // daemons probe the nodes' mesh addresses, too
}

// DNS is the authoritative name server; it is off while Listen is empty.
type DNS struct {
	Listen []netip.AddrPort `yaml:"listen"`
	Zone   string           `yaml:"zone"`

	// Services are names that phones register to beside the zone itself, Tenants
	// further names with the same answers, "*." wildcards among them. Both stand
	// inside the zone or, tenants only, inside one of TenantZones, which are zones
	// of their own elsewhere and service names themselves.
	Services    []string `yaml:"services"`
	Tenants     []string `yaml:"tenants"`
	TenantZones []string `yaml:"tenant_zones"`

	// Transports is the order in which NAPTR offers them; those left out follow.
	Transports []string `yaml:"transports"`

	// ZoneFile holds further records of the zones; empty is none.
	ZoneFile File `yaml:"zone_file"`

	// KeepHosts is how long the host name of a node that left goes on answering.
	KeepHosts time.Duration `yaml:"keep_hosts"`

	DNSSEC DNSSEC `yaml:"dnssec"`
	PDNS   PDNS   `yaml:"pdns"`

	Nameservers  []Nameserver     `yaml:"nameservers"`
	Hostmaster   string           `yaml:"hostmaster"`
	TTL          TTL              `yaml:"ttl"`
	Preferences  []Preference     `yaml:"preferences"`
	DefaultOrder []pbxmesh.NodeID `yaml:"default_order"`

	RateLimit     RateLimit `yaml:"rate_limit"`
	Amplification int       `yaml:"amplification"`
	Cookie        Cookie    `yaml:"cookie"`
}

// Nameserver is one NS record of the zone with its glue.
type Nameserver struct {
	Name      string       `yaml:"name"`
	Addresses []netip.Addr `yaml:"addresses"`
}

// TTL are the times to live of the answers, whole seconds.
type TTL struct {
	Answer   time.Duration `yaml:"answer"`
	Node     time.Duration `yaml:"node"`
	NS       time.Duration `yaml:"ns"`
	Negative time.Duration `yaml:"negative"`
}

// Preference is the order of nodes for clients of one network.
type Preference struct {
	Network netip.Prefix     `yaml:"network"`
	Nodes   []pbxmesh.NodeID `yaml:"nodes"`
}

// API is the local control API: queries, health and metrics.
type API struct {
	// Listen is the zero AddrPort when the API is off.
	Listen    netip.AddrPort `yaml:"listen"`
	TokenFile SecretFile     `yaml:"token_file"`
}

// Log is what is written to standard error.
type Log struct {
	Level  string `yaml:"level" allowed:"debug,info,warn,error"`
	Format string `yaml:"format" allowed:"text,json"`
}
