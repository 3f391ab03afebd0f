package dialplan

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"pbxmesh"
	"pbxmesh/router/lookup"
)

// errorLeg is a dial string that fails at once with cause. It has no line end:
// FreeSWITCH takes one for a part of the cause and forgets it.
func errorLeg(cause string) []byte { return []byte("error/" + strings.ToLower(cause)) }

// dialstring answers GET /dialstring/user@domain[?from=mesh][&local=contact].
//
// By default the text holds the legs on other nodes alone, and never "${": what an
// API call returns inside ${...} is not expanded again. With local=contact the local
// devices come with it as ${sofia_contact(...)}, for who expands the text once more.
func (s *Server) dialstring(a *answer, r *http.Request) {
	aor, query, why := question(r, "/dialstring/", "from", "local")
	switch local := query["local"]; {
	case why != "":
	case local != "" && local != "none" && local != "contact":
		why = "write local=none or local=contact, or leave it out"
	}
	if why != "" {
		s.observe(Record{Door: doorDialstring, Outcome: Invalid, Cause: Invalid.cause()})
		a.give(Invalid, why)
		return
	}
	d := s.decide(r.Context(), doorDialstring, aor, query["from"] == "mesh")
	if d.outcome != Routed {
		a.give(d.outcome, "")
		return
	}
	plan := d.plan
	if query["local"] != "contact" {
		plan = remote(plan)
	}
	text := []byte(plan.BridgeString(s.opt.Bridge))
	if len(text) == 0 {
		text = errorLeg(NotRegistered.cause()) // only local devices: the switch rings them itself
	}
	a.w.Header().Set("X-Pbxmesh-Result", string(Routed))
	a.w.Header().Set("X-Pbxmesh-Cause", Routed.cause())
	a.write(http.StatusOK, typeText, text)
}

// question reads user@domain behind prefix, decoded exactly once, and the query.
// why says what is wrong, "" when nothing is.
func question(r *http.Request, prefix string, allowed ...string) (aor pbxmesh.AOR, query map[string]string, why string) {
	query, why = onlyQuery(r, allowed...)
	if why != "" {
		return aor, nil, why
	}
	if from := query["from"]; from != "" && from != "mesh" && from != "local" {
		return aor, query, "write from=mesh or from=local, or leave it out"
	}
	text, err := url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), prefix))
	if err != nil {
		return aor, query, "the path cannot be read"
	}
	user, domain, ok := strings.Cut(text, "@")
	if !ok {
		return aor, query, "write user@domain"
	}
	aor, err = pbxmesh.NewAOR(user, domain)
	if err != nil {
		return aor, query, err.Error()
	}
	return aor, query, ""
}

// route answers GET /route/user@domain[?from=mesh] with what Options.Explain says.
func (s *Server) route(a *answer, r *http.Request) {
	aor, query, why := question(r, "/route/", "from")
	if why != "" {
		s.counters.count(Invalid)
		a.give(Invalid, why)
		return
	}
	if s.opt.Explain == nil {
		s.refuse(a, http.StatusNotImplemented, "this daemon does not serve that")
		return
	}
	reply, err := s.explain(r.Context(), aor, query["from"] == "mesh")
	if err != nil {
		s.counters.count(Unavailable)
		a.give(Unavailable, err.Error())
		return
	}
	body, err := json.Marshal(reply)
	if err != nil {
		a.give(Unavailable, "the answer cannot be written as JSON")
		return
	}
	a.write(http.StatusOK, typeJSON, append(body, '\n'))
}

// explain bounds Options.Explain as lookup bounds the directory.
func (s *Server) explain(ctx context.Context, aor pbxmesh.AOR, fromMesh bool) (any, error) {
	return lookup.Ask(ctx, s.ask, aor, func() (any, error) { return s.opt.Explain(ctx, aor, fromMesh) })
}
