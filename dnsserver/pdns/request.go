package pdns

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// maxBody bounds the body of a request, in bytes; real ones have some hundred.
const maxBody = 8 << 10

// request is one question of PowerDNS.
type request struct {
	method string
	name   string // qname or zone
	client netip.Addr
}

// errRequest says that a request is none of PowerDNS's.
var errRequest = errors.New("no request of a remote backend")

// parseRequest reads both forms: the POST form with post=1,post_json=1, and the GET
// form with everything in the path below prefix.
func parseRequest(r *http.Request, prefix string) (*request, error) {
	switch r.Method {
	case http.MethodPost:
		if strings.TrimSuffix(r.URL.Path, "/") != prefix {
			return nil, fmt.Errorf("%w: the path is %s", errRequest, prefix)
		}
		body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
		if err != nil {
			return nil, err
		}
		return parsePost(body)
	case http.MethodGet:
		rest, ok := strings.CutPrefix(r.URL.EscapedPath(), prefix+"/")
		if !ok {
			return nil, fmt.Errorf("%w: the path begins with %s/", errRequest, prefix)
		}
		return parseGet(rest, r.Header.Get("X-RemoteBackend-real-remote"))
	}
	return nil, fmt.Errorf("%w: the method is GET or POST", errRequest)
}

func parsePost(body []byte) (*request, error) {
	if len(body) > maxBody {
		return nil, fmt.Errorf("%w: longer than %d bytes", errRequest, maxBody)
	}
	// Further parameters come with newer versions of PowerDNS, and change nothing here.
	var in struct {
		Method     string `json:"method"`
		Parameters struct {
			QName      string `json:"qname"`
			Name       string `json:"name"`
			RealRemote string `json:"real-remote"`
		} `json:"parameters"`
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(&in); err != nil {
		return nil, fmt.Errorf("%w: %w", errRequest, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something follows the JSON", errRequest)
	}
	q := &request{method: in.Method, name: in.Parameters.QName}
	if q.method != "lookup" {
		q.name = in.Parameters.Name
	}
	var err error
	q.client, err = parseClient(in.Parameters.RealRemote)
	return q, err
}

func parseGet(path, realRemote string) (*request, error) {
	parts := strings.Split(path, "/")
	for i := range parts {
		var err error
		if parts[i], err = url.PathUnescape(parts[i]); err != nil {
			return nil, fmt.Errorf("%w: %w", errRequest, err)
		}
	}
	q := &request{method: parts[0]}
	if len(parts) > 1 {
		q.name = parts[1]
	}
	if q.method == "lookup" && len(parts) != 3 {
		return nil, fmt.Errorf("%w: lookup has a name and a type", errRequest)
	}
	var err error
	q.client, err = parseClient(realRemote)
	return q, err
}

// parseClient reads the client: the ECS network, or the resolver's address as a network
// of one. None, and 0.0.0.0 for PowerDNS's own questions, is a client that is not known.
func parseClient(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Addr{}, fmt.Errorf("%w: real-remote is no network", errRequest)
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if p.Bits() == 0 || p.Addr().IsUnspecified() {
		return netip.Addr{}, nil
	}
	return p.Addr().Unmap().WithZone(""), nil
}
