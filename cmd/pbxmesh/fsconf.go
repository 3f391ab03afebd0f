package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pbxmesh"
	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
	"pbxmesh/internal/fsconf"
)

// askTimeout bounds the one question to the daemon: it stands on this machine.
const askTimeout = 3 * time.Second

type fsconfFlags struct {
	file, api, write, diff string
	flavor, hostname       string
	bind, domain           string
	peers                  []string
	undo                   bool
}

const (
	flavorFreeSWITCH = "freeswitch"
	flavorFusionPBX  = "fusionpbx"
)

func newFSConf() *cobra.Command {
	f := fsconfFlags{flavor: flavorFreeSWITCH}
	cmd := &cobra.Command{
		Use:   "fsconf -c FILE",
		Short: "Write what this node's FreeSWITCH needs",
		Long: `Print, or write, everything that this node's FreeSWITCH needs to take part in the
mesh: the sofia profile of the calls between nodes, its dialplan context, the list of
nodes that may call it, and the event socket's settings.

The nodes are those that the running daemon knows, and those of --peer. Run it again
when a node has joined or left: writing twice changes nothing.

With --write files are replaced one by one, each with a copy of the old one beside it
(.bak). acl.conf.xml and event_socket.conf.xml keep what else stands in them. With
--diff nothing is written, and the exit code is 1 when files differ.

FusionPBX keeps its settings in a database: --flavor fusionpbx prints SQL for psql,
and --undo the SQL that takes it back.`,
		Example: `  pbxmesh fsconf -c /etc/pbxmesh/pbxmesh.yaml
  pbxmesh fsconf -c /etc/pbxmesh/pbxmesh.yaml --peer london=198.51.100.20 --write /etc/freeswitch
  pbxmesh fsconf -c /etc/pbxmesh/pbxmesh.yaml --diff /etc/freeswitch
  pbxmesh fsconf -c /etc/pbxmesh/pbxmesh.yaml --flavor fusionpbx`,
		Args:              exactArgs(),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.file, "config", "c", "", "configuration file (required)")
	fl.StringVar(&f.flavor, "flavor", f.flavor, "freeswitch or fusionpbx")
	fl.StringVar(&f.write, "write", "", "FreeSWITCH's configuration folder, to write into")
	fl.StringVar(&f.diff, "diff", "", "FreeSWITCH's configuration folder, to compare with")
	fl.StringArrayVar(&f.peers, "peer", nil, "a node the daemon does not know (yet), as NAME=IP; may be repeated")
	fl.StringVar(&f.bind, "bind", "", "the switch's own address, when node.mesh_address belongs to a router in front of it")
	fl.StringVar(&f.domain, "domain", "", "the domain of the phones, the same on all nodes: written into vars.xml, whose own is the switch's address")
	fl.StringVar(&f.hostname, "hostname", "", "with fusionpbx: only for the switch of this host name (several nodes, one database)")
	fl.BoolVar(&f.undo, "undo", false, "with fusionpbx: print the SQL that takes it back")
	fl.StringVar(&f.api, "api", "", "the daemon's address (default: api.listen of the configuration)")
	completeFiles(cmd, "config", "yaml", "yml")
	completeWith(cmd, "flavor", flavorFreeSWITCH, flavorFusionPBX)
	completeWith(cmd, "api", control.DefaultAddress)
	for _, dir := range []string{"write", "diff"} {
		if err := cmd.MarkFlagDirname(dir); err != nil {
			panic(err)
		}
	}
	return cmd
}

