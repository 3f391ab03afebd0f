package redirect

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"
)

// torture are requests after the descriptions of RFC 4475, each with the section
// that describes it and the status that it gets from us; 0 is silence. The headers
// that a message is not about are the same everywhere.
var torture = []struct {
	name   string
	status int
	text   string
}{
	// 3.1.1: valid.
	{"3.1.1.1 tortuous INVITE", 302, message(
		"INVITE sip:1002@pbx.test;unknownparam SIP/2.0", "TO :", " sip:1002@pbx.test ;   tagged    = 1918181833n",
		"from   : \"J Rosenberg \\\\\\\"\"       <sip:jdrosen@example.com>", "  ;", "  tag = 98asjd8",
		"MaX-fOrWaRdS: 0068", "Call-ID: wsinv.ndaksdj@192.0.2.1", "Content-Length   : 0", "cseq: 0009", "  INVITE",
		"Via  : SIP  /   2.0", " /UDP", "    192.0.2.2;branch=390skdjuw;rport", "s :", "NewFangledHeader:   newfangled value", " continued newfangled value",
		"UnknownHeaderWithUnusualValue: ;;,,;;,;", "Content-Type: application/sdp", "Route:", " <sip:services.example.com;lr;unknownwith=value;unknown-no-value>",
		"v:  SIP  / 2.0  / TCP     spindle.example.com   ;", "  branch  =   z9hG4bK9ikj8  ,", " SIP  /    2.0   / UDP  192.168.255.111   ; branch=", " z9hG4bK30239",
		"m:\"Quoted string \\\"\\\"\" <sip:jdrosen@example.com> ; newparam =", "      newvalue ;", "  secondparam ; q = 0.33")},
	{"3.1.1.2 wide range of characters", 405, message(
		"!interesting-Method0123456789_*+`.%indeed'~ sip:1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*:&it+has=1,weird!*pas$wo~d_too.(doesn't-it)@example.com SIP/2.0",
		"Via: SIP/2.0/UDP host1.example.com;rport;branch=z9hG4bK-.!%66*_+`'~",
		"To: \"BEL:\\a NUL:\\0 DEL:\\d\" <sip:1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*@example.com>",
		"From: token1~` token2'+_ token3*%!.- <sip:mundane@example.com>;fromParam''~+*_!.-%=\"работающий\";tag=_token~1'+`*%!-.",
		"Call-ID: intmeth.word%ZK-!.*_+'@word`~)(><:\\/\"][?}{", "CSeq: 139122385 !interesting-Method0123456789_*+`.%indeed'~", "Max-Forwards: 255",
		"extensionHeader-!.%*+_`'~:大停電", "Content-Length: 0")},
	{"3.1.1.3 escaped user", 404, invite("INVITE", "sip:sips%3Auser%40example.com@example.net", "NewFangledHeader: x")},
	{"3.1.1.4 escaped nulls", 405, invite("REGISTER", "sip:example.com", "L:0", "Contact: <sip:%00@host5.example.com>, <sip:%00%00@host5.example.com>")},
	{"3.1.1.5 escapes that are none", 405, invite("RE%47IST%45R", "sip:registrar.example.com")},
	{"3.1.1.6 no space after the name", 200, strings.Replace(invite("OPTIONS", "sip:user@example.com"), "From: \"Carrier\" <", "From: caller<", 1)},
	{"3.1.1.7 long values", 302, strings.NewReplacer("\"Carrier\"", "\""+strings.Repeat("really", 60)+"\"", "call-1@", strings.Repeat("really", 40)+"@",
		"Max-Forwards", strings.Repeat("Unknown-"+strings.Repeat("Long", 40)+": x\r\n", 9)+"Max-Forwards",
		"branch=z9hG4bK-1", "branch=z9hG4bK-"+strings.Repeat("really", 40)).Replace(invite("INVITE", "sip:1002@pbx.test"))},
	{"3.1.1.8 extra after the REGISTER", 405, invite("REGISTER", "sip:example.com") + invite("INVITE", "sip:1002@pbx.test")},
	{"3.1.1.9 semicolon in the user", 200, invite("OPTIONS", "sip:user;par=u%40example.net@example.com")},
	{"3.1.1.10 various transports", 200, strings.Replace(invite("OPTIONS", "sip:user@example.com"), "Max-Forwards", "Via: SIP/2.0/SCTP s2.example.com;branch=z9hG4bKonetwothree\r\nVia: SIP/2.0/UNKNOWN u.example.com;branch=z9hG4bK12\r\nMax-Forwards", 1)},
	{"3.1.1.11 multipart body", 405, strings.Replace(invite("MESSAGE", "sip:kumiko@example.org"), "Content-Length: 0\r\n\r\n", "Content-Type: multipart/mixed;boundary=b\r\nContent-Length: 14\r\n\r\n--b\r\n\x00\x01\xff\x80--b--", 1)},
	{"3.1.1.12 unusual reason", 0, "SIP/2.0 200 = 2**3 * 5**2 но сто девяносто девять - простое\r\n" + strings.SplitN(invite("INVITE", "sip:a@b"), "\r\n", 2)[1]},
	{"3.1.1.13 empty reason", 0, "SIP/2.0 100 \r\n" + strings.SplitN(invite("INVITE", "sip:a@b"), "\r\n", 2)[1]},

	// 3.1.2: invalid.
	{"3.1.2.1 extra semicolons", 0, strings.NewReplacer("5999;branch", "5999;;,;,,branch", "Carrier\" <", "Carrier\" ;;,<").Replace(invite("INVITE", "sip:1002@pbx.test"))},
	{"3.1.2.2 length too large", 400, strings.Replace(invite("INVITE", "sip:1002@pbx.test"), "Length: 0", "Length: 9999", 1)},
	{"3.1.2.3 length negative", 400, strings.Replace(invite("INVITE", "sip:1002@pbx.test"), "Length: 0", "Length: -999", 1)},
	{"3.1.2.4 scalars too large", 400, strings.NewReplacer("CSeq: 7", "CSeq: 36893488147419103232", "Forwards: 70", "Forwards: 300").Replace(invite("REGISTER", "sip:example.com"))},
	{"3.1.2.5 scalars too large in a response", 0, "SIP/2.0 503 x\r\n" + strings.SplitN(strings.Replace(invite("INVITE", "sip:a@b"), "CSeq: 7", "CSeq: 9292394834772304023312", 1), "\r\n", 2)[1]},
	{"3.1.2.6 quoted string without end", 400, strings.Replace(invite("INVITE", "sip:1002@pbx.test"), "To: <", "To: \"Mr. J. User <", 1)},
	{"3.1.2.7 URI in brackets", 400, strings.Replace(invite("INVITE", "sip:1002@pbx.test"), "INVITE sip:1002@pbx.test ", "INVITE <sip:1002@pbx.test> ", 1)},
	{"3.1.2.8 space in the URI", 400, strings.Replace(invite("INVITE", "sip:1002@pbx.test"), "pbx.test SIP", "pbx.test; lr SIP", 1)},
	{"3.1.2.9 spaces in the request line", 400, strings.Replace(invite("INVITE", "sip:1002@pbx.test"), "INVITE sip:1002@pbx.test SIP", "INVITE  sip:1002@pbx.test  SIP", 1)},
	{"3.1.2.10 spaces at its end", 400, strings.Replace(invite("OPTIONS", "sip:1002@pbx.test"), " SIP/2.0\r\n", " SIP/2.0  \r\n", 1)},
	{"3.1.2.11 headers in the URI", 400, invite("INVITE", "sip:1002@pbx.test?Route=%3Csip:example.com%3E")},
	{"3.1.2.12 bad date", 302, invite("INVITE", "sip:1002@pbx.test", "Date: Fri, 01 Jan 2010 16:00:00 EST")},
	{"3.1.2.13 contact without brackets", 405, invite("REGISTER", "sip:example.com", "Contact: sip:user@example.com?Route=%3Csip:sip.example.com%3E")},
	{"3.1.2.14 spaces in an address", 400, strings.Replace(invite("OPTIONS", "sip:t@example.org"), "To: <sip:t@example.org>", "To: \"Watson, Thomas\" < sip:t@example.org > junk", 1)},
	{"3.1.2.15 display name without quotes", 200, strings.Replace(invite("OPTIONS", "sip:t@example.org"), "\"Carrier\"", "Bell, Alexander", 1)},
	{"3.1.2.16 version", 505, strings.Replace(invite("OPTIONS", "sip:t@example.org"), " SIP/2.0\r\n", " SIP/7.0\r\n", 1)},
	{"3.1.2.17 CSeq of another method", 400, strings.Replace(invite("OPTIONS", "sip:t@example.org"), "7 OPTIONS", "7 INVITE", 1)},
	{"3.1.2.18 CSeq of another method, unknown", 400, strings.Replace(invite("NEWMETHOD", "sip:t@example.org"), "7 NEWMETHOD", "7 INVITE", 1)},
	{"3.1.2.19 code too large", 0, "SIP/2.0 4294967301 better not break the receiver\r\n" + strings.SplitN(invite("INVITE", "sip:a@b"), "\r\n", 2)[1]},

	// 3.2: transactions.
	{"3.2.1 branch without an id", 200, strings.Replace(invite("OPTIONS", "sip:t@example.org"), "z9hG4bK-1", "z9hG4bK", 1)},

	// 3.3: applications.
	{"3.3.1 headers missing", 0, message("INVITE sip:1002@pbx.test SIP/2.0", "CSeq: 193942 INVITE", "Via: SIP/2.0/UDP 192.0.2.95;rport;branch=z9hG4bKkdj.insuf", "Content-Length: 0")},
	{"3.3.2 unknown scheme", 416, invite("INVITE", "nobodyKnowsThisScheme:totallyopaquecontent")},
	{"3.3.3 known scheme that is not SIP", 416, invite("INVITE", "soap.beep://192.0.2.103:3002")},
	{"3.3.4 unknown scheme in To", 405, strings.Replace(invite("REGISTER", "sip:example.com"), "To: <sip:example.com>", "To: <isbn:2983792873>", 1)},
	{"3.3.5 unknown extensions", 420, invite("OPTIONS", "sip:user@example.com", "Require: nothingSupportsThis, nothingSupportsThisEither", "Proxy-Require: noProxiesSupportThis")},
	{"3.3.6 unknown content", 302, strings.Replace(invite("INVITE", "sip:1002@pbx.test"), "Content-Length: 0\r\n\r\n", "Content-Type: application/unknownformat\r\nContent-Length: 9\r\n\r\n<audio />", 1)},
	{"3.3.7 unknown authorization", 405, invite("REGISTER", "sip:example.com", "Authorization: NoOneKnowsThisScheme opaque-data=here")},
	{"3.3.8 single headers twice", 400, invite("INVITE", "sip:1002@pbx.test", "CSeq: 5 BYE", "Call-ID: second", "To: <sip:x@y>", "From: <sip:y@z>;tag=7")},
	{"3.3.9 two lengths", 400, invite("OPTIONS", "sip:user@example.com", "Content-Length: 5")},
	{"3.3.10 200 with broadcast in Via", 0, "SIP/2.0 200 OK\r\n" + strings.SplitN(strings.Replace(invite("INVITE", "sip:a@b"), "127.0.0.1:5999", "255.255.255.255", 1), "\r\n", 2)[1]},
	{"3.3.11 Max-Forwards 0", 200, strings.Replace(invite("OPTIONS", "sip:user@example.com"), "70", "0", 1)},
	{"3.3.12 REGISTER with a contact parameter", 405, invite("REGISTER", "sip:example.com", "Contact: sip:+19725552222@gw1.example.net;unknownparam")},
	{"3.3.13 REGISTER with a URI parameter", 405, invite("REGISTER", "sip:example.com", "Contact: <sip:+19725552222@gw1.example.net;unknownparam>")},
	{"3.3.14 REGISTER with an escaped header", 405, invite("REGISTER", "sip:example.com", "Contact: <sip:user@example.com?Route=%3Csip:sip.example.com%3E>")},
	{"3.3.15 Accept nothing", 302, invite("INVITE", "sip:1002@pbx.test", "Accept: text/nobodyKnowsThis")},

	// 3.4: older versions.
	{"3.4.1 INVITE of RFC 2543", 302, message("INVITE sip:1002@pbx.test SIP/2.0", "Via: SIP/2.0/UDP iftgw.example.com;rport", "From: <sip:+13035551111@ift.client.example.net;user=phone>",
		"To: sip:1002@pbx.test:5060", "Call-ID: inv2543.1717@ift.client.example.com", "CSeq: 56 INVITE")},
}

