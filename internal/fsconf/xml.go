package fsconf

import (
	"fmt"
	"strconv"
	"strings"

	"pbxmesh/internal/meshcontext"
)

// notice stands at the top of every file that is ours from end to end.
const notice = "Written by pbxmesh fsconf. Changes here are lost when it writes again."

// attr escapes an attribute's value. FreeSWITCH expands $${…} before it parses, so
// dollar and braces stay.
func attr(s string) string { return escaper.Replace(s) }

var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;")

// comment makes s safe inside an XML comment, where "--" may not stand.
func comment(s string) string {
	for strings.Contains(s, "--") {
		s = strings.ReplaceAll(s, "--", "- -")
	}
	return strings.TrimSuffix(s, "-")
}

// ProfileXML returns the mesh profile: sip_profiles/<profile>.xml.
func (s *Settings) ProfileXML() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "<!-- %s -->\n<profile name=\"%s\">\n  <settings>\n", notice, attr(s.Profile))
	for _, p := range s.profileSettings() {
		if p.Why != "" {
			fmt.Fprintf(&b, "    <!-- %s -->\n", comment(p.Why))
		}
		fmt.Fprintf(&b, "    <param name=\"%s\" value=\"%s\"/>\n", attr(p.Name), attr(p.Value))
	}
	b.WriteString("  </settings>\n</profile>\n")
	return []byte(b.String())
}

// DialplanXML returns the context of the mesh profile: dialplan/<profile>.xml.
func (s *Settings) DialplanXML() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "<!-- %s -->\n<include>\n  <context name=\"%s\">\n", notice, attr(s.Profile))
	for line := range strings.Lines(s.extensionOf("", s.actions())) {
		b.WriteString("    " + line)
	}
	b.WriteString("  </context>\n</include>\n")
	return []byte(b.String())
}

// extensionOf is the one extension of the context. The condition on the destination
// comes last, because $1 is of the last expression that matched.
func (s *Settings) extensionOf(uuid string, actions []meshcontext.Action) string {
	id := ""
	if uuid != "" {
		id = ` continue="false" uuid="` + uuid + `"`
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<extension name="%s-in"%s>
  <condition field="${sip_req_host}" expression="%s"/>
  <condition field="destination_number" expression="%s">
`, attr(s.Profile), id, attr(meshcontext.Domains), attr(meshcontext.Users))
	for _, a := range actions {
		if a.Why != "" {
			fmt.Fprintf(&b, "    <!-- %s -->\n", comment(a.Why))
		}
		fmt.Fprintf(&b, "    <action application=\"%s\" data=\"%s\"/>\n", attr(a.Name), attr(a.Data))
	}
	b.WriteString("  </condition>\n</extension>\n")
	return b.String()
}

// ExampleXML returns an extension for the phones' own context that asks the daemon
// per call (the socket hook); nil when the daemon serves none. It is printed, never
// written: which numbers are extensions is the operator's to say.
func (s *Settings) ExampleXML() []byte {
	if !s.Hook.IsValid() {
		return nil
	}
	return fmt.Appendf(nil, `<include>
  <extension name="pbxmesh">
    <condition field="destination_number" expression="^(1[0-9]{3})$">
      <action application="set" data="hangup_after_bridge=true"/>
      <action application="set" data="continue_on_fail=true"/>
      <action application="set" data="call_timeout=30"/>
      <action application="socket" data="%s async full"/>
      <action application="answer"/>
      <action application="voicemail" data="default ${domain_name} $1"/>
    </condition>
  </extension>
</include>
`, attr(s.Hook.String()))
}

// ACLFragment returns the list of the nodes, between our marks.
func (s *Settings) ACLFragment() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "<list name=\"%s\" default=\"deny\">\n", attr(s.Profile))
	for _, p := range s.peers() {
		fmt.Fprintf(&b, "  <node type=\"allow\" cidr=\"%s\"/> <!-- %s -->\n", p.cidr(), comment(string(p.Name)))
	}
	b.WriteString("</list>\n")
	return []byte(marked(b.String(), "    "))
}

// EventSocketFragment returns the settings of the event socket, without marks; nil
// when the event socket is not ours to configure. hide leaves the password out.
func (s *Settings) EventSocketFragment(hide bool) []byte {
	var b strings.Builder
	for _, p := range s.eventSocketParams() {
		if hide && p.name == "password" {
			p.value = s.hidden()
		}
		fmt.Fprintf(&b, "    <param name=\"%s\" value=\"%s\"/>\n", attr(p.name), attr(p.value))
	}
	return []byte(b.String())
}

// param is one setting of the event socket.
type param struct{ name, value string }

func (s *Settings) eventSocketParams() []param {
	e := s.EventSocket
	if !e.Listen.IsValid() {
		return nil
	}
	return []param{
		{"listen-ip", e.Listen.Addr().String()},
		{"listen-port", strconv.Itoa(int(e.Listen.Port()))},
		{"password", e.Password},
		{"apply-inbound-acl", "loopback.auto"},
	}
}

// hidden stands for the password in everything that a person reads.
func (s *Settings) hidden() string { return "(the content of " + s.EventSocket.PasswordFile + ")" }
