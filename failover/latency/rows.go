package latency

import (
	"iter"
	"strings"
)

// row is what counts of one <registration> of `sofia xmlstatus profile P reg`.
type row struct{ callID, ip, host, agent, status, ping string }

// rows yields the rows of a reply. What is cut off or strange is left out: a sample
// less is no harm.
func rows(reply string) iter.Seq[row] {
	return func(yield func(row) bool) {
		for {
			_, after, ok := strings.Cut(reply, "<registration>")
			if !ok {
				return
			}
			body, rest, ok := strings.Cut(after, "</registration>")
			if !ok {
				return
			}
			reply = rest
			r := row{
				callID: element(body, "call-id"), ip: element(body, "network-ip"), host: element(body, "host"),
				agent: element(body, "agent"), status: element(body, "ping-status"), ping: element(body, "ping-time"),
			}
			if !yield(r) {
				return
			}
		}
	}
}

// element returns a copy of the text in the last <name> of a row, "" without one: a
// phone chooses its user agent, which stands before what the switch knows.
func element(body, name string) string {
	i := strings.LastIndex(body, "<"+name+">")
	if i < 0 {
		return ""
	}
	text, _, ok := strings.Cut(body[i+len(name)+2:], "</"+name+">")
	if !ok {
		return ""
	}
	return strings.Clone(text)
}