func TestTorture(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.register(t, "1002", domain, "london")
	s := newServer(t, w.options())
	c := newClient(t, s.Addrs(UDP)[0])
	for _, m := range torture {
		if m.status == 0 {
			c.silent(m.text)
			continue
		}
		answer := c.ask(m.text)
		if !strings.HasPrefix(answer, "SIP/2.0 "+strconv.Itoa(m.status)+" ") {
			t.Errorf("%s: want %d, got\n%s", m.name, m.status, answer)
		}
		if err := wellFormed([]byte(m.text), []byte(answer)); err != "" {
			t.Errorf("%s: %s\n%s", m.name, err, answer)
		}
	}
	// The server is as it was.
	if got := c.ask(invite("INVITE", "sip:1002@pbx.test")); !strings.HasPrefix(got, "SIP/2.0 302 ") {
		t.Errorf("afterwards: %s", got)
	}
}

// wellFormed returns what is wrong with an answer over UDP, "" when nothing is: it is
// lines with names that we write, each once but Via and Contact, in our order, with
// no control character, and not longer than its request allows.
func wellFormed(request, answer []byte) string {
	if len(answer) > maxGrowth*len(request) || len(answer) > maxUDPAnswer {
		return "the answer has " + strconv.Itoa(len(answer)) + " bytes, the request " + strconv.Itoa(len(request))
	}
	text := string(answer)
	head, ok := strings.CutSuffix(text, "\r\n\r\n")
	if !ok || strings.Contains(head, "\r\n\r\n") {
		return "the end of the headers is not the end"
	}
	lines := strings.Split(head, "\r\n")
	if len(lines[0]) < 12 || !strings.HasPrefix(lines[0], "SIP/2.0 ") {
		return "status line " + lines[0]
	}
	order := []string{"Via", "From", "To", "Call-ID", "CSeq", "Allow", "Accept", "Unsupported", "Contact", "Content-Length"}
	at := 0
	for i, line := range lines {
		for _, c := range []byte(line) {
			if c < ' ' && c != '\t' || c == 0x7f {
				return "a control character in " + strconv.Quote(line)
			}
		}
		if i == 0 {
			continue
		}
		name, value, ok := strings.Cut(line, ": ")
		if !ok || value == "" {
			return "line " + strconv.Quote(line)
		}
		for at < len(order) && order[at] != name {
			at++
		}
		if at == len(order) {
			return "a header out of place: " + line
		}
		if name == "Contact" && (!strings.HasPrefix(value, "<sip:") || !strings.HasSuffix(value, ">;q=1.0") || strings.Count(value, ">") != 1) {
			return "contact " + value
		}
		if name != "Via" && name != "Contact" {
			at++ // not again
		}
	}
	return ""
}