func (f *fsconfFlags) run(cmd *cobra.Command) error {
	if err := f.check(); err != nil {
		return err
	}
	cfg, err := loadConfig(f.file)
	if err != nil {
		return err
	}
	s, err := f.settings(cfg)
	if err != nil {
		return err
	}
	if !f.undo {
		if s.Peers, err = f.nodes(cmd.Context(), cmd.ErrOrStderr(), cfg); err != nil {
			return err
		}
	}
	if err := s.Check(); err != nil {
		return usagef("this configuration cannot be written: %w", err)
	}
	if !s.EventSocket.Listen.IsValid() && f.flavor == flavorFreeSWITCH {
		_, err := fmt.Fprintf(cmd.ErrOrStderr(), "event socket: %s is no loopback address, its settings are left alone\n", cfg.FreeSWITCH.EventSocket.Address)
		if err != nil {
			return err
		}
	}
	if err := f.offerDomain(cmd.ErrOrStderr(), cmp.Or(cfg.Router.DefaultDomain, "sip.example.com")); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	switch {
	case f.flavor == flavorFusionPBX:
		return f.fusionPBX(out, s)
	case f.write != "":
		return writeFSConf(out, s, f.write)
	case f.diff != "":
		return diffFSConf(out, s, f.diff)
	default:
		return printFSConf(out, s)
	}
}

func (f *fsconfFlags) check() error {
	fusion := f.flavor == flavorFusionPBX
	switch {
	case !fusion && f.flavor != flavorFreeSWITCH:
		return usagef("--flavor %q is not known: %s and %s are allowed", f.flavor, flavorFreeSWITCH, flavorFusionPBX)
	case f.write != "" && f.diff != "":
		return usagef("--write and --diff exclude one another: look first, then write")
	case fusion && (f.write != "" || f.diff != ""):
		return usagef("FusionPBX keeps its settings in a database: without --write and --diff, the SQL for psql is printed")
	case fusion && f.domain != "":
		return usagef("--domain belongs to FreeSWITCH's vars.xml: FusionPBX has its domains in its database")
	case !fusion && (f.undo || f.hostname != ""):
		return usagef("--undo and --hostname belong to --flavor fusionpbx; what --write wrote has a copy of the old file beside it")
	}
	return nil
}

// settings translates the configuration.
func (f *fsconfFlags) settings(cfg *config.Config) (*fsconf.Settings, error) {
	if cfg.Node == nil {
		return nil, usagef("%s has no node section: there is no switch beside this daemon", f.file)
	}
	s := &fsconf.Settings{
		Mesh: cfg.Node.MeshAddress, Profile: cfg.FreeSWITCH.MeshProfile, Profiles: cfg.FreeSWITCH.Profiles,
		Hook: cfg.Router.Socket.Listen, Domain: strings.ToLower(f.domain),
	}
	if f.bind != "" {
		var err error
		if s.Bind, err = netip.ParseAddr(f.bind); err != nil {
			return nil, usagef("--bind: %w", err)
		}
	}
	es := cfg.FreeSWITCH.EventSocket
	password, err := es.PasswordFile.Read()
	if err != nil {
		return nil, &codeError{code: exitUsage, err: &configError{fmt.Errorf("freeswitch.event_socket.password_file: %w", err)}}
	}
	host, port, err := net.SplitHostPort(string(es.Address))
	if err != nil {
		return nil, usagef("freeswitch.event_socket.address: %w", err)
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	// A switch on another machine keeps its event socket settings.
	if at, err := netip.ParseAddrPort(net.JoinHostPort(host, port)); err == nil && at.Addr().IsLoopback() {
		s.EventSocket = fsconf.EventSocket{Listen: at, Password: password, PasswordFile: string(es.PasswordFile)}
	}
	return s, nil
}

// nodes returns all nodes of the mesh: this one, those of --peer, and those that the
// daemon knows. Where they come from is said on w.
func (f *fsconfFlags) nodes(ctx context.Context, w io.Writer, cfg *config.Config) ([]fsconf.Peer, error) {
	named, err := parsePeers(f.peers)
	if err != nil {
		return nil, err
	}
	known, at, err := f.ask(ctx, cfg)
	if err != nil && len(named) == 0 && (f.write != "" || f.diff != "" || f.flavor == flavorFusionPBX) {
		// An empty list would shut out every node that is in the list now.
		return nil, fmt.Errorf("which nodes are there? %w; or name every other node with --peer NAME=IP", err)
	}
	if err != nil {
		_, err = fmt.Fprintf(w, "nodes: the daemon does not tell (%v)\n", err)
	} else {
		_, err = fmt.Fprintf(w, "nodes: %s by the daemon at %s\n", names(known), at)
	}
	if err == nil && len(named) > 0 {
		_, err = fmt.Fprintf(w, "nodes: %s by --peer\n", names(named))
	}
	all := slices.Clone(named)
	self := fsconf.Peer{Name: cfg.Node.ID, Address: cfg.Node.MeshAddress.Addr()}
	for _, p := range append(known, self) {
		// What is named by hand is newer than what is known.
		if !slices.ContainsFunc(all, func(q fsconf.Peer) bool { return q.Name == p.Name }) {
			all = append(all, p)
		}
	}
	return all, err
}

// ask asks the daemon of cfg for the nodes, and says where it was asked.
func (f *fsconfFlags) ask(ctx context.Context, cfg *config.Config) ([]fsconf.Peer, string, error) {
	client, at, err := daemonOf(cfg, f.api)
	if err != nil {
		return nil, "", err
	}
	reply, err := client.Nodes(ctx)
	if err != nil {
		return nil, at, err
	}
	var out []fsconf.Peer
	for _, n := range reply.Nodes {
		if n.Mesh.IsValid() {
			out = append(out, fsconf.Peer{Name: n.ID, Address: n.Mesh.Addr()})
		}
	}
	return out, at, nil
}

// daemonOf returns a client of the daemon that cfg describes, and its address.
func daemonOf(cfg *config.Config, api string) (*control.Client, string, error) {
	if api == "" {
		listen := cfg.API.Listen
		switch {
		case !listen.IsValid() || listen.Port() == 0:
			return nil, "", errors.New("the control API has no fixed address in this configuration (api.listen)")
		case listen.Addr().IsUnspecified():
			listen = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), listen.Port())
		}
		api = listen.String()
	}
	token, err := cfg.API.TokenFile.Read()
	if err != nil {
		return nil, "", fmt.Errorf("api.token_file: %w", err)
	}
	client, err := control.NewClient(api, token, askTimeout)
	if err != nil {
		return nil, "", usagef("%w", err)
	}
	return client, api, nil
}

