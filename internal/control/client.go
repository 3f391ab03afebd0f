package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"pbxmesh"
)

// DefaultAddress is where a daemon answers unless its configuration says otherwise.
const DefaultAddress = "127.0.0.1:8085"

const maxReply = 64 << 20 // bytes; the list of nodes is the largest answer

// ErrNoDaemon says that nothing that speaks this API could be reached.
var ErrNoDaemon = errors.New("no daemon answers")

// StatusError is an answer of the daemon that is no 2xx.
type StatusError struct {
	Code    int // HTTP status
	Message string
	Hint    string
}

// Error returns the message and the hint.
func (e *StatusError) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + "; " + e.Hint
}

// Client asks one daemon. It is safe for concurrent use.
type Client struct {
	address string
	token   string
	http    *http.Client
}

// NewClient returns a client of the daemon at address ("host:port", or an http://
// URL of it). timeout bounds each question as a whole; it must be positive.
func NewClient(address, token string, timeout time.Duration) (*Client, error) {
	host := strings.TrimSuffix(strings.TrimPrefix(address, "http://"), "/")
	if h, port, err := net.SplitHostPort(host); err != nil || h == "" || port == "" || strings.ContainsAny(host, "/?#@ ") {
		return nil, fmt.Errorf("%+.60q is no address of a daemon: write host:port such as %s", address, DefaultAddress)
	}
	if timeout <= 0 {
		return nil, fmt.Errorf("the timeout %v is not positive: write one such as 5s", timeout)
	}
	return &Client{
		address: host,
		token:   token,
		http: &http.Client{
			Timeout: timeout,
			// No proxy: the daemon stands beside us, and the token is for it alone.
			Transport:     &http.Transport{DialContext: (&net.Dialer{Timeout: timeout}).DialContext, MaxIdleConns: 1, DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Lookup asks where aor is registered.
func (c *Client) Lookup(ctx context.Context, aor pbxmesh.AOR) (*LookupReply, error) {
	return get[LookupReply](ctx, c, "/v1/lookup", url.Values{"aor": {aor.String()}})
}

// Nodes asks for all nodes and their states.
func (c *Client) Nodes(ctx context.Context) (*NodesReply, error) {
	return get[NodesReply](ctx, c, "/v1/nodes", nil)
}

// Explain asks what would happen to a call to aor, as if it came from another
// node when fromMesh.
func (c *Client) Explain(ctx context.Context, aor pbxmesh.AOR, fromMesh bool) (*ExplainReply, error) {
	query := url.Values{"aor": {aor.String()}}
	if fromMesh {
		query.Set("from", "mesh")
	}
	return get[ExplainReply](ctx, c, "/v1/explain", query)
}

// Forget removes a node for good.
func (c *Client) Forget(ctx context.Context, node pbxmesh.NodeID) (*ForgetReply, error) {
	return ask[ForgetReply](ctx, c, http.MethodPost, "/v1/forget", url.Values{"node": {string(node)}})
}

// Version asks what the daemon was built from.
func (c *Client) Version(ctx context.Context) (*VersionReply, error) {
	return get[VersionReply](ctx, c, "/v1/version", nil)
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (*T, error) {
	return ask[T](ctx, c, http.MethodGet, path, query)
}

func ask[T any](ctx context.Context, c *Client, method, path string, query url.Values) (*T, error) {
	target := url.URL{Scheme: "http", Host: c.address, Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, target.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", c.address, err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if method != http.MethodGet {
		req.Header.Set(commandHeader, "1")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	switch {
	case err != nil:
		return nil, c.explain(err)
	case len(body) > maxReply:
		return nil, fmt.Errorf("%s answers with more than %d bytes: that is no pbxmesh daemon", c.address, maxReply)
	case resp.StatusCode != http.StatusOK:
		return nil, c.refusal(resp.StatusCode, body)
	}
	reply := new(T)
	if err := json.Unmarshal(body, reply); err != nil {
		return nil, fmt.Errorf("%w at %s: what listens there is something else, or another version: %w", ErrNoDaemon, c.address, err)
	}
	return reply, nil
}

// refusal turns an answer that is no 200 into an error. One without our JSON
// came from a stranger.
func (c *Client) refusal(code int, body []byte) error {
	var e ErrorReply
	if json.Unmarshal(body, &e) != nil || e.Message == "" {
		return fmt.Errorf("%w at %s: what listens there answers HTTP %d in other words; name the daemon with --api", ErrNoDaemon, c.address, code)
	}
	return &StatusError{Code: code, Message: e.Message, Hint: e.Hint}
}

// explain turns a network error into cause and remedy.
func (c *Client) explain(err error) error {
	var netErr net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("ask %s: %w", c.address, context.Canceled)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s; start it with `pbxmesh serve -c pbxmesh.yaml`, or name it with --api", ErrNoDaemon, c.address)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return fmt.Errorf("%w at %s within %v; it hangs or a firewall drops packets: look at its log, or give it longer with --timeout", ErrNoDaemon, c.address, c.http.Timeout)
	default:
		var urlErr *url.Error
		if errors.As(err, &urlErr) {
			err = urlErr.Err
		}
		return fmt.Errorf("%w at %s: %w; name it with --api", ErrNoDaemon, c.address, err)
	}
}
