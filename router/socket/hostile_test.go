package socket

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"pbxmesh"
)

// wireGrammar is everything the hook may ever say to a switch, written by hand from
// the rules and not from the code. Nothing a caller dials can be in it but
// letters, digits and . _ + - in the place of a user.
var wireGrammar = func() *regexp.Regexp {
	const (
		uuid     = `[^\x00-\x20\x7f]{1,256}`
		quoted   = `api uuid_setvar '[^\x00-\x1f\x7f'\\]{1,256}' `
		result   = `(?:routed|answered|failed|not-registered|unreachable|invalid|unavailable|overloaded)`
		set      = `api uuid_setvar_multi ` + uuid + ` pbxmesh_result=` + result + `;pbxmesh_cause=[A-Z0-9_]{1,48}`
		singly   = quoted + `pbxmesh_result ` + result + `\n\n` + quoted + `pbxmesh_cause [A-Z0-9_]{1,48}`
		domain   = `[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*`
		aor      = `[a-z0-9._+-]{1,64}@` + domain
		callee   = `presence_id=` + aor + `,sip_invite_domain=` + domain
		addr     = `192\.0\.2\.[123]%3A5090`
		leg      = `(?:(?:\[` + callee + `\])?\$\{sofia_contact\(internal/` + aor + `\)\}|sofia/mesh/sip:` + aor + `;fs_path=sip%3A` + addr + `)`
		bridge   = `sendmsg\ncall-command: execute\nexecute-app-name: bridge\nexecute-app-arg: (?:\{` + callee + `\})?` + leg + `(?:[,|]` + leg + `)*`
		back     = `(?:` + set + `\n\n|` + singly + `\n\n)?resume\n\n`
		defaults = `(?:` + quoted + `hangup_after_bridge true\n\n)?(?:` + quoted + `continue_on_fail true\n\n)?(?:` + quoted + `sip_exclude_contact pbxmesh-row\n\n` + quoted + `execute_on_blind_transfer_pbxmesh unset sip_exclude_contact\n\n)?`
		guarded  = `sip_exclude_contact=pbxmesh-row;execute_on_blind_transfer_pbxmesh=unset sip_exclude_contact`
		first    = `(?:` + set + `(?:;hangup_after_bridge=true)?(?:;continue_on_fail=true)?(?:;` + guarded + `)?\n\n|` + singly + `\n\n` + defaults + `)?`
		forward  = `myevents\n\n` + first + bridge + `\n\n(?:` + set + `(?:;sip_exclude_contact=)?\n\n|` + singly + `\n\n(?:` + quoted + `sip_exclude_contact\n\n)?){0,2}`
	)
	return regexp.MustCompile(`\Aconnect\n\n(?:` + back + `|` + forward + `)\z`)
}()

// setLines are the commands that name the channel.
var setLines = regexp.MustCompile(`api uuid_setvar[^\n]*\n\n`)

// hostile are numbers that somebody may dial to reach what they must not.
func hostile() []string {
	return []string{
		"1001,sofia/gateway/x", "1001|y", "1001|sofia/gateway/premium/1900", "${system(id)}", "$${x}", "[a=b]1", "{x}", "<x>1",
		"1001@other", "1001@other.test", "^^:1001", "^^|a", ":_:", "1001:_:1002", "1001;fs_path=sip:192.0.2.66", "1001 ", " 1001", "10 01",
		"1001\r\n", "1001\n\napi system id\n\n", "\r\n", "1001\x00", "\x7f", "1001'", `1001"`, `\n`, "1001/1002", "*97", "#", "1001%",
		"%31%30%30%31", "%2531%2530%2530%2531", "1001%2Csofia", "1001%0a%0aexit", "1001%250a", "%", "%zz",
		"１００１", "\u212aelvin", "а001", "1001\u202e", "1001\u200b", "\xff\xfe", "١٠٠١", "ﬀ", "1001,", ",", "&echo()", "!1", "(1)", "=", "?", "~",
		"", strings.Repeat("1", 65), strings.Repeat("1", 4096), strings.Repeat("1,", 2048),
	}
}

// TestHostileNumbers dials them through the whole hook, over the wire: each comes
// back as invalid, and the directory is never asked.
func TestHostileNumbers(t *testing.T) {
	t.Parallel()
	asked := make(chan pbxmesh.AOR, 1000)
	_, addr := start(t, func(o *Options) {
		o.Directory = directoryFunc(func(ctx context.Context, a pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
			asked <- a
			return anyone(ctx, a)
		})
	})
	want := wireConnect + wireBack("invalid", "INVALID_NUMBER_FORMAT")
	for _, number := range hostile() {
		if got := dialling(number).dial(t, addr).wait(); got != want {
			t.Errorf("%.60q as number: sent %q", number, got)
		}
		if number == "" {
			continue // an empty domain falls to the next variable
		}
		if strings.Trim(number, "1") == "" && len(number) <= 253 {
			continue // many digits are too long a user, and a label of 64
		}
		if got := dialling("1001", with("variable_domain_name", number)).dial(t, addr).wait(); got != want {
			t.Errorf("%.60q as domain: sent %q", number, got)
		}
	}
	select {
	case a := <-asked:
		t.Errorf("the directory was asked for %s", a)
	default:
	}
}

// anyone is registered on every node.
func anyone(_ context.Context, a pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
	var regs []*pbxmesh.Registration
	for _, n := range []pbxmesh.NodeID{"buffalo", "london", "singapore"} {
		regs = append(regs, &pbxmesh.Registration{AOR: a, Node: n, CallID: "x", Profile: "internal", Expires: now.Add(time.Hour)})
	}
	return regs, 0, nil
}

// FuzzHook puts what a caller (number, domain, profile) and a far switch (cause)
// can write through the whole hook, and checks every byte that comes back.
func FuzzHook(f *testing.F) {
	for _, n := range []string{"1001", "1001,sofia/gateway/x", "${system(id)}", "1001\n\napi x", "%31", "１"} {
		f.Add(n, "pbx.test", "internal", "NO_USER_RESPONSE", testUUID)
	}
	_, addr := start(f, func(o *Options) { o.Directory = directoryFunc(anyone) })
	f.Fuzz(func(t *testing.T, number, domain, profile, cause, uuid string) {
		if len(number)+len(domain)+len(profile)+len(cause)+len(uuid) > 16<<10 {
			t.Skip("larger than the switch's own bounds")
		}
		call := dialling(number, with("variable_domain_name", domain), with("variable_sofia_profile_name", profile), with("Unique-ID", uuid),
			events("execute-complete-failed"), changed("variable_originate_disposition", cause), changed("Unique-ID", uuid))
		got := call.dial(t, addr).wait()
		if got == wireAway && !validUUID(uuid) {
			return
		}
		if !wireGrammar.MatchString(got) {
			t.Fatalf("outside of the grammar: %q", got)
		}
		if profile == "mesh" {
			domain = "pbx.test" // the recorded request's host
		}
		aor, err := pbxmesh.NewAOR(number, domain)
		got = setLines.ReplaceAllString(got, "") // the UUID in them may have any look
		if bridged := strings.Contains(got, "bridge"); bridged && domain != "" && (err != nil || strings.Count(got, "@") != strings.Count(got, aor.String())) {
			t.Fatalf("%q@%q (%v) gave %q", number, domain, err, got)
		}
	})
}
