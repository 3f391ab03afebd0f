package dialplan

import (
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"

	"pbxmesh"
	"pbxmesh/internal/meshcontext"
)

// notFound is the one document that FreeSWITCH takes for "not mine": it asks the
// next binding and then its own configuration. Every other way to say no (an HTTP
// error, an empty body, an empty section) ends there too, but with an error in the
// switch's log, or only after three tries.
var notFound = []byte(`<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<document type="freeswitch/xml">
  <section name="result">
    <result status="not found"/>
  </section>
</document>
`)

// varTried is the channel variable that says whom a document has rung already.
// After the bridge the call is transferred to the same number, the switch asks again,
// and this time gets "not found".
const varTried = "pbxmesh_tried"

type (
	document struct {
		XMLName xml.Name `xml:"document"`
		Type    string   `xml:"type,attr"`
		Section section  `xml:"section"`
	}
	section struct {
		Name          string         `xml:"name,attr"`
		Contexts      []xmlContext   `xml:"context"`
		Configuration *configuration `xml:"configuration"`
	}
	xmlContext struct {
		Name      string    `xml:"name,attr"`
		Extension extension `xml:"extension"`
	}
	extension struct {
		Name    string   `xml:"name,attr"`
		Actions []action `xml:"condition>action"`
	}
	action struct {
		Application string `xml:"application,attr"`
		Data        string `xml:"data,attr"`
		Inline      string `xml:"inline,attr,omitempty"`
	}
)

// xml answers POST /xml, a binding of mod_xml_curl.
func (s *Server) xml(a *answer, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		code := http.StatusBadRequest
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			code = http.StatusRequestEntityTooLarge
		}
		s.refuse(a, code, "the form cannot be read: "+err.Error())
		return
	}
	f, err := parseForm(string(body))
	switch {
	case err != nil:
		s.observe(Record{Door: doorXML, Outcome: Invalid, Cause: Invalid.cause()})
		a.give(Invalid, err.Error())
	case f["section"] == "dialplan":
		s.dialplan(a, r, f)
	case f["section"] == "configuration" && f["tag_name"] == "configuration" && f["key_value"] == "acl.conf":
		s.acl(a)
	default:
		a.write(http.StatusOK, typeXML, notFound)
	}
}

func (s *Server) dialplan(a *answer, r *http.Request, f form) {
	fromMesh := s.opt.Bridge.Arrived(func(name string) string { return f["variable_"+name] })
	context := f.first("Hunt-Context", "Caller-Context")
	if !validName(context) || !fromMesh && !slices.Contains(s.opt.Contexts, context) && !slices.Contains(s.opt.Contexts, AnyContext) {
		a.write(http.StatusOK, typeXML, notFound)
		return
	}
	number := f.first("Hunt-Destination-Number", "Caller-Destination-Number")
	aor, err := pbxmesh.NewAOR(number, s.domain(f, fromMesh))
	if err != nil {
		s.observe(Record{Door: doorXML, FromMesh: fromMesh, Outcome: Invalid, Cause: Invalid.cause()})
		a.give(Invalid, err.Error())
		return
	}
	if f["variable_"+varTried] == aor.String() {
		a.write(http.StatusOK, typeXML, notFound)
		return
	}
	d := s.decide(r.Context(), doorXML, aor, fromMesh)
	if d.outcome != Routed {
		a.give(d.outcome, "")
		return
	}
	c := call{context: context, number: number, aor: aor, bridge: d.plan.BridgeString(s.opt.Bridge), fromMesh: fromMesh}
	for _, name := range [...]string{"hangup_after_bridge", "continue_on_fail"} {
		if f["variable_"+name] == "" {
			c.defaults = append(c.defaults, name)
		}
	}
	// A dialplan that leaves out contacts of its own choice keeps it.
	c.guarded = strings.Contains(c.bridge, "${sofia_contact(") && f["variable_"+meshcontext.ExcludeVariable] == ""
	text, err := marshal(c.document())
	if err != nil {
		s.log.Error("the document cannot be written", "aor", aor, "err", err)
		a.give(Unavailable, "the document cannot be written")
		return
	}
	a.w.Header().Set("X-Pbxmesh-Result", string(Routed))
	a.write(http.StatusOK, typeXML, text)
}

