package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"pbxmesh"
)

// drained is a daemon that is asked to drain nodes.
func drained(t testing.TB, asked *[]WantedRequest) Backend {
	b := fake(t)
	b.Want = func(ctx context.Context, r WantedRequest) (*WantedReply, error) {
		*asked = append(*asked, r)
		words := map[string]string{StateInService: "in service", StateDraining: "draining", StateOut: "out"}
		reply := &WantedReply{Node: r.Node, Wanted: words[r.State], Was: "in service", Since: start, By: r.By, Reason: r.Reason, Shared: true}
		switch {
		case r.Node == "tokyo":
			return nil, fmt.Errorf("%w: no node is called tokyo", ErrRefused)
		case r.Node == "only" && !r.Force:
			return nil, fmt.Errorf("%w: no other node would take phones; --force does it all the same", ErrRefused)
		case r.Node == "only":
			reply.Warnings = []string{"no other node would take phones"}
		case r.Reason == "\n":
			return nil, fmt.Errorf("%w: the reason has characters that cannot be printed", ErrInvalid)
		case r.Node == "away":
			return nil, fmt.Errorf("the registry: %w", pbxmesh.ErrUnavailable)
		case r.Node == "slow":
			<-ctx.Done()
			return nil, fmt.Errorf("wait: %w", ctx.Err())
		case r.Node == "broken":
			return nil, errors.New("a bug")
		}
		return reply, nil
	}
	seconds := 12
	b.Drain = func(_ context.Context, node pbxmesh.NodeID) (*DrainReply, error) {
		switch node {
		case "tokyo":
			return nil, fmt.Errorf("%w: no node is called tokyo", ErrRefused)
		case "away":
			return nil, fmt.Errorf("the registry: %w", pbxmesh.ErrUnavailable)
		case "idle":
			return &DrainReply{Node: node, Wanted: "in service", Effective: "up", Registrations: 3}, nil
		}
		return &DrainReply{
			Node: node, Wanted: "draining", WantedSince: &start, WantedBy: "alice", WantedReason: "kernel", Effective: "draining", Registrations: 4,
			Drain: &Drain{Method: "check-sync", Started: start, Updated: start, Registrations: 4, InCall: 2, Calls: 1, Total: 9, Moved: 5, Told: 6, Flushed: 5, Returned: 1, Pace: 20, LeftSeconds: &seconds},
		}, nil
	}
	return b
}

