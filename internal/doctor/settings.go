package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"pbxmesh/internal/meshcontext"
)

// rule is what a setting of the mesh profile must be.
type rule struct {
	name string
	good func(values []string) bool
	want string
	bad  Status
	why  string
}

func truth(want bool) func([]string) bool {
	return func(values []string) bool {
		if len(values) == 0 {
			return false
		}
		// FreeSWITCH's own words for true.
		is := slices.Contains([]string{"true", "yes", "on", "enabled", "active", "allow", "1", "t"}, strings.ToLower(values[len(values)-1]))
		return is == want
	}
}

var seconds = strconv.Itoa(int(meshcontext.SessionExpires / time.Second))

func rules(profile string) []rule {
	return []rule{
		{"auth-calls", truth(true), "true", Fail, "with neither it nor the list everybody may call"},
		{"auth-calls-acl-only", truth(true), "true", Fail, "without it who is not in the list is asked for a password, and with one of any user may call"},
		{"apply-inbound-acl", func(v []string) bool { return slices.Contains(v, profile) }, profile, Fail, "without it the nodes are refused, or asked for a password"},
		{"disable-register", truth(true), "true", Warn, "phones could register where nobody looks for them"},
		{"manage-presence", truth(false), "false", Warn, "lamps belong to the phones' profiles"},
		{"multiple-registrations", func(v []string) bool {
			return len(v) > 0 && slices.Contains([]string{"true", "contact", "call-id"}, strings.ToLower(v[len(v)-1]))
		}, "true", Fail, "without it a user on two other nodes rings on one only"},
		{"timer-T1X64", func(v []string) bool {
			if len(v) == 0 {
				return false
			}
			n, err := strconv.Atoi(v[len(v)-1])
			return err == nil && n > 0 && n <= 8000
		}, "4000", Warn, "a call to a dead node waits 32 s"},
		{"inbound-late-negotiation", truth(true), "true", Warn, "a caller with Opus cannot reach a phone without it"},
		{"dtmf-type", func(v []string) bool { return slices.Contains(v, "info") }, "info", Warn, "digits get lost beside Opus"},
		{"enable-timer", func(v []string) bool { return len(v) == 0 || truth(true)(v) }, "true", Warn, "a call whose other node died goes on in silence"},
		{"session-timeout", func(v []string) bool {
			if len(v) == 0 {
				return false
			}
			n, err := strconv.Atoi(v[len(v)-1])
			return err == nil && n > 0 && n <= 300
		}, seconds, Warn, "a call whose other node died goes on in silence"},
		{"context", func(v []string) bool { return slices.Contains(v, profile) }, profile, Warn, "the context must ring devices of this switch only"},
	}
}

// settings reads what the switch has been given for the mesh profile: from files or, on
// FusionPBX, from its database. A profile that was started before may run with others.
func (p *patient) settings(ctx context.Context) {
	start := time.Now()
	say := func(r Result) { p.say("mesh settings", "mesh settings", start, r) }
	configured := map[string]map[string][]string{} // values by profile and setting
	defer func() {
		p.keepAlives(ctx, configured)
		p.domain(configured)
	}()
	text, bad := p.ask(ctx, "xml_locate configuration configuration name sofia.conf")
	if bad != nil {
		say(*bad)
		return
	}
	var conf struct {
		Profiles []struct {
			Name   string `xml:"name,attr"`
			Params []struct {
				Name  string `xml:"name,attr"`
				Value string `xml:"value,attr"`
			} `xml:"settings>param"`
		} `xml:"profiles>profile"`
	}
	if err := decode(text, &conf); err != nil {
		say(skip("the switch does not show its configuration (%s)", oneLine(text)))
		return
	}
	for _, profile := range conf.Profiles {
		values := map[string][]string{}
		for _, param := range profile.Params {
			values[param.Name] = append(values[param.Name], param.Value)
		}
		configured[profile.Name] = values
	}
	name := p.cfg.FreeSWITCH.MeshProfile
	if values, there := configured[name]; there {
		say(judge(name, values))
		return
	}
	say(fail("the configuration of the switch has no profile "+name, fsconfHint))
}

// judge compares settings with the rules; the worst one counts.
func judge(profile string, values map[string][]string) Result {
	worst := OK
	var seen, why []string
	for _, r := range rules(profile) {
		if r.good(values[r.name]) {
			continue
		}
		is := strings.Join(values[r.name], ", ")
		if len(values[r.name]) == 0 {
			is = "not set"
		}
		seen = append(seen, fmt.Sprintf("%s is %s, not %s", r.name, oneLine(is), r.want))
		why = append(why, r.why)
		if r.bad == Fail || worst == OK {
			worst = r.bad
		}
	}
	if worst == OK {
		return ok("as they should be")
	}
	return Result{Status: worst, Seen: strings.Join(seen, "; "), Do: strings.Join(why, "; ") + ": " + fsconfHint + ", then restart the profile when no calls run"}
}

// domain looks for the sample configuration's domain, which is the switch's own address:
// the same user is then another address of record on every node, and nobody is found.
func (p *patient) domain(configured map[string]map[string][]string) {
	start := time.Now()
	for _, profile := range p.cfg.FreeSWITCH.Profiles {
		for _, name := range []string{"force-register-db-domain", "force-register-domain"} {
			values := configured[profile][name]
			if len(values) == 0 {
				continue
			}
			if _, err := netip.ParseAddr(values[len(values)-1]); err == nil {
				p.say("domain", "domain of "+profile, start, fail(
					fmt.Sprintf("%s is %s: phones of this switch are known as USER@%[2]s, another domain on every node, so that no node finds those of another", name, oneLine(values[len(values)-1])),
					fmt.Sprintf("the same domain on all nodes: pbxmesh fsconf --domain %s --write DIRECTORY, or in vars.xml <X-PRE-PROCESS cmd=\"set\" data=\"domain=%[1]s\"/>", cmp.Or(p.cfg.Router.DefaultDomain, "sip.example.com"))))
				break
			}
		}
	}
}
