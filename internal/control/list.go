package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"pbxmesh"
)

// Bounds of a listing.
const (
	DefaultList = 100    // extensions of a page
	MaxList     = 10_000 // extensions of a page at most

	maxStreams    = 4           // listings of everything that one daemon serves at a time
	streamTimeout = time.Minute // for the reader to take the next piece
	streamLonger  = time.Hour   // for the whole of it
	streamPiece   = 32 << 10    // bytes
	maxStreamLine = 64 << 10    // bytes; a registration has at most 2,300 and its escapes
)

// ListQuery selects registrations; what is empty selects all.
type ListQuery struct {
	Node   pbxmesh.NodeID
	Domain string
	User   string // with a '*' at its end: how it begins

	// Limit is how many extensions a page has, 1 to MaxList; Cursor is the extension
	// after which it begins. A listing of everything has neither.
	Limit  int
	Cursor pbxmesh.AOR
}

func (q *ListQuery) values() url.Values {
	v := url.Values{}
	for name, text := range map[string]string{"node": string(q.Node), "domain": q.Domain, "user": q.User, "cursor": q.Cursor.String()} {
		if text != "" {
			v.Set(name, text)
		}
	}
	if q.Limit != 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	return v
}

// Listed is one registration of a listing.
type Listed struct {
	AOR pbxmesh.AOR `json:"aor"`
	Registration
}

// ListReply answers GET /v1/list?node=&domain=&user=&limit=&cursor=: one page, by
// extension.
type ListReply struct {
	Registrations []Listed    `json:"registrations"`
	Next          pbxmesh.AOR `json:"next,omitzero"` // the cursor of the next page; missing at the end
	DataAge       Seconds     `json:"data_age_seconds"`
	Source        string      `json:"source"`
}

// ListEnd is the last line of GET /v1/list/all?node=&domain=&user=, which answers with
// one JSON object a line, in no order. Without it the listing was cut off.
type ListEnd struct {
	End     bool    `json:"end"` // true
	Count   int     `json:"count"`
	DataAge Seconds `json:"data_age_seconds"`
	Source  string  `json:"source"`
}

func listQueryOf(w http.ResponseWriter, r *http.Request, allowed ...string) (ListQuery, bool) {
	if !onlyQuery(w, r, allowed...) {
		return ListQuery{}, false
	}
	v := r.URL.Query()
	q := ListQuery{Domain: v.Get("domain"), User: v.Get("user"), Limit: DefaultList}
	var err error
	if text := v.Get("node"); text != "" {
		if q.Node, err = pbxmesh.ParseNodeID(text); err != nil {
			writeError(w, http.StatusBadRequest, err.Error(), "/v1/nodes lists the nodes")
			return q, false
		}
	}
	if text := v.Get("cursor"); text != "" {
		if q.Cursor, err = pbxmesh.ParseAOR(text); err != nil {
			writeError(w, http.StatusBadRequest, err.Error(), "cursor takes the next of the page before")
			return q, false
		}
	}
	if text := v.Get("limit"); text != "" {
		if q.Limit, err = strconv.Atoi(text); err != nil || q.Limit < 1 || q.Limit > MaxList {
			writeError(w, http.StatusBadRequest, fmt.Sprintf("the limit %+.20q is no number from 1 to %d", text, MaxList), "/v1/list/all lists everything")
			return q, false
		}
	}
	return q, true
}

