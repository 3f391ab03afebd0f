package latency

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"pbxmesh/internal/esl"
	"pbxmesh/internal/sofia"
)

// WatchOptions configure a Watch.
type WatchOptions struct {
	ESL      esl.Config // of the local switch; OnEvent is the Watch's own
	Profiles []string   // the sofia profiles of phones

	// Sink gets every sample, from several goroutines, and must not block.
	Sink func(Sample)

	// KeepAliveEvery is the time between two looks at the times of the switch's own
	// keep-alives (all-reg-options-ping, nat-options-ping of a profile); 0 never looks.
	KeepAliveEvery time.Duration

	// MinBackoff and MaxBackoff bound the wait before the next connection; 0 means 500
	// ms and 30 s.
	MinBackoff, MaxBackoff time.Duration

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil discards
}

// WatchStats counts what a Watch saw.
type WatchStats struct {
	Connected  bool
	Challenges uint64 // samples of challenges
	KeepAlives uint64 // samples of keep-alives
	Unpaired   uint64 // registrations without a challenge, or whose challenge was too long ago
	Doubtful   uint64 // registrations after two challenges: which nonce they answer is not told
	Lost       uint64 // challenges that were not remembered: too many at once
}

// maxPending bounds the challenges that wait for their answer. What comes above is not
// measured. maxRows bounds the registrations whose account or keep-alive is remembered.
const (
	maxPending = 8192
	maxRows    = 1 << 18
)

// meshAgent is the user agent of rows that the mesh wrote into the switch's table.
const meshAgent = "pbxmesh"

// Watch makes samples of what one switch tells. It has a connection of its own: events
// are stamped on arrival, and nothing else may hold them up.
type Watch struct {
	opts     WatchOptions
	profiles map[string]bool

	mu       sync.Mutex
	pending  map[binding]challenge
	accounts map[binding]string // of registrations
	pings    map[binding]string // last keep-alive time of each row, as text
	stats    WatchStats
	lastErr  string
}

// binding is where a phone registers from.
type binding struct{ callID, source string }

// challenge is a REGISTER that was answered with 401, and what became of it.
type challenge struct {
	sent     time.Time
	answered time.Time // zero before the digest
	doubtful bool
}

// NewWatch returns a Watch that does nothing before Run.
func NewWatch(o WatchOptions) *Watch {
	if o.MinBackoff <= 0 {
		o.MinBackoff = 500 * time.Millisecond
	}
	if o.MaxBackoff < o.MinBackoff {
		o.MaxBackoff = max(30*time.Second, o.MinBackoff)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Logger = o.Logger.With("component", "latency")
	w := &Watch{opts: o, profiles: make(map[string]bool), pending: make(map[binding]challenge), accounts: make(map[binding]string)}
	for _, p := range o.Profiles {
		w.profiles[p] = true
	}
	w.opts.ESL.OnEvent = w.onEvent
	if w.opts.ESL.Logger == nil {
		w.opts.ESL.Logger = o.Logger
	}
	return w
}

// Stats returns the counters.
func (w *Watch) Stats() WatchStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

// Run follows the switch until ctx ends, connecting again when the connection is lost.
// It returns nil, and nothing runs any more. Call it once.
func (w *Watch) Run(ctx context.Context) error {
	w.loop(ctx)
	w.note(false, nil)
	return nil
}

func (w *Watch) loop(ctx context.Context) {
	delay := w.opts.MinBackoff
	for ctx.Err() == nil {
		connected, err := w.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		w.note(false, err)
		if connected {
			delay = w.opts.MinBackoff
		}
		wait := time.NewTimer(delay/2 + rand.N(delay/2+1))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
		}
		delay = min(2*delay, w.opts.MaxBackoff)
	}
}

// note keeps the state of the connection and logs a cause once. The feed of
// registrations shouts about a switch that is gone; this is no news then.
func (w *Watch) note(connected bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.Connected = connected
	if err != nil && err.Error() != w.lastErr {
		w.lastErr = err.Error()
		w.opts.Logger.Warn("no samples of latency while the event socket is away", "err", err)
	}
	if connected {
		w.lastErr = ""
	}
}

func (w *Watch) follow(ctx context.Context) (connected bool, err error) {
	conn, err := esl.Dial(ctx, w.opts.ESL)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	if err := conn.Subscribe(ctx, nil, []string{"sofia::pre_register", "sofia::register_attempt", "sofia::register"}); err != nil {
		return false, fmt.Errorf("subscribe: %w", err)
	}
	w.note(true, nil)
	if w.opts.KeepAliveEvery <= 0 {
		select {
		case <-ctx.Done():
			return true, nil
		case <-conn.Done():
			return true, conn.Err()
		}
	}
	tick := time.NewTicker(w.opts.KeepAliveEvery)
	defer tick.Stop()
	for {
		if err := w.keepAlives(ctx, conn); err != nil {
			return true, err
		}
		select {
		case <-ctx.Done():
			return true, nil
		case <-conn.Done():
			return true, conn.Err()
		case <-tick.C:
		}
	}
}

