package redirect

import (
	"bytes"
	"unicode/utf8"
)

// Bounds of a request, in bytes unless said otherwise. What exceeds them is not
// echoed, and so cannot be answered.
const (
	maxMethod  = 64
	maxURI     = 1024
	maxHeaders = 128 // header fields
	maxVias    = 32  // Via header fields, each of which may hold several values
	maxVia     = 1024
	maxAddress = 2048 // From and To
	maxCallID  = 512
	maxRequire = 256
)

// request is one request as it stands in a packet: every slice points into it.
// Headers that nothing here depends on are checked for form and forgotten.
//
// sipgo's message parser makes a copy of every header and cannot give back the bytes
// that an answer has to echo; this scanner makes none. sipgo still reads the URI.
type request struct {
	method  []byte
	uri     []byte
	version []byte

	vias    [maxVias][]byte
	viaN    int
	from    []byte
	to      []byte
	callID  []byte
	cseq    []byte
	require []byte
	length  int // Content-Length; -1 when there is none

	header int // bytes up to and including the empty line

	// Read from the headers above.
	top     via
	cseqNum []byte
	fromTag []byte
	toTag   []byte
	fault   string // why the request is refused with 400; "" when it is well-formed
}

// scanned says what a packet is.
type scanned uint8

const (
	scanDrop    scanned = iota // a response, an ACK, noise, or nothing that could be answered
	scanPartial                // a stream has to deliver more
	scanRequest                // a request that can be answered, perhaps with 400
)

// scan reads the request at the start of b. It writes into b: the line breaks of
// folded headers become spaces (RFC 3261 section 7.3.1 calls the two equal), so that
// what is echoed is one line. stream says that b may hold only a part yet.
//
// Lines end in CRLF and in nothing else. A lone CR or LF could be a line break to
// somebody behind us, so such a packet is not answered at all.
func (r *request) scan(b []byte, stream bool) scanned {
	r.reset()
	end := lineEnd(b)
	if end < 0 {
		return incomplete(b, stream)
	}
	if !r.startLine(b[:end]) {
		return scanDrop
	}
	for pos, n := end+2, 0; ; n++ {
		rest := b[pos:]
		end := lineEnd(rest)
		if end < 0 {
			return incomplete(rest, stream)
		}
		if end == 0 {
			r.header = pos + 2
			return r.judge()
		}
		for end+2 < len(rest) && (rest[end+2] == ' ' || rest[end+2] == '\t') {
			rest[end], rest[end+1] = ' ', ' '
			next := lineEnd(rest[end+2:])
			if next < 0 {
				return incomplete(rest[end+2:], stream)
			}
			end += 2 + next
		}
		if stream && end+2 >= len(rest) {
			return scanPartial // the next line may continue this one
		}
		if n >= maxHeaders || !r.field(rest[:end]) {
			return scanDrop
		}
		pos += end + 2
	}
}

// incomplete says what a line without an end means: on a stream the rest may come.
func incomplete(b []byte, stream bool) scanned {
	i := bytes.IndexAny(b, "\r\n")
	if stream && (i < 0 || i == len(b)-1 && b[i] == '\r') {
		return scanPartial
	}
	return scanDrop
}

func (r *request) reset() {
	clear(r.vias[:r.viaN])
	*r = request{vias: r.vias, length: -1}
}

// lineEnd returns where the CRLF of the first line of b is; -1 when there is none
// or when a lone CR or LF comes first.
func lineEnd(b []byte) int {
	i := bytes.IndexByte(b, '\n')
	if i < 1 || b[i-1] != '\r' || bytes.IndexByte(b[:i-1], '\r') >= 0 {
		return -1
	}
	return i - 1
}

// startLine splits "METHOD URI SIP/2.0" (RFC 3261 section 7.1).
func (r *request) startLine(line []byte) bool {
	i := bytes.IndexByte(line, ' ')
	if i < 1 || i > maxMethod || !isToken(line[:i]) {
		return false // "SIP/2.0 200 OK" ends here as well: '/' is no token character
	}
	r.method = line[:i]
	rest := bytes.TrimRight(line[i+1:], " ")
	if len(rest) != len(line)-i-1 {
		r.refuse("Trailing Space In Request Line")
	}
	j := bytes.LastIndexByte(rest, ' ')
	if j < 1 || !printable(rest) {
		return false
	}
	r.uri, r.version = rest[:j], rest[j+1:]
	switch {
	case len(r.version) < 5 || len(r.version) > 8 || !equalFold(r.version[:4], "sip/"):
		return false
	case len(r.uri) > maxURI:
		r.refuse("Request-URI Too Long")
	case bytes.IndexByte(r.uri, ' ') >= 0 || bytes.IndexByte(r.uri, '\t') >= 0:
		r.refuse("Space In Request-URI")
	case bytes.ContainsAny(r.uri, `<>"`):
		r.refuse("Malformed Request-URI")
	}
	return true
}

