package dialplan

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"pbxmesh"
)

// everybody has every address here and on london: what a caller dials reaches the
// bridge string whenever it can.
type everybody struct{ *fake }

func (e everybody) Lookup(_ context.Context, aor pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
	r := pbxmesh.Registration{AOR: aor, Node: "london", CallID: "c", Profile: "internal", Contact: "sip:${x}@[evil],|", Expires: now.Add(time.Hour)}
	l := r
	l.Node = "buffalo"
	return []*pbxmesh.Registration{&l, &r}, 0, nil
}

// The grammars are written by hand from the rules and not from the code.
const (
	gHost  = `[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*`
	gAOR   = `[a-z0-9._+-]{1,64}@` + gHost
	gVars  = `presence_id=` + gAOR + `,sip_invite_domain=` + gHost
	gError = `error/(?:user_not_registered|invalid_number_format|destination_out_of_order|normal_temporary_failure|switch_congestion)`
	gMesh  = `sofia/mesh/sip:` + gAOR + `;fs_path=sip%3A192\.0\.2\.2%3A5090`
	gLocal = `\$\{sofia_contact\(internal/` + gAOR + `\)\}`
	gAll   = `(?:\[` + gVars + `\]` + gLocal + `,` + gMesh + `|\{` + gVars + `\}` + gLocal + `)`
)

var (
	plainText   = regexp.MustCompile(`\A(?:` + gError + `|` + gMesh + `)\z`)
	contactText = regexp.MustCompile(`\A(?:` + gError + `|` + gMesh + `|` + gAll + `)\z`)

	actionText = regexp.MustCompile(`\A(?:set (?:hangup_after_bridge=true|continue_on_fail=true|pbxmesh_tried=` + gAOR +
		`|pbxmesh_result=routed|pbxmesh_cause=NONE|pbxmesh_result=\$\{cond\(\$\{originate_disposition\} == SUCCESS \? answered : failed\)\}|pbxmesh_cause=\$\{originate_disposition\}` +
		`|process_cdr=false|sip_exclude_contact=pbxmesh-row|execute_on_blind_transfer_pbxmesh=(?:unset sip_exclude_contact|multiset \^\^:process_cdr=:sip_exclude_contact=:pbxmesh_transferred=true)` +
		`|pbxmesh_hash=\$\{hash\(insert/` + gHost + `-(?:call_return/[a-z0-9._+-]{1,64}/\$\{caller_id_number\}|last_dial_ext/[a-z0-9._+-]{1,64}/\$\{uuid\})\)\}` +
		`|domain_name=` + gHost + `|force_transfer_context=\$\{user_data\(` + gAOR + ` var user_context\)\})` +
		`|export nolocal:(?:sip_h_Privacy=\$\{sip_Privacy\}|alert_info=\$\{alert_info\}|sip_auto_answer=\$\{sip_auto_answer_detected\})|hangup \$\{originate_disposition\}` +
		`|bridge ` + gAll + `|transfer [A-Za-z0-9._+-]{1,64} XML [A-Za-z0-9._-]{1,253})\z`)
)

// FuzzDialstring: whatever path and query hold, the answer is one of the dial
// strings of the grammar, with no line end, and never a redirect.
func FuzzDialstring(f *testing.F) {
	for _, h := range hostile {
		f.Add("/dialstring/"+h+"@pbx.test", "")
	}
	f.Add("/dialstring/1002@pbx.test", "local=contact")
	f.Add("/dialstring/1002%40pbx.test", "from=mesh&local=contact")
	f.Add("/dialstring/../route/1002@pbx.test", "local=contact")
	s := newServer(f, newFake(), func(o *Options) { o.Directory = everybody{newFake()} })
	f.Fuzz(func(t *testing.T, path, query string) {
		target := path
		if query != "" {
			target += "?" + query
		}
		u, err := url.ParseRequestURI(target)
		if err != nil || strings.HasPrefix(path, "/xml") {
			return // net/http answers 400 by itself
		}
		r := ask(s, "GET", target, "", "User-Agent", "freeswitch-curl/1.0")
		got := r.body
		grammar := plainText
		if values, err := url.ParseQuery(u.RawQuery); err == nil && values.Get("local") == "contact" {
			grammar = contactText
		}
		if !grammar.MatchString(got) || r.StatusCode >= 300 && r.StatusCode < 400 {
			t.Fatalf("%q: %d %q", target, r.StatusCode, got)
		}
		for name, values := range r.Header {
			if strings.ContainsFunc(strings.Join(values, ""), func(c rune) bool { return c < ' ' || c > '~' }) {
				t.Fatalf("%q: header %s: %q", target, name, values)
			}
		}
	})
}