// onEvent is called by the connection, one event at a time.
//
// No event tells a nonce (FreeSWITCH 1.11.1), so the rules keep to what the events prove: one
// challenge, one digest for it, of the same Call-ID from the same address and port, in
// this order. A digest of any kind ends the challenge before it, so that a repeated one is no
// sample; a second challenge makes it doubtful which nonce is answered.
func (w *Watch) onEvent(e *esl.Event) {
	now := w.opts.Now()
	if e.Name() != "CUSTOM" || !w.profiles[e.Get("profile-name")] || e.Get("user-agent") == meshAgent {
		return
	}
	key := binding{strings.Clone(e.Get("call-id")), e.Get("network-ip") + " " + e.Get("network-port")}
	switch e.Subclass() {
	case "sofia::pre_register":
		w.challenged(key, now)
	case "sofia::register_attempt":
		// STALE is a nonce that ran out or was used before: a challenge follows.
		r := e.Get("auth-result")
		w.answered(key, now, (r == "RENEWED" || r == "SUCCESS") && e.Get("expires") != "0")
	case "sofia::register":
		if addr, err := netip.ParseAddr(e.Get("network-ip")); err == nil && e.Get("expires") != "0" {
			w.registered(key, addr, accountOf(e), now)
		}
	}
}

// accountOf names who registered: the user whose password was right, in the domain that the
// switch looked him up in. A phone's realm and To are its own words.
func accountOf(e *esl.Event) string {
	user, domain := e.Get("user_name"), e.Get("domain_name")
	if user == "" || domain == "" {
		return ""
	}
	return strings.ToLower(user + "@" + domain)
}

// challenged remembers when a phone was sent a challenge.
func (w *Watch) challenged(key binding, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c, ok := w.pending[key]; ok && now.Sub(c.sent) <= maxRTT {
		c.doubtful = true
		w.pending[key] = c
		return
	}
	if len(w.pending) >= maxPending {
		for k, c := range w.pending {
			if now.Sub(c.sent) > maxRTT {
				delete(w.pending, k)
			}
		}
		if len(w.pending) >= maxPending {
			w.stats.Lost++
			return
		}
	}
	w.pending[key] = challenge{sent: now}
}

// answered ends a challenge: a good digest is kept until the registration names its account.
func (w *Watch) answered(key binding, now time.Time, good bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, ok := w.pending[key]
	if !ok {
		return
	}
	if !good || !c.answered.IsZero() {
		delete(w.pending, key)
		return
	}
	c.answered = now
	w.pending[key] = c
}

// registered makes a sample of a challenge that was answered.
func (w *Watch) registered(key binding, client netip.Addr, account string, now time.Time) {
	w.mu.Lock()
	c, ok := w.pending[key]
	delete(w.pending, key)
	rtt := c.answered.Sub(c.sent)
	if ok && c.answered.IsZero() { // this event overtook that of the digest
		rtt = now.Sub(c.sent)
	}
	switch ok = ok && rtt > 0 && rtt <= maxRTT; {
	case !ok:
		rtt = 0
		w.stats.Unpaired++
	case c.doubtful:
		rtt = 0
		w.stats.Doubtful++
	default:
		w.stats.Challenges++
	}
	if w.opts.KeepAliveEvery > 0 && account != "" && len(w.accounts) < maxRows {
		w.accounts[key] = account
	}
	w.mu.Unlock()
	w.opts.Sink(Sample{Client: client, Phone: account, RTT: rtt, At: now, Visit: true})
}

// keepAlives reads the times of the switch's own keep-alives. Only the connection's end
// is an error.
func (w *Watch) keepAlives(ctx context.Context, conn *esl.Conn) error {
	var refused *esl.ReplyError
	hosts := make(map[string]bool)
	for _, command := range []string{"hostname", "switchname"} {
		out, err := conn.API(ctx, command)
		if err != nil && !errors.As(err, &refused) {
			return err
		}
		hosts[strings.ToLower(strings.TrimSpace(out))] = true
	}
	seen := make(map[binding]string)
	for _, p := range w.opts.Profiles {
		out, err := conn.API(ctx, "sofia xmlstatus profile "+p+" reg")
		if err != nil && !errors.As(err, &refused) {
			return err
		}
		now := w.opts.Now()
		// Of a list that is cut off what stands before the cut is true: a sample less is no harm.
		_ = sofia.Rows(out, p, func(r sofia.Row) { w.keepAlive(&r, hosts, seen, now) })
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pings = seen
	if len(w.accounts) >= maxRows/2 {
		for key := range w.accounts {
			if _, ok := seen[key]; !ok {
				delete(w.accounts, key)
			}
		}
	}
	return nil
}

// keepAlive makes a sample of one row, when its time is a new one: the table holds the
// last time, however old. 0.00 is a phone that was never asked. Whose registration was not
// seen is told by the address: a row's realm is the phone's own word.
func (w *Watch) keepAlive(r *sofia.Row, hosts map[string]bool, seen map[binding]string, now time.Time) {
	if r.PingStatus != "Reachable" || r.Agent == meshAgent || r.Host != "" && !hosts[strings.ToLower(r.Host)] || len(seen) >= maxRows {
		return
	}
	key := binding{strings.Clone(sofia.Shown(r.CallID)), r.IP + " " + r.Port}
	seen[key] = strings.Clone(r.PingTime)
	ms, err := strconv.ParseFloat(r.PingTime, 64)
	addr, err2 := netip.ParseAddr(r.IP)
	if err != nil || err2 != nil || !(ms > 0) || ms > float64(maxRTT/time.Millisecond) {
		return
	}
	w.mu.Lock()
	fresh := w.pings[key] != r.PingTime
	if fresh {
		w.stats.KeepAlives++
	}
	account := w.accounts[key]
	w.mu.Unlock()
	if fresh {
		w.opts.Sink(Sample{Client: addr, Phone: account, RTT: time.Duration(ms * float64(time.Millisecond)), At: now})
	}
}