// TestWantedAndDrainOverHTTP: every answer, with its code, its text and what the daemon
// was asked.
func TestWantedAndDrainOverHTTP(t *testing.T) {
	t.Parallel()
	get, post := http.MethodGet, http.MethodPost
	for _, tc := range []struct {
		name, method, target string
		header               bool
		code                 int
		says                 string
		asked                *WantedRequest // nil: the daemon was not asked
	}{
		{"drain", post, "/v1/wanted?node=London&state=draining&by=alice%40ops&reason=new+kernel", true, http.StatusOK, `"wanted":"draining","was":"in service"`, &WantedRequest{Node: "london", State: StateDraining, By: "alice@ops", Reason: "new kernel"}},
		{"no warning is an empty list", post, "/v1/wanted?node=london&state=out", true, http.StatusOK, `"warnings":[]`, &WantedRequest{Node: "london", State: StateOut}},
		{"back", post, "/v1/wanted?node=london&state=in-service&force=0", true, http.StatusOK, `"wanted":"in service"`, &WantedRequest{Node: "london", State: StateInService}},
		{"no room", post, "/v1/wanted?node=only&state=draining", true, http.StatusConflict, "no other node would take phones; --force does it all the same", &WantedRequest{Node: "only", State: StateDraining}},
		{"no room, forced", post, "/v1/wanted?node=only&state=draining&force=1", true, http.StatusOK, `"warnings":["no other node would take phones"]`, &WantedRequest{Node: "only", State: StateDraining, Force: true}},
		{"no such node", post, "/v1/wanted?node=tokyo&state=draining", true, http.StatusConflict, "no node is called tokyo", &WantedRequest{Node: "tokyo", State: StateDraining}},
		{"a bad reason", post, "/v1/wanted?node=london&state=draining&reason=%0A", true, http.StatusBadRequest, "the reason has characters that cannot be printed", &WantedRequest{Node: "london", State: StateDraining, Reason: "\n"}},
		{"registry away", post, "/v1/wanted?node=away&state=draining", true, http.StatusServiceUnavailable, "/readyz says what is missing", &WantedRequest{Node: "away", State: StateDraining}},
		{"a bug", post, "/v1/wanted?node=broken&state=draining", true, http.StatusInternalServerError, "a bug", &WantedRequest{Node: "broken", State: StateDraining}},
		{"a web page", post, "/v1/wanted?node=london&state=draining", false, http.StatusForbidden, "the header X-Pbxmesh-Command is missing", nil},
		{"no node", post, "/v1/wanted?state=draining", true, http.StatusBadRequest, "write node=london", nil},
		{"two nodes", post, "/v1/wanted?node=a&node=b&state=draining", true, http.StatusBadRequest, `the parameter \"node\" is not taken`, nil},
		{"a name that is none", post, "/v1/wanted?node=a/b&state=draining", true, http.StatusBadRequest, "name one node", nil},
		{"no state", post, "/v1/wanted?node=london", true, http.StatusBadRequest, "write state=draining, state=out or state=in-service", nil},
		{"a state that is none", post, "/v1/wanted?node=london&state=drained", true, http.StatusBadRequest, "the state is not known", nil},
		{"a force that is none", post, "/v1/wanted?node=london&state=out&force=yes", true, http.StatusBadRequest, "write force=1 or leave it out", nil},
		{"a misspelt parameter", post, "/v1/wanted?node=london&state=out&forced=1", true, http.StatusBadRequest, `the parameter \"forced\" is not taken`, nil},
		{"asked by GET", get, "/v1/wanted?node=london&state=out", true, http.StatusNotFound, "no such path", nil},

		{"progress", get, "/v1/drain?node=London", false, http.StatusOK, `"drain":{"method":"check-sync"`, nil},
		{"no drain goes on", get, "/v1/drain?node=idle", false, http.StatusOK, `{"node":"idle","wanted":"in service","effective":"up","registrations":3,"empty":false}`, nil},
		{"progress of no such node", get, "/v1/drain?node=tokyo", false, http.StatusNotFound, "no node is called tokyo", nil},
		{"progress, registry away", get, "/v1/drain?node=away", false, http.StatusServiceUnavailable, "/readyz", nil},
		{"progress of nothing", get, "/v1/drain", false, http.StatusBadRequest, "write node=london", nil},
		{"progress, misspelt", get, "/v1/drain?nod=london", false, http.StatusBadRequest, "this path takes, once each: node", nil},
		{"progress by POST", post, "/v1/drain?node=london", true, http.StatusMethodNotAllowed, "only GET is served here", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var asked []WantedRequest
			r := httptest.NewRequestWithContext(t.Context(), tc.method, tc.target, nil)
			r.Host = "127.0.0.1"
			if tc.header {
				r.Header.Set(commandHeader, "1")
			}
			w := httptest.NewRecorder()
			NewHandler(drained(t, &asked), "").ServeHTTP(w, r)
			if w.Code != tc.code || !strings.Contains(w.Body.String(), tc.says) || !json.Valid(w.Body.Bytes()) {
				t.Errorf("%d %s, want %d and %q", w.Code, w.Body, tc.code, tc.says)
			}
			var want []WantedRequest
			if tc.asked != nil {
				want = []WantedRequest{*tc.asked}
			}
			if !reflect.DeepEqual(asked, want) {
				t.Errorf("the daemon was asked %+v, want %+v", asked, want)
			}
		})
	}
}