// FuzzXML: whatever stands in the parameters, the answer is "not found" or a
// document whose every action is one of the grammar.
func FuzzXML(f *testing.F) {
	for _, h := range hostile {
		f.Add(h, "pbx.test", "default", "internal", "")
		f.Add("1002", h, "default", "internal", "")
		f.Add("1002", "pbx.test", h, "mesh", "")
	}
	f.Add("1002", "pbx.test", "default", "internal", "&Hunt-Destination-Number=1003")
	f.Add("1002", "pbx.test", "mesh", "mesh", "&variable_sip_req_host=pbx.test")
	f.Add("1002", "pbx.test", "default", "internal", "&section=configuration&tag_name=configuration&key_value=acl.conf")
	s := newServer(f, newFake(), func(o *Options) {
		o.Directory = everybody{newFake()}
		o.Contexts = []string{AnyContext}
	})
	f.Fuzz(func(t *testing.T, number, domain, context, profile, more string) {
		v := url.Values{
			"section": {"dialplan"}, "Hunt-Destination-Number": {number}, "Hunt-Context": {context},
			"variable_domain_name": {domain}, "variable_sofia_profile_name": {profile},
		}
		checkDocument(t, s, strings.ReplaceAll(v.Encode(), "+", "%20")+more)
	})
}

// FuzzForm: the same for any body at all.
func FuzzForm(f *testing.F) {
	f.Add(callForm("1002"))
	f.Add("section=dialplan&Hunt-Destination-Number=1002&Hunt-Context=default&variable_domain_name=pbx.test")
	f.Add("section=dialplan&Hunt-Destination-Number=%31%30&Hunt-Destination-Number=10&Hunt-Context=x&variable_domain_name=a")
	f.Add("&&=&%=%&section")
	s := newServer(f, newFake(), func(o *Options) {
		o.Directory = everybody{newFake()}
		o.Contexts = []string{AnyContext}
	})
	f.Fuzz(func(t *testing.T, body string) { checkDocument(t, s, body) })
}

func checkDocument(t *testing.T, s *Server, body string) {
	t.Helper()
	r := ask(s, "POST", "/xml", body)
	got := r.body
	if got == string(notFound) {
		return
	}
	// FreeSWITCH replaces $${...} and X-PRE-PROCESS before it parses.
	if r.StatusCode != http.StatusOK || strings.Contains(got, "$$") || strings.Contains(got, "PRE-PROCESS") {
		t.Fatalf("%q: %d %s", body, r.StatusCode, got)
	}
	dec := xml.NewDecoder(strings.NewReader(got))
	actions := 0
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%q: %v in %s", body, err, got)
		}
		el, ok := token.(xml.StartElement)
		if !ok {
			if c, ok := token.(xml.CharData); ok && len(bytes.TrimSpace(c)) > 0 {
				t.Fatalf("%q: text %q", body, c)
			}
			continue
		}
		attrs := map[string]string{}
		for _, a := range el.Attr {
			attrs[a.Name.Local] = a.Value
		}
		switch el.Name.Local {
		case "document", "section", "extension", "condition":
		case "context":
			if !validName(attrs["name"]) {
				t.Fatalf("%q: context %q", body, attrs["name"])
			}
		case "action":
			actions++
			if !actionText.MatchString(attrs["application"] + " " + attrs["data"]) {
				t.Fatalf("%q: action %v", body, attrs)
			}
		default:
			t.Fatalf("%q: element %s", body, el.Name.Local)
		}
	}
	if actions < 3 {
		t.Fatalf("%q: %d actions in %s", body, actions, got)
	}
}

// FuzzACL: whatever the operator's file holds, an answer names every list of it
// again, in order, and lets every node of the mesh in.
func FuzzACL(f *testing.F) {
	f.Add([]byte(ownLists))
	f.Add([]byte(`<network-lists><list name="a&quot;b" default="allow"><node type="allow" cidr="1.2.3.4/32" x="&#10;"/></list></network-lists>`))
	f.Add([]byte(`<network-lists><list/></network-lists>`))
	peer := netip.MustParseAddr("192.0.2.2")
	f.Fuzz(func(t *testing.T, file []byte) {
		lists, err := parseACL(file)
		if err != nil {
			return
		}
		out, err := marshal(&document{Section: section{Name: "configuration", Configuration: &configuration{
			Name: "acl.conf", Lists: append(lists, aclList{Name: "mesh", Nodes: []aclNode{{Attrs: []xml.Attr{{Name: xml.Name{Local: "cidr"}, Value: peer.String() + "/32"}}}}}),
		}}})
		if err != nil {
			t.Fatalf("%q: %v", file, err)
		}
		again, err := parseACL(out)
		if err != nil && len(out) <= maxACLFile {
			t.Fatalf("%q: %v in %s", file, err, out)
		}
		if err == nil && (len(again) != len(lists)+1 || again[len(lists)].Name != "mesh") {
			t.Fatalf("%q: %d lists became %d", file, len(lists), len(again))
		}
		for i := range min(len(lists), len(again)) {
			if again[i].Name != lists[i].Name || again[i].Default != lists[i].Default || len(again[i].Nodes) != len(lists[i].Nodes) {
				t.Fatalf("%q: %+v became %+v", file, lists[i], again[i])
			}
		}
	})
}
