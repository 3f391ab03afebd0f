package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"pbxmesh"
)

// stall is how long a client waits for more: a daemon that does answer must do so
// within it, on a busy machine too.
const stall = 2 * time.Second

func listServer(t *testing.T, b Backend, timeout time.Duration) (*httptest.Server, *Client) {
	t.Helper()
	server := httptest.NewServer(NewHandler(b, ""))
	t.Cleanup(server.Close)
	client, err := NewClient(server.Listener.Addr().String(), "", timeout)
	if err != nil {
		t.Fatal(err)
	}
	return server, client
}

func give(n int, each func(*Listed) error) error {
	for i := range n {
		aor, err := pbxmesh.NewAOR(fmt.Sprint(i), "pbx.test")
		if err != nil {
			return err
		}
		if err := each(&Listed{AOR: aor, Registration: Registration{Node: "london", Contact: "sip:<&>@192.0.2.1"}}); err != nil {
			return err
		}
	}
	return nil
}

func TestListAll(t *testing.T) {
	t.Parallel()
	const many = 50_000
	_, client := listServer(t, Backend{ListAll: func(_ context.Context, q ListQuery, each func(*Listed) error) (*ListEnd, error) {
		if q.Node != "london" || q.Domain != "pbx.test" || q.User != "1*" {
			return nil, fmt.Errorf("asked for %+v", q)
		}
		return &ListEnd{Count: many, DataAge: 2, Source: SourceReplica}, give(many, each)
	}}, stall)
	n := 0
	q := ListQuery{Node: "london", Domain: "pbx.test", User: "1*", Limit: 7}
	end, err := client.ListAll(t.Context(), q, func(l *Listed) error {
		if l.AOR.User() != fmt.Sprint(n) || l.Node != "london" || l.Contact != "sip:<&>@192.0.2.1" {
			return fmt.Errorf("entry %d is %+v", n, l)
		}
		n++
		return nil
	})
	if err != nil || n != many || end.Count != many || end.DataAge != 2 {
		t.Errorf("%d came, end %+v, err %v", n, end, err)
	}
	// A slow reader is waited for, and may end it.
	enough := errors.New("enough")
	n = 0
	if _, err := client.ListAll(t.Context(), q, func(*Listed) error {
		if n++; n == 2 {
			time.Sleep(stall + stall/10)
		}
		if n == many-1 {
			return enough
		}
		return nil
	}); !errors.Is(err, enough) {
		t.Errorf("err %v after %d, want that of the reader", err, n)
	}
}

func TestListAllFails(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	var status *StatusError
	for name, test := range map[string]struct {
		give int
		end  *ListEnd
		err  error
		hang bool
		ok   func(error) bool
	}{
		"not read yet":   {0, nil, pbxmesh.ErrUnavailable, false, func(err error) bool { return errors.As(err, &status) && status.Code == 503 }},
		"bad filter":     {0, nil, pbxmesh.ErrInvalidAOR, false, func(err error) bool { return errors.As(err, &status) && status.Code == 400 }},
		"ends early":     {5000, nil, pbxmesh.ErrUnavailable, false, func(err error) bool { return errors.Is(err, ErrCutOff) }},
		"one is missing": {5, &ListEnd{Count: 6}, nil, false, func(err error) bool { return errors.Is(err, ErrCutOff) }},
		"hangs at first": {0, nil, nil, true, func(err error) bool { return errors.Is(err, ErrNoDaemon) }},
		"hangs later":    {5000, nil, nil, true, func(err error) bool { return errors.Is(err, ErrCutOff) }},
	} {
		timeout := 10 * stall
		if test.hang {
			timeout = stall
		}
		_, client := listServer(t, Backend{ListAll: func(ctx context.Context, _ ListQuery, each func(*Listed) error) (*ListEnd, error) {
			if err := give(test.give, each); err != nil {
				return nil, err
			}
			if test.hang {
				select {
				case <-hang:
				case <-ctx.Done():
				}
				return nil, ctx.Err()
			}
			return test.end, test.err
		}}, timeout)
		if _, err := client.ListAll(t.Context(), ListQuery{}, func(*Listed) error { return nil }); err == nil || !test.ok(err) {
			t.Errorf("%s: err %v", name, err)
		}
	}
}

// So many listings of everything are served at a time, and no more.
func TestListAllIsBounded(t *testing.T) {
	t.Parallel()
	release, begun := make(chan struct{}), make(chan struct{}, maxStreams)
	server, _ := listServer(t, Backend{ListAll: func(context.Context, ListQuery, func(*Listed) error) (*ListEnd, error) {
		begun <- struct{}{}
		<-release
		return &ListEnd{}, nil
	}}, stall)
	done := make(chan error, maxStreams)
	for range maxStreams {
		go func() {
			resp, err := http.Get(server.URL + "/v1/list/all")
			if err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
			done <- err
		}()
		<-begun
	}
	resp, err := http.Get(server.URL + "/v1/list/all")
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("one more: %v, err %v", resp, err)
	} else {
		_ = resp.Body.Close()
	}
	close(release)
	for range maxStreams {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestListRefuses(t *testing.T) {
	t.Parallel()
	server, _ := listServer(t, Backend{List: func(context.Context, ListQuery) (*ListReply, error) { return &ListReply{}, nil }}, stall)
	for query, want := range map[string]int{
		"": 200, "limit=10000": 200, "limit=0": 400, "limit=10001": 400, "limit=x": 400, "cursor=1": 400, "cursor=1%40b": 200, "node=-": 400, "node=a&node=b": 400, "other=1": 400,
	} {
		resp, err := http.Get(server.URL + "/v1/list?" + query)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%q: HTTP %d, want %d: %s", query, resp.StatusCode, want, body)
		}
	}
}
