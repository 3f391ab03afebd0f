package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"pbxmesh/internal/control"
)

const (
	maxMetrics = 16 << 20 // bytes
	fewFiles   = 4096     // a limit below it is for a desktop
	usedFiles  = 0.8      // of the limit
)

// controlAPI asks the daemon whether it is ready, which nodes it knows, and how many
// files it has open.
func (p *patient) controlAPI(ctx context.Context) {
	start := time.Now()
	say := func(r Result) { p.say("control API", "control API", start, r) }
	noFiles := func() {
		p.say("file descriptors", "file descriptors", start, skip("the daemon does not tell"))
	}
	at := p.o.API
	if at == "" {
		listen := p.cfg.API.Listen
		if !listen.IsValid() || listen.Port() == 0 {
			say(skip("api.listen names no fixed address"))
			noFiles()
			return
		}
		at = loopback(listen).String()
	}
	at = strings.TrimSuffix(strings.TrimPrefix(at, "http://"), "/")
	token, err := p.cfg.API.TokenFile.Read()
	if err != nil {
		say(fail("the token cannot be read: "+err.Error(), "api.token_file"))
		noFiles()
		return
	}
	client, err := control.NewClient(at, token, p.o.Timeout)
	if err != nil {
		say(fail(err.Error(), "correct api.listen"))
		noFiles()
		return
	}
	p.daemon = client
	code, text, err := get(ctx, at, token, "/readyz")
	switch {
	case err != nil:
		say(fail(at+": "+plain(err), "start the daemon: pbxmesh serve -c FILE, or systemctl start pbxmesh"))
		noFiles()
		return
	case code != http.StatusOK && code != http.StatusServiceUnavailable:
		say(fail(fmt.Sprintf("what listens at %s is no pbxmesh daemon (HTTP %d)", at, code), "change api.listen, or stop the other program"))
		noFiles()
		return
	}
	reply, err := client.Nodes(ctx)
	switch {
	case code == http.StatusServiceUnavailable:
		say(fail("the daemon runs and is not ready: "+oneLine(strings.TrimPrefix(text, "not ready: ")), "see the checks that fail above, and its log"))
	case err != nil:
		say(fail(plain(err), "the daemon's log"))
	default:
		say(ok("the daemon at %s is ready and knows %d nodes", at, len(reply.Nodes)))
	}
	if err == nil {
		for _, n := range reply.Nodes {
			p.learn(member{id: n.ID, mesh: n.Mesh, wanted: n.Wanted})
		}
	}
	p.files(ctx, at, token)
}

// get asks the daemon for a page that is no JSON.
func get(ctx context.Context, at, token, path string) (code int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+path, nil)
	if err != nil {
		return 0, "", err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	// No proxy: the daemon stands beside us.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxMetrics))
	return resp.StatusCode, string(text), err
}

// files reads the daemon's open files and their limit from its metrics, and the whole
// machine's from the kernel.
func (p *patient) files(ctx context.Context, at, token string) {
	start := time.Now()
	say := func(r Result) { p.say("file descriptors", "file descriptors", start, r) }
	code, text, err := get(ctx, at, token, "/metrics")
	open, limit := metric(text, "process_open_fds"), metric(text, "process_max_fds")
	if err != nil || code != http.StatusOK || limit <= 0 {
		say(skip("the daemon does not tell"))
		return
	}
	seen := fmt.Sprintf("%.0f of %.0f open in the daemon", open, limit)
	const do = "LimitNOFILE in the daemon's systemd unit"
	used, most, err := machineFiles()
	switch {
	case open > limit*usedFiles:
		say(fail(seen, "raise "+do))
	case err == nil && used > most*usedFiles:
		say(fail(fmt.Sprintf("%.0f of %.0f open on this machine", used, most), "raise fs.file-max, or find who holds them"))
	case limit < fewFiles:
		say(warn(seen, fmt.Sprintf("a busy node needs thousands: %s=65536", do)))
	default:
		say(ok("%s", seen))
	}
}

// metric returns the value of a metric without labels, -1 when it is missing.
func metric(text, name string) float64 {
	for line := range strings.Lines(text) {
		if value, is := strings.CutPrefix(line, name+" "); is {
			if v, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil {
				return v
			}
		}
	}
	return -1
}

// machineFiles reads how many files are open on a Linux machine, and how many may be.
func machineFiles() (used, most float64, err error) {
	f, err := os.Open("/proc/sys/fs/file-nr")
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		return 0, 0, err
	}
	fields := strings.Fields(line)
	if len(fields) < 3 {
		return 0, 0, errors.New("file-nr has other fields")
	}
	used, err1 := strconv.ParseFloat(fields[0], 64)
	most, err2 := strconv.ParseFloat(fields[2], 64)
	return used, most, errors.Join(err1, err2)
}

func containsFold(s, part string) bool {
	return strings.Contains(strings.ToLower(s), strings.ToLower(part))
}