func (h *handler) list(w http.ResponseWriter, r *http.Request) {
	q, ok := listQueryOf(w, r, "node", "domain", "user", "limit", "cursor")
	if !ok {
		return
	}
	if h.b.List == nil {
		notServed(w)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	reply, err := h.b.List(ctx, q)
	if err == nil && reply.Registrations == nil {
		reply.Registrations = []Listed{}
	}
	answer(w, reply, err)
}

func (h *handler) listAll(w http.ResponseWriter, r *http.Request) {
	q, ok := listQueryOf(w, r, "node", "domain", "user")
	if !ok {
		return
	}
	if h.b.ListAll == nil {
		notServed(w)
		return
	}
	select {
	case h.streams <- struct{}{}:
		defer func() { <-h.streams }()
	default:
		writeError(w, http.StatusServiceUnavailable, fmt.Sprintf("%d listings of everything are under way", maxStreams), "try again when one of them has ended")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), streamLonger)
	defer cancel()
	control := http.NewResponseController(w)
	out := bufio.NewWriterSize(deadlineWriter{w, control}, streamPiece)
	begun := false
	line := func(v any) error {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "application/x-ndjson")
		}
		body, err := json.Marshal(v)
		if err != nil {
			return err
		}
		_, err = out.Write(append(body, '\n'))
		return err
	}
	end, err := h.b.ListAll(ctx, q, func(l *Listed) error { return line(l) })
	switch {
	case err != nil && !begun:
		answer[ListEnd](w, nil, err)
	case err == nil:
		end.End = true
		if line(end) == nil {
			_ = out.Flush() // a reader that went away is told nothing
		}
	}
}

// deadlineWriter gives a reader streamTimeout for each piece. It is slow, not hostile:
// a pager takes the next piece when its user wants it.
type deadlineWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (d deadlineWriter) Write(p []byte) (int, error) {
	if err := d.control.SetWriteDeadline(time.Now().Add(streamTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return d.ResponseWriter.Write(p)
}

// List asks for a page of registrations.
func (c *Client) List(ctx context.Context, q ListQuery) (*ListReply, error) {
	return get[ListReply](ctx, c, "/v1/list", q.values())
}

// ErrCutOff says that a listing ended before its end.
var ErrCutOff = errors.New("the listing was cut off")

// ListAll calls each for every registration that q selects, in no order, as they come.
// The timeout of the client bounds the wait for the first and for every next piece, not
// the whole. ErrCutOff when the daemon ended before everything was told; an error of
// each ends it.
func (c *Client) ListAll(ctx context.Context, q ListQuery, each func(*Listed) error) (*ListEnd, error) {
	q.Limit, q.Cursor = 0, pbxmesh.AOR{}
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := time.AfterFunc(c.http.Timeout, cancel)
	defer stop.Stop()
	target := url.URL{Scheme: "http", Host: c.address, Path: "/v1/list/all", RawQuery: q.values().Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", c.address, err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	patient := *c.http
	patient.Timeout = 0
	resp, err := patient.Do(req)
	if err != nil {
		if ctx.Err() != nil && caller.Err() == nil {
			err = os.ErrDeadlineExceeded
		}
		return nil, c.explain(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 4096), maxStreamLine)
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/x-ndjson") {
		lines.Scan()
		return nil, c.refusal(resp.StatusCode, lines.Bytes())
	}
	for count := 0; lines.Scan(); count++ {
		stop.Stop() // the time that each takes is not the daemon's
		var l Listed
		var end ListEnd
		var err error
		if isEnd := bytes.HasPrefix(lines.Bytes(), []byte(`{"end":true`)); isEnd {
			err = json.Unmarshal(lines.Bytes(), &end)
		} else {
			err = json.Unmarshal(lines.Bytes(), &l)
		}
		switch {
		case err != nil && count > 0: // a piece of a line
			return nil, ErrCutOff
		case err != nil:
			return nil, fmt.Errorf("%w at %s: what listens there is something else, or another version: %w", ErrNoDaemon, c.address, err)
		case end.End && end.Count != count:
			return nil, fmt.Errorf("%w: %d registrations came of %d", ErrCutOff, count, end.Count)
		case end.End:
			return &end, nil
		}
		if err := each(&l); err != nil {
			return nil, err
		}
		stop.Reset(c.http.Timeout)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCutOff, err)
	}
	return nil, ErrCutOff
}