// domain returns the domain of the dialled number, as the socket hook finds it.
func (s *Server) domain(f form, fromMesh bool) string {
	if fromMesh {
		// The sending node put the tenant's domain into the request URI. Nobody
		// authenticated here whose domain_name could say better.
		if d := f["variable_sip_req_host"]; d != "" {
			return d
		}
	}
	if d := f.first(domainVariables[:]...); d != "" {
		return d
	}
	return s.opt.Domain
}

// call is what a dialplan document is made of: all of it validated.
type call struct {
	context  string // alphabet of validName
	number   string // as dialled, NewAOR took it
	aor      pbxmesh.AOR
	bridge   string // of BridgeString
	fromMesh bool
	guarded  bool     // our rows are left out while it rings
	defaults []string // variables that the channel lacks
}

// document returns the extension that rings the plan and then goes on.
//
// The document stands in place of the switch's whole dialplan, so "going on" is a
// transfer to the same number: the switch hunts again, we answer "not found", and
// its own extensions run. A call that came over the mesh has no going on: it fails,
// and the sending node's dialplan takes over.
//
// What is known before the call rings is set inline, while the switch hunts, and
// costs no step of the channel.
func (c *call) document() *document {
	var actions []action
	if c.fromMesh {
		// The steps of every mesh context, for this callee.
		for _, a := range (meshcontext.Callee{User: c.aor.User(), Domain: c.aor.Domain()}).Actions(c.bridge) {
			actions = append(actions, action{Application: a.Name, Data: a.Data})
		}
		actions = slices.Insert(actions, 0, inline("pbxmesh_result=routed"), inline("pbxmesh_cause=NONE"))
	} else {
		actions = c.steps()
	}
	return &document{Type: "freeswitch/xml", Section: section{
		Name:     "dialplan",
		Contexts: []xmlContext{{Name: c.context, Extension: extension{Name: "pbxmesh", Actions: actions}}},
	}}
}

func set(data string) action    { return action{Application: "set", Data: data} }
func inline(data string) action { return action{Application: "set", Data: data, Inline: "true"} }

// steps are those of a call that this switch's own dialplan goes on with.
func (c *call) steps() []action {
	var actions []action
	for _, name := range c.defaults {
		// Read from the calling channel: without the second a busy callee ends
		// the call, without the first a caller whose callee hung up goes on.
		actions = append(actions, inline(name+"=true"))
	}
	actions = append(actions, inline(varTried+"="+c.aor.String()), inline("pbxmesh_result=routed"), inline("pbxmesh_cause=NONE"))
	if c.guarded {
		// No row of ours for a local device: of a profile that is stopped or misspelt
		// FreeSWITCH asks all profiles. Every way on from here is a transfer, by the
		// last step, by the callee or by a phone that redirects, and ends it.
		actions = append(actions, inline(meshcontext.ExcludeVariable+"="+meshcontext.Mark),
			inline("execute_on_blind_transfer_pbxmesh=unset "+meshcontext.ExcludeVariable))
	}
	return append(actions,
		action{Application: "bridge", Data: c.bridge},
		// With hangup_after_bridge=false an answered call comes by here too.
		set("pbxmesh_result=${cond(${originate_disposition} == SUCCESS ? answered : failed)}"),
		set("pbxmesh_cause=${originate_disposition}"),
		action{Application: "transfer", Data: c.number + " XML " + c.context})
}

func marshal(d *document) ([]byte, error) {
	text, err := xml.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(append([]byte(`<?xml version="1.0" encoding="UTF-8" standalone="no"?>`+"\n"), text...), '\n'), nil
}