// A daemon that serves none of it says so.
func TestWantedNotServed(t *testing.T) {
	t.Parallel()
	for method, target := range map[string]string{http.MethodPost: "/v1/wanted?node=london&state=out", http.MethodGet: "/v1/drain?node=london"} {
		r := httptest.NewRequestWithContext(t.Context(), method, target, nil)
		r.Host = "127.0.0.1"
		r.Header.Set(commandHeader, "1")
		w := httptest.NewRecorder()
		NewHandler(fake(t), "").ServeHTTP(w, r)
		if w.Code != http.StatusNotImplemented || !strings.Contains(w.Body.String(), "this daemon does not serve that") {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
	}
}

// What the client sends is what the daemon is asked, and what it answers comes back
// whole.
func TestWantedByClient(t *testing.T) {
	t.Parallel()
	var asked []WantedRequest
	b := drained(t, &asked)
	c := client(t, serve(t, NewHandler(b, "s3cret")), "s3cret")
	req := WantedRequest{Node: "only", State: StateDraining, By: "a+b&c=d", Reason: "100 % \u4f60 & more", Force: true}
	got, err := c.Want(t.Context(), req)
	if err != nil || len(asked) != 1 || asked[0] != req {
		t.Fatalf("the daemon was asked %+v, %v", asked, err)
	}
	if want, _ := b.Want(t.Context(), req); !reflect.DeepEqual(got, want) {
		t.Errorf("answered %+v, want %+v", got, want)
	}
	req.Force = false
	if got, err := c.Want(t.Context(), req); got != nil || err == nil || !strings.Contains(err.Error(), "no other node would take phones") {
		t.Errorf("refused with %+v, %v", got, err)
	}
	for _, node := range []pbxmesh.NodeID{"london", "idle"} {
		got, err := c.Drain(t.Context(), node)
		if want, _ := b.Drain(t.Context(), node); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("progress of %s: %+v, %v; want %+v", node, got, err, want)
		}
	}
	if got, err := c.Drain(t.Context(), "tokyo"); got != nil || err == nil || !strings.Contains(err.Error(), "no node is called tokyo") {
		t.Errorf("progress of no such node: %+v, %v", got, err)
	}
	wrong := client(t, c.address, "wrong")
	if _, err := wrong.Want(t.Context(), req); err == nil || !strings.Contains(err.Error(), "the token is missing or wrong") {
		t.Errorf("with a wrong token: %v", err)
	}
}

// FuzzWanted: whatever is asked, the answer is JSON and no bug, and the daemon is asked
// only for what is within bounds.
func FuzzWanted(f *testing.F) {
	f.Add("node=london&state=draining&by=alice&reason=kernel&force=1")
	f.Add("node=london;state=out")
	f.Add("node=%zz")
	f.Fuzz(func(t *testing.T, query string) {
		var asked []WantedRequest
		b := fake(t)
		b.Want = func(_ context.Context, r WantedRequest) (*WantedReply, error) {
			asked = append(asked, r)
			return &WantedReply{Node: r.Node}, nil
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1/v1/wanted", nil)
		r.URL.RawQuery = query
		r.Header.Set(commandHeader, "1")
		w := httptest.NewRecorder()
		NewHandler(b, "").ServeHTTP(w, r)
		if !json.Valid(w.Body.Bytes()) || w.Code != http.StatusOK && w.Code != http.StatusBadRequest && w.Code != http.StatusRequestURITooLong {
			t.Fatalf("%q gives %d %s", query, w.Code, w.Body)
		}
		if (len(asked) == 1) != (w.Code == http.StatusOK) {
			t.Fatalf("%q gives %d, and the daemon was asked %+v", query, w.Code, asked)
		}
		for _, a := range asked {
			values, err := url.ParseQuery(query)
			if id, bad := pbxmesh.ParseNodeID(string(a.Node)); err != nil || bad != nil || id != a.Node || a.Reason != values.Get("reason") || a.By != values.Get("by") {
				t.Fatalf("%q asks %+v", query, a)
			}
		}
	})
}
