package control

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"net/url"

	"pbxmesh"
)

// DNSExplainReply answers GET /v1/dns/explain?name=pbx.example.com&client=198.51.100.7:
// what a client gets from the name servers, and why. Times are milliseconds.
type DNSExplainReply struct {
	Name   string     `json:"name"`
	Client netip.Addr `json:"client"`

	// Answers are the records of each type; none when the daemon is no name server.
	Answers []DNSAnswer `json:"answers"`

	// Block is the client network that gets the same answer: the scope of ECS.
	Block netip.Prefix `json:"block"`

	// Rule is what put the nodes in order: "preference", "latency", "distance" or
	// "default order"; Network is the client network that it speaks of.
	Rule    string       `json:"rule"`
	Network netip.Prefix `json:"network,omitzero"`

	Panic bool           `json:"panic"`         // fewer than half of the nodes take phones
	Next  pbxmesh.NodeID `json:"next,omitzero"` // the first node if the present first one failed

	// Tries is the node that this network measures just now by being sent there.
	Tries pbxmesh.NodeID `json:"tries,omitzero"`

	Nodes   []DNSNode  `json:"nodes"`   // best first; those that are not answered come last
	Stages  []DNSStage `json:"stages"`  // how they were chosen
	Remarks []string   `json:"remarks"` // what else one should know, in words
}

// DNSStage is one step of the choice.
type DNSStage struct {
	// Stage is "order", "address", "state", "shedding", "spill" or "answer".
	Stage   string           `json:"stage"`
	Nodes   []pbxmesh.NodeID `json:"nodes"`   // what it leaves, best first
	Reasons []string         `json:"reasons"` // in words
}

// DNSAnswer is what one question gives.
type DNSAnswer struct {
	Type    string   `json:"type"`
	Result  string   `json:"result"`  // "NOERROR", "NXDOMAIN", "REFUSED"
	Records []string `json:"records"` // in zone file form, without the name
}

// DNSNode is one node, for one client.
type DNSNode struct {
	Node    pbxmesh.NodeID `json:"node"`
	Place   int            `json:"place"` // 1 is the answer of A; 0 is not answered
	State   string         `json:"state"`
	Shed    uint16         `json:"shed"`    // per mille of client networks that it sends elsewhere
	Refuses bool           `json:"refuses"` // this client is among them

	Score    float64 `json:"score_ms,omitzero"` // the estimate that ranks; 0 when latency is not looked at
	Source   string  `json:"source,omitzero"`   // what weighs most in it: "own samples", "distance"
	Own      float64 `json:"own_ms,omitzero"`
	Samples  int     `json:"samples"`
	Parent   float64 `json:"parent_ms,omitzero"`
	AS       float64 `json:"as_ms,omitzero"`
	Distance float64 `json:"distance_ms,omitzero"`
	Lowest   float64 `json:"lowest_ms,omitzero"` // what no path can beat
	Evidence float64 `json:"evidence"`           // in samples
	Phones   float64 `json:"phones"`             // registrations of the network there now, about
	Present  bool    `json:"present"`            // the present answer, which only a clear gain changes
}

// DNSExplain asks what client gets for name.
func (c *Client) DNSExplain(ctx context.Context, name string, client netip.Addr) (*DNSExplainReply, error) {
	return get[DNSExplainReply](ctx, c, "/v1/dns/explain", url.Values{"name": {name}, "client": {client.String()}})
}

func (h *handler) dnsExplain(w http.ResponseWriter, r *http.Request) {
	if !onlyQuery(w, r, "name", "client") {
		return
	}
	name := r.URL.Query().Get("name")
	client, err := netip.ParseAddr(r.URL.Query().Get("client"))
	if err != nil || client.Zone() != "" || name == "" || len(name) > 255 {
		writeError(w, http.StatusBadRequest, "name a DNS name and the client's IP address", "write name=pbx.example.com&client=198.51.100.7")
		return
	}
	if h.b.DNSExplain == nil {
		notServed(w)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	reply, err := h.b.DNSExplain(ctx, name, client)
	if errors.Is(err, ErrInvalid) {
		writeError(w, http.StatusBadRequest, err.Error(), "")
		return
	}
	answer(w, reply, err)
}
