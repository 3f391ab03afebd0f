package fsconf

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
)

// domainLine is where FreeSWITCH's sample configuration says the domain of its phones.
// The preprocessor reads line by line, comments too.
var domainLine = regexp.MustCompile(`(?m)^[ \t]*<X-PRE-PROCESS\s+cmd\s*=\s*["']set["']\s+data\s*=\s*["']domain=([^"']*)["']\s*/>[^\n]*(?:\n|$)`)

// ownAddress are the values that are the switch's own address, another one on every node.
var ownAddress = regexp.MustCompile(`^(?:\$\$\{(?:local_ip_v[46]|external_(?:sip|rtp)_ip)\}|\d{1,3}(?:\.\d{1,3}){3})$`)

// OwnAddressDomain returns what vars.xml says the domain of the phones is, and whether
// that is the switch's own address, as in the sample configuration: the same user is
// then 1002@192.0.2.10 on one node and 1002@198.51.100.20 on another.
func OwnAddressDomain(vars []byte) (domain string, own bool) {
	lines := domainLine.FindAllSubmatch(vars, -1)
	if len(lines) == 0 {
		return "", false
	}
	domain = string(lines[len(lines)-1][1]) // the last one counts
	return domain, ownAddress.MatchString(domain)
}

// DomainFragment is the line of vars.xml that gives every node one domain.
func (s *Settings) DomainFragment() []byte {
	if s.Domain == "" {
		return nil
	}
	return []byte(marked(fmt.Sprintf("<X-PRE-PROCESS cmd=\"set\" data=\"domain=%s\"/>\n", attr(s.Domain)), "  "))
}

// MergeDomain returns the content of vars.xml with s.Domain, between marks in the place
// of the first line that set it. All others that set it go: the last one would count.
func (s *Settings) MergeDomain(old []byte) ([]byte, error) {
	if old == nil {
		return nil, fmt.Errorf("there is no such file: set the domain %s where this configuration says it (domain, force-register-domain)", s.Domain)
	}
	at := -1
	if _, begins, err := markLine(old, beginMark); err != nil {
		return nil, err
	} else if begins.to > 0 {
		at = begins.from
	}
	rest, err := withoutBlock(old)
	if err != nil {
		return nil, err
	}
	if at < 0 {
		first := domainLine.FindIndex(rest)
		if first == nil {
			return nil, fmt.Errorf("no line of it sets the variable domain: set the domain %s where this configuration says it", s.Domain)
		}
		at = first[0]
	}
	before, after := domainLine.ReplaceAll(rest[:at], nil), domainLine.ReplaceAll(rest[at:], nil)
	return slices.Concat(bytes.Clone(before), s.DomainFragment(), after), nil
}
