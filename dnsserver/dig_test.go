package dnsserver

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestDig asks with the tool that operators ask with, and whose parser is not the
// one that wrote the answers.
func TestDig(t *testing.T) {
	t.Parallel()
	dig, err := exec.LookPath("dig")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("dig is missing; install bind9-dnsutils")
		}
		t.Skip("SKIPPED: dig is missing; install bind9-dnsutils")
	}
	z, _ := newTestZone(t, bigMesh(3, 30))
	_, addr := startServer(t, z)
	host, port, _ := net.SplitHostPort(addr)

	for _, tt := range []struct {
		args string
		want []string // all of them in the output
		not  []string
	}{
		{args: "pbx.example.com A", want: []string{"status: NOERROR", "flags: qr aa rd;", "ANSWER: 1", "30\tIN\tA\t10.0.0.0", "EDNS: version: 0, flags:; udp: 1232", "recursion requested but not available"}},
		{args: "+norec pbx.example.com SOA", want: []string{"flags: qr aa;", "losangeles.pbx.example.com. hostmaster.pbx.example.com. 1 "}},
		{args: "+tcp pbx.example.com NS", want: []string{"(TCP)", "86400\tIN\tNS\tjacksonville.pbx.example.com.", "86400 IN\tAAAA\t2001:db8::11"}},
		{args: "_sip._udp.pbx.example.com SRV", want: []string{"status: NOERROR", "SRV\t10 0 5060 node-000.", "SRV\t20 0 5060 node-001.", "SRV\t30 0 5060 node-002."}, not: []string{"Truncated"}},
		{args: "+tcp _sip._udp.pbx.example.com SRV", want: []string{"SRV\t30 0 5060 node-002.", "ADDITIONAL: 91"}},
		{args: "tenant.pbx.example.com NAPTR", want: []string{`NAPTR	10 10 "s" "SIP+D2U" "" _sip._udp.tenant.pbx.example.com.`}},
		{args: "TeNaNt.pBx.eXaMpLe.CoM A", want: []string{"TeNaNt.pBx.eXaMpLe.CoM.\t30\tIN\tA"}, not: []string{"mismatch"}},
		{args: "x.losangeles.pbx.example.com A", want: []string{"status: NXDOMAIN", "AUTHORITY: 1", "10\tIN\tSOA"}},
		{args: "_udp.pbx.example.com A", want: []string{"status: NOERROR", "ANSWER: 0", "AUTHORITY: 1"}},
		{args: "pbx.example.com TYPE65280", want: []string{"status: NOERROR", "ANSWER: 0"}},
		{args: "+notcp pbx.example.com ANY", want: []string{"status: NOERROR", `HINFO	"RFC8482" ""`}},
		{args: "pbx.example.com AXFR", want: []string{"Transfer failed"}},
		{args: "example.org A", want: []string{"status: REFUSED", "flags: qr rd;"}},
		{args: "version.bind CH TXT", want: []string{"status: REFUSED"}},
		{args: "id.server CH TXT", want: []string{"status: REFUSED"}},

		// Sizes.
		{args: "+noedns +ignore node-000.pbx.example.com A", want: []string{"flags: qr aa tc rd;", "ANSWER: 0", "ADDITIONAL: 0"}, not: []string{"EDNS"}},
		{args: "+noedns node-000.pbx.example.com A", want: []string{"Truncated, retrying in TCP mode", "ANSWER: 30"}},
		{args: "+bufsize=512 +ignore node-000.pbx.example.com A", want: []string{"flags: qr aa tc rd;", "udp: 1232"}},
		{args: "+bufsize=4096 +ignore node-000.pbx.example.com A", want: []string{"flags: qr aa rd;", "ANSWER: 30"}},

		// RFC 8906 section 8.
		{args: "+noedns +noad +norec +zflag pbx.example.com SOA", want: []string{"status: NOERROR", "flags: qr aa;"}, not: []string{"MBZ"}},
		{args: "+noedns +header-only pbx.example.com", want: []string{"status: FORMERR"}},
		{args: "+noedns +opcode=15 +header-only pbx.example.com", want: []string{"status: NOTIMP"}},
		{args: "+opcode=15 pbx.example.com A", want: []string{"status: NOTIMP", "opcode: RESERVED15"}},
		{args: "+edns=1 +noednsneg +nocookie +nsid pbx.example.com SOA", want: []string{"status: BADVERS", "EDNS: version: 0", "ANSWER: 0"}, not: []string{"NSID"}},
		{args: "+edns=1 +ednsopt=100 +noednsneg pbx.example.com SOA", want: []string{"status: BADVERS", "EDNS: version: 0"}, not: []string{"OPT=100"}},
		{args: "+ednsopt=100 pbx.example.com SOA", want: []string{"status: NOERROR", "EDNS: version: 0"}, not: []string{"OPT=100"}},
		{args: "+ednsflags=0x40 pbx.example.com SOA", want: []string{"status: NOERROR", "EDNS: version: 0, flags:;"}, not: []string{"MBZ"}},
		{args: "+dnssec pbx.example.com SOA", want: []string{"status: NOERROR", "EDNS: version: 0, flags: do;"}},
		{args: "+cookie pbx.example.com SOA", want: []string{"status: NOERROR"}, not: []string{"FORMERR"}},
		{args: "+nsid pbx.example.com SOA", want: []string{`("losangeles")`}},
		{args: "+qr +cd +ad pbx.example.com SOA", want: []string{"flags: qr aa rd cd;"}},

		// Client subnets.
		{args: "+subnet=198.51.100.0/24 pbx.example.com A", want: []string{"CLIENT-SUBNET: 198.51.100.0/24/24"}},
		{args: "+subnet=2001:db8:100::/56 pbx.example.com A", want: []string{"CLIENT-SUBNET: 2001:db8:100::/56/40"}},
		{args: "+subnet=198.51.100.0/24 pbx.example.com SOA", want: []string{"CLIENT-SUBNET: 198.51.100.0/24/0"}},
		{args: "+subnet=0 pbx.example.com A", want: []string{"status: NOERROR", "CLIENT-SUBNET: 0.0.0.0/0/0"}},
		{args: "+subnet=0.0.0.0/0 pbx.example.com A", want: []string{"status: NOERROR", "/0/0"}},
		{args: "+ednsopt=8:00012000c63364 pbx.example.com A", want: []string{"status: FORMERR"}},
	} {
		t.Run(tt.args, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			args := append([]string{"@" + host, "-p", port, "+tries=1", "+time=5"}, strings.Fields(tt.args)...)
			out, err := exec.CommandContext(ctx, dig, args...).CombinedOutput()
			var exit *exec.ExitError
			if err != nil && !strings.Contains(fmt.Sprint(err), "exit status") {
				t.Fatalf("%v %v", err, exit)
			}
			for _, w := range tt.want {
				if !strings.Contains(string(out), w) {
					t.Errorf("dig %s lacks %q:\n%s", tt.args, w, out)
				}
			}
			for _, w := range append(tt.not, "Malformed", "unexpected", "no servers could be reached", "WARNING: Message") {
				if strings.Contains(string(out), w) {
					t.Errorf("dig %s has %q:\n%s", tt.args, w, out)
				}
			}
		})
	}
}
