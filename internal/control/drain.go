package control

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"pbxmesh"
)

// What an operator may want of a node, as parameters.
const (
	StateInService = "in-service"
	StateDraining  = "draining"
	StateOut       = "out"
)

// WantedRequest is POST /v1/wanted?node=london&state=draining[&by=][&reason=][&force=1].
type WantedRequest struct {
	Node   pbxmesh.NodeID
	State  string // one of the State constants
	By     string // who, for listings; at most 128 bytes
	Reason string // why, for listings; at most 256 bytes
	Force  bool   // also when the rest of the mesh lacks room
}

// WantedReply answers it: the wish that now stands.
type WantedReply struct {
	Node   pbxmesh.NodeID `json:"node"`
	Wanted string         `json:"wanted"` // "in service", "draining", "out"
	Was    string         `json:"was"`
	Since  time.Time      `json:"since"`
	By     string         `json:"by,omitempty"`
	Reason string         `json:"reason,omitempty"`

	// Shared says that the registry has the wish. Without it this daemon alone
	// acts on it, until the registry is back.
	Shared   bool     `json:"shared"`
	Warnings []string `json:"warnings"`
}

// DrainReply answers GET /v1/drain?node=london: how far a node is from being empty.
type DrainReply struct {
	Node         pbxmesh.NodeID `json:"node"`
	Wanted       string         `json:"wanted"`
	WantedSince  *time.Time     `json:"wanted_since,omitempty"`
	WantedBy     string         `json:"wanted_by,omitempty"`
	WantedReason string         `json:"wanted_reason,omitempty"`
	Effective    string         `json:"effective"`

	// Registrations are those of the node in this daemon's view.
	Registrations int `json:"registrations"`

	// Drain is what the node's own daemon says; nil when it says nothing.
	Drain *Drain `json:"drain,omitempty"`

	// Empty says that no registration and no call is left, or that the node is down.
	Empty bool `json:"empty"`

	// Notice is what keeps the drain from going on, "" when nothing does.
	Notice string `json:"notice,omitempty"`
}

// Drain is the progress of one drain.
type Drain struct {
	Method        string    `json:"method"`
	Started       time.Time `json:"started"`
	Updated       time.Time `json:"updated"`
	Registrations int       `json:"registrations"` // left
	InCall        int       `json:"in_call"`       // of these
	Calls         int       `json:"calls"`         // left; -1 is not known
	Total         int       `json:"total"`         // registrations seen since it started
	Moved         int       `json:"moved"`         // phones seen on another node
	Told          int       `json:"told"`          // asked to register anew
	Flushed       int       `json:"flushed"`       // taken out of the switch's table
	Returned      int       `json:"returned"`      // registered here again
	Pace          int       `json:"pace"`          // registrations per second, at most
	Pause         string    `json:"pause,omitempty"`

	// LeftSeconds is how long the phones that are left take at the present speed;
	// nil when that cannot be told.
	LeftSeconds *int   `json:"left_seconds,omitempty"`
	Error       string `json:"error,omitempty"`
}

// command reports whether the request carries what no web page can send, and answers
// it when not.
func command(w http.ResponseWriter, r *http.Request, use string) bool {
	if r.Header.Get(commandHeader) == "" {
		writeError(w, http.StatusForbidden, "the header "+commandHeader+" is missing", "use `"+use+"`")
		return false
	}
	return true
}

func (h *handler) wanted(w http.ResponseWriter, r *http.Request) {
	if !command(w, r, "pbxmesh drain") || !onlyQuery(w, r, "node", "state", "by", "reason", "force") {
		return
	}
	query := r.URL.Query()
	node, err := pbxmesh.ParseNodeID(query.Get("node"))
	if err != nil {
		writeError(w, http.StatusBadRequest, "name one node", "write node=london")
		return
	}
	req := WantedRequest{Node: node, State: query.Get("state"), By: query.Get("by"), Reason: query.Get("reason")}
	switch req.State {
	case StateInService, StateDraining, StateOut:
	default:
		writeError(w, http.StatusBadRequest, "the state is not known", "write state=draining, state=out or state=in-service")
		return
	}
	switch query.Get("force") {
	case "", "0":
	case "1":
		req.Force = true
	default:
		writeError(w, http.StatusBadRequest, "the parameter force is not known", "write force=1 or leave it out")
		return
	}
	if h.b.Want == nil {
		notServed(w)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	reply, err := h.b.Want(ctx, req)
	switch {
	case errors.Is(err, ErrRefused):
		writeError(w, http.StatusConflict, err.Error(), "")
		return
	case errors.Is(err, ErrInvalid):
		writeError(w, http.StatusBadRequest, err.Error(), "")
		return
	case err == nil && reply.Warnings == nil:
		reply.Warnings = []string{}
	}
	answer(w, reply, err)
}

func (h *handler) drain(w http.ResponseWriter, r *http.Request) {
	if !onlyQuery(w, r, "node") {
		return
	}
	node, err := pbxmesh.ParseNodeID(r.URL.Query().Get("node"))
	if err != nil {
		writeError(w, http.StatusBadRequest, "name one node", "write node=london")
		return
	}
	if h.b.Drain == nil {
		notServed(w)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	reply, err := h.b.Drain(ctx, node)
	answer(w, reply, err)
}

// Want tells the daemon what shall become of a node.
func (c *Client) Want(ctx context.Context, r WantedRequest) (*WantedReply, error) {
	query := url.Values{"node": {string(r.Node)}, "state": {r.State}}
	if r.By != "" {
		query.Set("by", r.By)
	}
	if r.Reason != "" {
		query.Set("reason", r.Reason)
	}
	if r.Force {
		query.Set("force", "1")
	}
	return ask[WantedReply](ctx, c, http.MethodPost, "/v1/wanted", query)
}

// Drain asks how far a node is from being empty.
func (c *Client) Drain(ctx context.Context, node pbxmesh.NodeID) (*DrainReply, error) {
	return get[DrainReply](ctx, c, "/v1/drain", url.Values{"node": {string(node)}})
}
