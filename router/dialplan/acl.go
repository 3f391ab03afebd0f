package dialplan

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"

	"pbxmesh"
)

// ACL makes POST /xml answer when the switch loads acl.conf, so that the nodes of
// the mesh never have to be typed in. It is off while List is "".
//
// An answer takes the place of the switch's whole acl.conf, and lists that are not
// in it are gone (the switch then denies by them, or lets everybody in, as the
// profile has it). Therefore File is needed: its lists are in every answer, and
// nothing is answered when it cannot be read.
type ACL struct {
	// List is the name of the list that gets the mesh addresses of all nodes:
	// apply-inbound-acl of the mesh profile.
	List string

	// File is the switch's own acl.conf.xml, read at every request.
	File string
}

const (
	maxACLFile  = 256 << 10
	maxACLLists = 1000
)

func (a ACL) validate() error {
	switch {
	case a.List == "" && a.File == "":
		return nil
	case a.List == "" || a.File == "":
		return errors.New("dialplan hook: the ACL needs a list and the switch's own acl.conf.xml, whose lists would be lost without it")
	case !validName(a.List):
		return fmt.Errorf("dialplan hook: the list %.40q: 1 to %d letters, digits, '.', '-' and '_' are allowed", a.List, maxName)
	}
	return nil
}

type (
	configuration struct {
		Name  string    `xml:"name,attr"`
		Lists []aclList `xml:"network-lists>list"`
	}
	aclList struct {
		Name    string    `xml:"name,attr"`
		Default string    `xml:"default,attr,omitempty"`
		Nodes   []aclNode `xml:"node"`
	}
	aclNode struct {
		Attrs []xml.Attr `xml:",any,attr"`
	}
)

// acl answers for acl.conf: the operator's lists, and ours with every node in it.
func (s *Server) acl(a *answer) {
	if s.opt.ACL.List == "" {
		a.write(http.StatusOK, typeXML, notFound)
		return
	}
	text, err := s.aclDocument()
	if err != nil {
		s.log.Error("acl.conf is left to the switch: nodes that its own list lacks cannot call", "err", err)
		a.fail(http.StatusOK, "", err.Error())
		return
	}
	a.write(http.StatusOK, typeXML, text)
}

func (s *Server) aclDocument() ([]byte, error) {
	peers := Peers(s.opt.Nodes.Mesh())
	if len(peers) == 0 {
		return nil, errors.New("no node is known yet") // an empty list would lock all of them out
	}
	file, err := os.Open(s.opt.ACL.File)
	if err != nil {
		return nil, fmt.Errorf("the switch's own lists: %w", err)
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxACLFile+1))
	if err != nil {
		return nil, fmt.Errorf("the switch's own lists: %w", err)
	}
	lists, err := parseACL(raw)
	if err != nil {
		return nil, fmt.Errorf("the switch's own lists: %s: %w", s.opt.ACL.File, err)
	}
	at := slices.IndexFunc(lists, func(l aclList) bool { return l.Name == s.opt.ACL.List })
	if at < 0 {
		at = len(lists)
		lists = append(lists, aclList{Name: s.opt.ACL.List, Default: "deny"})
	}
	for _, p := range peers {
		lists[at].Nodes = append(lists[at].Nodes, aclNode{Attrs: []xml.Attr{
			{Name: xml.Name{Local: "type"}, Value: "allow"},
			{Name: xml.Name{Local: "cidr"}, Value: netip.PrefixFrom(p, p.BitLen()).String()},
		}})
	}
	return marshal(&document{Type: "freeswitch/xml", Section: section{
		Name: "configuration", Configuration: &configuration{Name: "acl.conf", Lists: lists},
	}})
}

// Peers returns where mesh calls may come from: the mesh address of every node,
// down and draining ones too, sorted, each once.
func Peers(m *pbxmesh.Mesh) []netip.Addr {
	if m == nil {
		return nil
	}
	var out []netip.Addr
	for id := range m.Nodes {
		ip := m.Nodes[id].Mesh.Addr().Unmap()
		if ip.Is4() && !ip.IsUnspecified() && !ip.IsMulticast() {
			out = append(out, ip)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// parseACL reads the <list> elements of an acl.conf.xml. What the switch would
// replace before it reads the file ($${...}) stays as it is: the switch replaces it
// in our answer too. What only makes sense beside the file (X-PRE-PROCESS, entities)
// is refused.
func parseACL(raw []byte) ([]aclList, error) {
	if len(raw) > maxACLFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxACLFile)
	}
	dec := xml.NewDecoder(bytes.NewReader(raw))
	var lists []aclList
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		switch t := token.(type) {
		case xml.Directive:
			return nil, errors.New("it has a document type")
		case xml.StartElement:
			switch name := t.Name.Local; {
			case strings.EqualFold(name, "X-PRE-PROCESS"):
				return nil, errors.New("it has an X-PRE-PROCESS, whose result is not known here: write the lists out")
			case name == "list":
				var l aclList
				if err := dec.DecodeElement(&l, &t); err != nil {
					return nil, err
				}
				if len(lists) == maxACLLists {
					return nil, fmt.Errorf("it has more than %d lists", maxACLLists)
				}
				lists = append(lists, l)
			}
		}
	}
	if lists == nil && !bytes.Contains(raw, []byte("network-lists")) {
		return nil, errors.New("it is no acl.conf.xml: there is no network-lists element")
	}
	return lists, nil
}