func FuzzAnswer(f *testing.F) {
	for _, m := range torture {
		f.Add([]byte(m.text), true)
	}
	for _, method := range []string{"ACK", "CANCEL", "BYE", "REGISTER"} {
		f.Add([]byte(invite(method, "sip:1002@pbx.test")), false)
	}
	f.Add([]byte(invite("INVITE", "tel:+17165550100")), false)
	world := newWorld()
	world.register(f, "1002", domain, "london", "buffalo")
	world.choice = append(world.choice, "london")
	o := world.options()
	o.Chooser, o.Domain, o.DefaultNode = world, domain, "singapore"
	s, err := New(o)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Shutdown(f.Context()) })
	from := netip.MustParseAddrPort("203.0.113.7:5999")
	w := new(worker)
	f.Fuzz(func(t *testing.T, packet []byte, stream bool) {
		before := s.Stats().Panics
		request := string(packet)
		if stream {
			// A stream that comes in two parts is the same as one that comes at once.
			whole := new(worker)
			size, state := whole.frame([]byte(request))
			if state == scanRequest && size > len(packet) {
				t.Fatalf("a request of %d bytes in %d", size, len(packet))
			}
			if half := []byte(request)[:len(request)/2]; state == scanRequest {
				if _, part := w.frame(half); part == scanDrop {
					t.Fatal("its first half is refused")
				}
			}
		}
		out, to := s.answer(w, packet, from, UDP)
		if s.Stats().Panics != before {
			t.Fatal("panic")
		}
		if out == nil {
			return
		}
		if strings.HasPrefix(request, "ACK ") || strings.HasPrefix(request, "SIP/2.0 ") {
			t.Fatalf("answered:\n%s", out)
		}
		if to.Addr() != from.Addr() || to.Port() == 0 {
			t.Fatalf("answered to %v", to)
		}
		if wrong := wellFormed([]byte(request), out); wrong != "" {
			t.Fatalf("%s\n%s", wrong, out)
		}
		first := string(out)
		again, _ := s.answer(w, []byte(request), from, UDP)
		// A CANCEL is answered otherwise once its INVITE came.
		if string(again) != first && !strings.HasPrefix(request, "CANCEL ") {
			t.Fatalf("the same again gives\n%s\nafter\n%s", again, first)
		}
	})
}

func FuzzNumbers(f *testing.F) {
	f.Add([]byte("# office\n+17165550100\t1001@pbx.test\r\n"))
	f.Add([]byte("a b@c\nA b@d\n"))
	f.Add([]byte("+1 1001"))
	f.Fuzz(func(t *testing.T, src []byte) {
		table, err := ParseNumbers(src)
		if err != nil {
			if table != nil || !strings.Contains(err.Error(), "line ") {
				t.Fatalf("%v with %v", err, table)
			}
			return
		}
		for number, aor := range table {
			if aor.IsZero() || number == "" || strings.ToLower(number) != number || strings.ContainsAny(number, " \t\r\n<>;:@") {
				t.Fatalf("%q is %v", number, aor)
			}
		}
	})
}
