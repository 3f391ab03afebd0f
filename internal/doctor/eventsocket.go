package doctor

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"pbxmesh/internal/esl"
)

const fsconfHint = "run pbxmesh fsconf, and write what it shows"

// eventSocket logs in, and keeps the connection for the checks that need the switch.
func (p *patient) eventSocket(ctx context.Context) {
	if p.cfg.Node == nil {
		return
	}
	start := time.Now()
	es := p.cfg.FreeSWITCH.EventSocket
	password, err := es.PasswordFile.Read()
	if err != nil {
		p.say("event socket", "event socket", start, fail("the password cannot be read: "+err.Error(), "freeswitch.event_socket.password_file"))
		return
	}
	sw, err := p.o.Dial(ctx, esl.Config{Address: string(es.Address), Password: password, DialTimeout: p.o.Timeout, CommandTimeout: p.o.Timeout, KeepAlive: -1})
	if err != nil {
		p.say("event socket", "event socket", start, eventSocketFailure(err))
		return
	}
	version, err := sw.API(ctx, "version")
	if err != nil {
		_ = sw.Close()
		p.say("event socket", "event socket", start, eventSocketFailure(err))
		return
	}
	p.sw = sw
	p.say("event socket", "event socket", start, ok("%s answers after %s: %s", es.Address, ms(time.Since(start)), oneLine(version)))
}

// eventSocketFailure: the texts of internal/esl name the remedy behind the colon.
func eventSocketFailure(err error) Result {
	for _, known := range []error{esl.ErrACL, esl.ErrAuth, esl.ErrNoGreeting, esl.ErrTimeout, esl.ErrProtocol} {
		if errors.Is(err, known) {
			seen, do, _ := strings.Cut(known.Error(), ": ")
			return fail(seen, do)
		}
	}
	return fail(plain(err), "is FreeSWITCH running, mod_event_socket loaded, and freeswitch.event_socket.address its listen-ip and listen-port?")
}

// ask runs one api command; a nil Result means that text counts.
func (p *patient) ask(ctx context.Context, command string) (text string, bad *Result) {
	if p.sw == nil {
		r := skip("the event socket does not answer")
		return "", &r
	}
	text, err := p.sw.API(ctx, command)
	var reply *esl.ReplyError
	switch {
	case err == nil:
		return text, nil
	case errors.As(err, &reply) && strings.Contains(reply.Text, "Command not found"):
		r := skip("the switch does not know %q; is mod_commands loaded?", command)
		return "", &r
	default:
		r := fail(fmt.Sprintf("%s: %s", command, plain(err)), "look at the switch's log")
		return "", &r
	}
}

// profile is one row of `sofia xmlstatus`.
type profile struct {
	Name  string `xml:"name"`
	Type  string `xml:"type"`
	Data  string `xml:"data"`
	State string `xml:"state"`
}

// profiles looks at the profiles with the phones and at the mesh profile.
func (p *patient) profiles(ctx context.Context) {
	start := time.Now()
	text, bad := p.ask(ctx, "sofia xmlstatus")
	if bad != nil {
		p.say("sofia profiles", "sofia profiles", start, *bad)
		p.say("mesh profile", "mesh profile", start, *bad)
		return
	}
	var status struct {
		Profiles []profile `xml:"profile"`
	}
	if err := decode(text, &status); err != nil {
		p.say("sofia profiles", "sofia profiles", start, fail("sofia xmlstatus cannot be read: "+err.Error(), "is mod_sofia loaded?"))
		return
	}
	running := map[string]profile{}
	for _, row := range status.Profiles {
		// An alias or a gateway is no profile.
		if row.Type == "profile" {
			running[row.Name] = row
		}
	}
	var down []string
	for _, name := range p.cfg.FreeSWITCH.Profiles {
		if !strings.HasPrefix(running[name].State, "RUNNING") {
			down = append(down, name)
		}
	}
	names := strings.Join(p.cfg.FreeSWITCH.Profiles, ", ")
	if len(down) == 0 {
		p.say("sofia profiles", "sofia profiles", start, ok("running: %s", names))
	} else {
		p.say("sofia profiles", "sofia profiles", start, fail("not running: "+strings.Join(down, ", "),
			fmt.Sprintf("fs_cli -x 'sofia profile %s start', or correct freeswitch.profiles; the switch has: %s", down[0], listed(running))))
	}
	p.meshProfile(ctx, running[p.cfg.FreeSWITCH.MeshProfile])
}

func listed(profiles map[string]profile) string {
	if len(profiles) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(profiles)), ", ")
}

var uriAddress = regexp.MustCompile(`@([0-9.]+):(\d+)`)

