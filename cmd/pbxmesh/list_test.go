package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/internal/control"
)

func listed(n int) *control.Listed {
	aor, err := pbxmesh.NewAOR(fmt.Sprint(1000+n), "pbx.test")
	if err != nil {
		panic(err)
	}
	return &control.Listed{AOR: aor, Registration: control.Registration{
		Node: "london", NodeState: "up", Profile: "internal", Contact: fmt.Sprintf("sip:%d@198.51.100.7", 1000+n), Transport: "udp",
		UserAgent: "Phone\x1b[31m", CallID: fmt.Sprint("c", n), Expires: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), ExpiresIn: 3541,
	}}
}

// listPage is a mesh of three phones, two of them on the first page.
func listPage(_ context.Context, q control.ListQuery) (*control.ListReply, error) {
	reply := &control.ListReply{DataAge: 0.4, Source: control.SourceReplica}
	switch {
	case q.User == "nobody":
	case q.User == "away":
		return nil, fmt.Errorf("the replica was never filled: %w", pbxmesh.ErrUnavailable)
	case q.Cursor.IsZero():
		reply.Registrations = []control.Listed{*listed(1), *listed(2)}
		reply.Next = listed(2).AOR
	default:
		reply.Registrations = []control.Listed{*listed(3)}
	}
	return reply, nil
}

func listAll(_ context.Context, q control.ListQuery, each func(*control.Listed) error) (*control.ListEnd, error) {
	if q.User == "away" {
		return nil, fmt.Errorf("the replica was never filled: %w", pbxmesh.ErrUnavailable)
	}
	n := 1200
	for i := range n {
		if q.User == "cut" && i == 600 {
			return nil, pbxmesh.ErrUnavailable
		}
		if err := each(listed(i)); err != nil {
			return nil, err
		}
	}
	return &control.ListEnd{Count: n, DataAge: 0.4, Source: control.SourceReplica}, nil
}

// The columns of a long table never shrink, and every device is there once.
func TestListAllTable(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(control.NewHandler(fakeDaemon(), ""))
	t.Cleanup(server.Close)
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"list", "--all", "--api", server.Listener.Addr().String()}, &out, &errs); code != exitOK || errs.Len() > 0 {
		t.Fatalf("exit code %d, %s", code, errs.String())
	}
	lines := strings.Split(strings.TrimRight(out.String(), "\n"), "\n")
	if len(lines) != 1+1200+2 || lines[len(lines)-1] != "1200 devices, data 0.4 s old." {
		t.Fatalf("%d lines, the last one %q", len(lines), lines[len(lines)-1])
	}
	seen, column := map[string]bool{}, 0
	for _, line := range lines[1:1201] {
		aor, _, _ := strings.Cut(line, " ")
		at := strings.Index(line, "sip:")
		if seen[aor] || at < column || strings.Contains(line, "\x1b") {
			t.Fatalf("line %q, the contact stands at %d after %d, seen before: %v", line, at, column, seen[aor])
		}
		seen[aor], column = true, at
	}
}