func parsePeers(texts []string) ([]fsconf.Peer, error) {
	var out []fsconf.Peer
	for _, text := range texts {
		name, address, ok := strings.Cut(text, "=")
		if !ok {
			return nil, usagef("--peer %q is not NAME=IP: write london=198.51.100.20", text)
		}
		id, err := pbxmesh.ParseNodeID(name)
		if err != nil {
			return nil, usagef("--peer %q: %w", text, err)
		}
		addr, err := netip.ParseAddr(address)
		if err != nil {
			return nil, usagef("--peer %q: %w", text, err)
		}
		out = append(out, fsconf.Peer{Name: id, Address: addr})
	}
	return out, nil
}

func names(peers []fsconf.Peer) string {
	list := make([]string, len(peers))
	for i, p := range peers {
		list[i] = string(p.Name)
	}
	slices.SortFunc(list, cmp.Compare)
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(slices.Compact(list), ", ")
}

// offerDomain says that the phones of the configuration in f.write or f.diff have a
// domain that differs from node to node.
func (f *fsconfFlags) offerDomain(w io.Writer, example string) error {
	dir := cmp.Or(f.write, f.diff)
	if dir == "" || f.domain != "" {
		return nil
	}
	vars, err := os.ReadFile(filepath.Join(dir, "vars.xml"))
	if err != nil {
		return nil //nolint:nilerr // a configuration may do without
	}
	if is, own := fsconf.OwnAddressDomain(vars); own {
		_, err = fmt.Fprintf(w, "vars.xml: domain=%s is another one on every node, so that no node finds the phones of another; --domain %s changes it, on all nodes\n", is, example)
	}
	return err
}

func (f *fsconfFlags) fusionPBX(w io.Writer, s *fsconf.Settings) error {
	fusion := &fsconf.FusionPBX{Settings: *s, Hostname: f.hostname}
	if err := fusion.Check(); err != nil {
		return usagef("--hostname: %w", err)
	}
	sql := fusion.ApplySQL()
	if f.undo {
		sql = fusion.UndoSQL()
	}
	_, err := w.Write(sql)
	return err
}