// meshProfile compares where the profile is with where the other nodes look for it.
func (p *patient) meshProfile(ctx context.Context, row profile) {
	start := time.Now()
	name, want := p.cfg.FreeSWITCH.MeshProfile, p.cfg.Node.MeshAddress
	begin := "fs_cli -x 'sofia profile " + name + " start'; when it does not know the profile: " + fsconfHint
	switch {
	case row.Name == "":
		p.say("mesh profile", "mesh profile", start, fail("the switch has no running profile "+name, begin))
		return
	case !strings.HasPrefix(row.State, "RUNNING"):
		p.say("mesh profile", "mesh profile", start, fail(name+" is "+oneLine(row.State), begin))
		return
	}
	at := netip.AddrPort{}
	if m := uriAddress.FindStringSubmatch(row.Data); m != nil {
		at, _ = netip.ParseAddrPort(m[1] + ":" + m[2]) // the zero value says enough
	}
	if at != want {
		p.say("mesh profile", "mesh profile", start, fail(fmt.Sprintf("%s is at %s, the other nodes send calls to %s", name, orNone(at), want),
			"make node.mesh_address equal to the profile's sip-ip (ext-sip-ip behind a router) and sip-port"))
		return
	}
	text, bad := p.ask(ctx, "sofia xmlstatus profile "+name)
	var detail struct {
		Context string `xml:"profile-info>context"`
	}
	if bad == nil && decode(text, &detail) == nil && detail.Context != "" && detail.Context != name {
		p.say("mesh profile", "mesh profile", start, warn(fmt.Sprintf("%s runs at %s with the dialplan context %q", name, at, detail.Context),
			"its context must ring devices of this switch only: "+fsconfHint))
		return
	}
	p.say("mesh profile", "mesh profile", start, ok("%s runs at %s", name, at))
}

func orNone(at netip.AddrPort) string {
	if !at.IsValid() {
		return "no IPv4 address"
	}
	return at.String()
}

// list asks the switch whom its access list lets in.
func (p *patient) list(ctx context.Context) {
	start := time.Now()
	name := p.cfg.FreeSWITCH.MeshProfile
	say := func(r Result) { p.say("mesh list", "mesh list", start, r) }
	// 198.18.0.0/15 is for benchmarks (RFC 2544): nobody's.
	stranger := netip.MustParseAddr("198.18.255.254")
	if slices.ContainsFunc(p.peers(), func(m member) bool { return m.mesh.Addr() == stranger }) {
		stranger = stranger.Prev()
	}
	text, bad := p.ask(ctx, "acl "+stranger.String()+" "+name)
	if bad != nil {
		say(*bad)
		return
	}
	if oneLine(text) == "true" {
		say(fail("the list "+name+" lets everybody in", "anybody could call the mesh profile: "+fsconfHint+" (its default is deny)"))
		return
	}
	peers := p.peers()
	var out []string
	for _, m := range peers {
		text, bad := p.ask(ctx, "acl "+m.mesh.Addr().String()+" "+name)
		if bad != nil {
			say(*bad)
			return
		}
		if oneLine(text) != "true" {
			out = append(out, fmt.Sprintf("%s (%s)", m.id, m.mesh.Addr()))
		}
	}
	switch {
	case len(peers) == 0:
		say(skip("no other node is known"))
	case len(out) > 0:
		say(fail("the list "+name+" keeps out "+strings.Join(out, ", ")+": their calls are refused", fsconfHint+", then fs_cli -x reloadacl"))
	default:
		say(ok("the list %s lets in %s, and no stranger", name, peerNames(peers)))
	}
}

// peers are the other nodes, by name.
func (p *patient) peers() []member {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []member
	for _, id := range slices.Sorted(maps.Keys(p.nodes)) {
		if p.cfg.Node == nil || id != p.cfg.Node.ID {
			out = append(out, p.nodes[id])
		}
	}
	return out
}

func peerNames(list []member) string {
	const shown = 8
	var names []string
	for i, m := range list {
		if i == shown {
			names = append(names, fmt.Sprintf("%d more", len(list)-shown))
			break
		}
		names = append(names, string(m.id))
	}
	return strings.Join(names, ", ")
}

// decode reads the switch's XML, whatever it declares its encoding to be.
func decode(text string, into any) error {
	dec := xml.NewDecoder(strings.NewReader(text))
	dec.Strict = false
	dec.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	return dec.Decode(into)
}

// oneLine is the first line of what a switch says, at most 120 bytes.
func oneLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if len(s) > 120 {
		s = s[:120] + "…"
	}
	return s
}