// field reads one unfolded header field, and reports whether it is one.
func (r *request) field(line []byte) bool {
	colon := bytes.IndexByte(line, ':')
	if colon < 1 {
		return false
	}
	name := bytes.TrimRight(line[:colon], " \t")
	if !isToken(name) {
		return false
	}
	value := bytes.Trim(line[colon+1:], " \t")
	switch len(name) {
	case 1:
		switch name[0] | 0x20 {
		case 'v':
			return r.via(value)
		case 'f':
			return r.once(&r.from, value, maxAddress)
		case 't':
			return r.once(&r.to, value, maxAddress)
		case 'i':
			return r.once(&r.callID, value, maxCallID)
		case 'l':
			r.contentLength(value)
		}
	case len("To"):
		if equalFold(name, "to") {
			return r.once(&r.to, value, maxAddress)
		}
	case len("Via"):
		if equalFold(name, "via") {
			return r.via(value)
		}
	case len("From"): // and CSeq
		if equalFold(name, "from") {
			return r.once(&r.from, value, maxAddress)
		}
		if equalFold(name, "cseq") {
			return r.once(&r.cseq, value, maxMethod+16)
		}
	case len("Call-ID"): // and Require
		if equalFold(name, "call-id") {
			return r.once(&r.callID, value, maxCallID)
		}
		if equalFold(name, "require") {
			if !printable(value) {
				return false // it is echoed, like what once keeps
			}
			if r.require != nil || len(value) > maxRequire {
				r.refuse("Too Many Required Extensions")
				return true
			}
			r.require = value
		}
	case len("Content-Length"):
		if equalFold(name, "content-length") {
			r.contentLength(value)
		}
	}
	return true
}

// once keeps a value that may stand in a request only once. A second one leaves
// the first to be echoed in the refusal.
func (r *request) once(to *[]byte, value []byte, most int) bool {
	if *to != nil {
		r.refuse("Header Field Repeated")
		return true
	}
	if len(value) == 0 || len(value) > most || !printable(value) {
		return false
	}
	*to = value
	return true
}

func (r *request) via(value []byte) bool {
	if r.viaN == maxVias || len(value) == 0 || len(value) > maxVia || !printable(value) {
		return false
	}
	r.vias[r.viaN] = value
	r.viaN++
	return true
}

func (r *request) contentLength(value []byte) {
	n, ok := number(value, 1<<20)
	switch {
	case !ok:
		r.refuse("Malformed Content-Length")
	case r.length >= 0 && r.length != n:
		r.refuse("Content-Length Repeated")
	default:
		r.length = n
	}
}

// judge looks at what has to be echoed. Without it nothing can be answered.
func (r *request) judge() scanned {
	if r.viaN == 0 || r.from == nil || r.to == nil || r.callID == nil || r.cseq == nil {
		return scanDrop
	}
	if !r.top.parse(r.vias[0]) {
		return scanDrop
	}
	if bytes.ContainsAny(r.callID, " \t") {
		return scanDrop
	}
	num, method, ok := bytes.Cut(r.cseq, []byte(" "))
	if !ok {
		num, method, ok = bytes.Cut(r.cseq, []byte("\t"))
	}
	method = bytes.TrimLeft(method, " \t")
	if !ok || !isToken(method) {
		return scanDrop
	}
	r.cseqNum = num
	if _, ok := number(num, 1<<31-1); !ok { // RFC 3261 section 8.1.1.5
		r.refuse("CSeq Out Of Range")
	}
	if !bytes.Equal(method, r.method) { // methods are case-sensitive
		r.refuse("CSeq Of Another Method")
	}
	if r.fromTag, ok = addressTag(r.from); !ok {
		r.refuse("Malformed From")
	}
	if r.toTag, ok = addressTag(r.to); !ok {
		r.refuse("Malformed To")
	}
	return scanRequest
}

// refuse keeps the first reason for a 400.
func (r *request) refuse(why string) {
	if r.fault == "" {
		r.fault = why
	}
}

// number reads 1 to 10 decimal digits up to most.
func number(b []byte, most int) (int, bool) {
	if len(b) == 0 || len(b) > 10 {
		return 0, false
	}
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, n <= most
}

// printable reports whether b can be echoed: UTF-8 with no control character.
func printable(b []byte) bool {
	ascii := true
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	return ascii || utf8.Valid(b)
}

// tokenTable holds the token characters of RFC 3261 section 25.1.
var tokenTable = func() (t [256]bool) {
	for c := range 256 {
		t[c] = c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
	}
	for _, c := range "-.!%*_+`'~" {
		t[c] = true
	}
	return t
}()

func isToken(b []byte) bool {
	for _, c := range b {
		if !tokenTable[c] {
			return false
		}
	}
	return len(b) > 0
}

// equalFold compares b with an ASCII word in lower case.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}