// printFSConf prints every part and where it goes.
func printFSConf(w io.Writer, s *fsconf.Settings) error {
	var b strings.Builder
	part := func(path, where string, text []byte) {
		if len(text) > 0 {
			fmt.Fprintf(&b, "<!-- %s: %s -->\n\n%s\n", path, where, text)
		}
	}
	part("sip_profiles/"+s.Profile+".xml", "a file of its own", s.ProfileXML())
	part("dialplan/"+s.Profile+".xml", "a file of its own", s.DialplanXML())
	part("autoload_configs/acl.conf.xml", "inside <network-lists>, in place of what stands between the same marks", s.ACLFragment())
	part("autoload_configs/event_socket.conf.xml", "inside <settings>, in place of the parameters of these names", s.EventSocketFragment(true))
	part("vars.xml", "in place of the line that sets the domain; on all nodes", s.DomainFragment())
	part("dialplan/default/pbxmesh.xml", "an example for dialplans that ask pbxmesh for each call; with your own numbers", s.ExampleXML())
	fmt.Fprintf(&b, "<!-- Then:\n%s-->\n", indented(fsconfCommands(s, true)))
	_, err := io.WriteString(w, b.String())
	return err
}

// fsconfCommands are what makes a running switch read its new files. The mesh profile
// is started, never restarted: a restart under traffic can lose its port.
func fsconfCommands(s *fsconf.Settings, eventSocket bool) []string {
	out := []string{"fs_cli -x reloadacl", "fs_cli -x 'sofia profile " + s.Profile + " start'"}
	if eventSocket && s.EventSocket.Listen.IsValid() {
		out = append(out, "fs_cli -x 'reload mod_event_socket'")
	}
	return out
}

func indented(lines []string) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString("  " + l + "\n")
	}
	return b.String()
}

func writeFSConf(w io.Writer, s *fsconf.Settings, dir string) error {
	changes, err := s.Plan(dir)
	if err != nil {
		return err
	}
	written, eventSocket, profile, domain := 0, false, false, false
	for i := range changes {
		c := &changes[i]
		path := filepath.Join(dir, filepath.FromSlash(c.Path))
		if !c.Changed() {
			if _, err := fmt.Fprintf(w, "%s: as it should be\n", path); err != nil {
				return err
			}
			continue
		}
		backup, err := c.Write(dir)
		if err != nil {
			return err
		}
		written++
		eventSocket = eventSocket || strings.HasSuffix(c.Path, "event_socket.conf.xml")
		domain = domain || c.Path == "vars.xml"
		profile = profile || c.Old != nil && strings.HasPrefix(c.Path, "sip_profiles/")
		said := "new"
		if backup != "" {
			said = "changed, the old one is " + backup
		}
		if _, err := fmt.Fprintf(w, "%s: %s\n", path, said); err != nil {
			return err
		}
	}
	if written == 0 {
		return nil
	}
	commands := fsconfCommands(s, eventSocket)
	if domain {
		commands = append(commands, "systemctl restart freeswitch    (the domain has changed; when no calls run, on all nodes, and let the phones register again)")
	}
	if profile {
		commands = append(commands, "fs_cli -x 'sofia profile "+s.Profile+" restart'    (the profile has changed; only when no calls run)")
	}
	_, err = fmt.Fprintf(w, "\nNow run:\n%s", indented(commands))
	return err
}

func diffFSConf(w io.Writer, s *fsconf.Settings, dir string) error {
	changes, err := s.Plan(dir)
	if err != nil {
		return err
	}
	differ := false
	for i := range changes {
		differ = differ || changes[i].Changed()
		if _, err := io.WriteString(w, s.Diff(dir, &changes[i])); err != nil {
			return err
		}
	}
	if differ {
		return &codeError{code: exitNo, err: errSaid}
	}
	return nil
}
