package native

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

const (
	// KindCache says that a cached answer is old: Key is what FusionPBX calls it.
	KindCache = "cache"

	// cacheTTL is how long a node tells the others of it: who was away no longer than
	// that hears it later.
	cacheTTL = 10 * time.Minute

	// maxCaches bounds the keys that wait or are remembered; more are left out and
	// counted. A page of FusionPBX changes a handful at once.
	maxCaches = 10_000

	// cacheFlush is the key of everything.
	cacheFlush = "*"
)

// cacheClasses are the events that FusionPBX fires when it deletes from its cache, for
// whoever wants to tell other servers.
var cacheClasses = []string{"fusion::file", "fusion::memcache"}

// cacheKey is what a key may be made of. It goes into a script that the switch runs.
var cacheKey = regexp.MustCompile(`^[A-Za-z0-9_.:@+-]{1,200}$`)

// noUser stands for whose the entry is: every State names somebody.
var noUser = func() pbxmesh.AOR {
	aor, err := pbxmesh.NewAOR("cache", "fusionpbx.invalid")
	if err != nil {
		panic(err)
	}
	return aor
}()

// CachesOptions say between whom caches are kept true.
type CachesOptions struct {
	ESL      esl.Config // of the local switch; OnEvent is ignored
	Local    pbxmesh.NodeID
	Exchange Exchange
	Logger   *slog.Logger
	Dial     Dialer // nil means esl.Dial
}

// CachesStats is what listings and metrics show.
type CachesStats struct {
	Connected bool   `json:"connected"`
	Error     string `json:"error,omitempty"`

	Told    TellerStats `json:"told"`
	Deleted uint64      `json:"deleted"` // here, because of other nodes
	Dropped uint64      `json:"dropped"`
}

// Caches has every FusionPBX forget what one of them changed. Nodes with one database
// each keep the answers to their switch in a cache of their own, in files that never
// run out: with do-not-disturb set on one node, another one goes on ringing the user
// from its copy. FusionPBX fires an event for each entry that it deletes; the other
// nodes then delete theirs, with FusionPBX's own configuration and by the switch, so
// that the daemon needs no rights on its files.
//
// On a switch without FusionPBX nothing fires such events, and a key of another node
// meets a script that finds nothing to do. What we delete fires no event: it cannot go
// round in circles.
type Caches struct {
	opts   CachesOptions
	link   link
	log    *slog.Logger
	teller *teller
	wake   chan struct{}

	mu    sync.Mutex
	core  string
	until map[string]time.Time // keys that we tell, and how long
	heard map[heardKey]heardCache
	due   []string
	stats CachesStats
}

type heardKey struct {
	node pbxmesh.NodeID
	key  string
}

type heardCache struct {
	run    string
	change uint64
	until  time.Time
}

// NewCaches returns Caches that does nothing before Run.
func NewCaches(opts CachesOptions) *Caches {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Dial == nil {
		opts.Dial = dialESL
	}
	log := opts.Logger.With("component", "native caches")
	return &Caches{
		opts: opts, log: log,
		link:   link{dial: opts.Dial, cfg: opts.ESL, log: log, what: "caches"},
		teller: newTeller(opts.Exchange, KindCache, opts.Local, cacheTTL, log),
		wake:   make(chan struct{}, 1),
		until:  make(map[string]time.Time), heard: make(map[heardKey]heardCache),
	}
}

// Run works until ctx ends, which is the only error it returns.
func (c *Caches) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { c.teller.publish(ctx) })
	wg.Go(func() { c.teller.follow(ctx, c.hear, nil) })
	wg.Go(func() { c.tick(ctx) })
	c.link.run(ctx, c.onEvent, c.linkState, c.session)
	wg.Wait()
	c.linkState(context.Cause(ctx))
	return context.Cause(ctx)
}

// Stats returns the present figures.
func (c *Caches) Stats() CachesStats {
	told := c.teller.snapshot()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Told = told
	return s
}

func (c *Caches) linkState(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Connected, c.stats.Error = err == nil, ""
	if err != nil {
		c.stats.Error = err.Error()
	}
}

// onEvent runs on the connection's reader and must not wait.
func (c *Caches) onEvent(e *esl.Event) {
	key, ok := deletedKey(e.Get("API-Command-Argument"))
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.until[key]; !known && len(c.until) >= maxCaches {
		c.stats.Dropped++
		return
	}
	c.until[key] = time.Now().Add(cacheTTL)
	c.teller.tell(State{Key: key, AOR: noUser, Epoch: c.core})
}

// deletedKey reads "delete directory:1002@a.test" and "flush". With files, FusionPBX's
// PHP writes a dot for each colon, as the name of the file has; its Lua does not.
func deletedKey(argument string) (key string, ok bool) {
	argument = strings.TrimSpace(argument)
	if argument == "flush" {
		return cacheFlush, true
	}
	key, ok = strings.CutPrefix(argument, "delete ")
	key = strings.TrimSpace(key)
	return key, ok && cacheKey.MatchString(key)
}

// hear takes what another node deleted; a repetition is nothing new.
func (c *Caches) hear(st State) {
	if st.Ended || st.Key != cacheFlush && !cacheKey.MatchString(st.Key) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k := heardKey{st.Node, st.Key}
	if h, ok := c.heard[k]; ok && h.run == st.Run && st.Change <= h.change {
		return
	} else if !ok && len(c.heard) >= maxCaches || len(c.due) >= maxCaches {
		c.stats.Dropped++
		return
	}
	c.heard[k] = heardCache{st.Run, st.Change, time.Now().Add(2 * cacheTTL)}
	c.due = append(c.due, st.Key)
	poke(c.wake)
}

// tick repeats what is ours, and forgets what is old.
func (c *Caches) tick(ctx context.Context) {
	t := time.NewTicker(cacheTTL / 10)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			c.mu.Lock()
			for key, until := range c.until {
				if !now.Before(until) {
					delete(c.until, key)
					c.teller.end(key, nil)
				}
			}
			for k, h := range c.heard {
				if !now.Before(h.until) {
					delete(c.heard, k)
				}
			}
			c.mu.Unlock()
			c.teller.repeat()
		}
	}
}

func (c *Caches) session(ctx context.Context, conn Conn) error {
	core, err := conn.API(ctx, "global_getvar core_uuid")
	if err != nil {
		return fmt.Errorf("ask for the switch's core uuid: %w", err)
	}
	c.mu.Lock()
	c.core = core
	c.mu.Unlock()
	if err := conn.Subscribe(ctx, nil, cacheClasses); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	for {
		key, ok := c.next()
		if !ok {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-c.wake:
				continue
			}
		}
		reply, err := conn.API(ctx, deleteScript(key))
		if conn.Err() != nil {
			c.again(key)
			return conn.Err()
		}
		c.mu.Lock()
		if err == nil && strings.HasPrefix(reply, "+OK") {
			c.stats.Deleted++
		}
		c.mu.Unlock()
		c.log.Debug("another node deleted from its cache", "key", key, "reply", reply, "err", err)
	}
}

func (c *Caches) next() (key string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.due) == 0 {
		return "", false
	}
	key = c.due[0]
	c.due = c.due[1:]
	return key, true
}

func (c *Caches) again(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.due = append(c.due, key)
}

// deleteScript is the api command that deletes key from the local FusionPBX's cache.
// Where the entry lies is in FusionPBX's configuration, which its Lua reads. Its own
// cache module is not used, because that would fire the event again.
func deleteScript(key string) string {
	const read = `lua ~if not pcall(require,"resources.functions.config") or not cache or not cache.method then stream:write("-ERR no FusionPBX") return end `
	if key == cacheFlush {
		return read + `if cache.method=="memcache" then freeswitch.API():execute("memcache","flush") ` +
			`elseif cache.location and string.match(cache.location,"^/[%w._-]+/[%w/._-]+$") then os.execute("find "..cache.location.." -maxdepth 1 -type f -delete") end stream:write("+OK")`
	}
	return read + `local k="` + key + `" if cache.method=="memcache" then freeswitch.API():execute("memcache","delete "..k) ` +
		`elseif cache.location then os.remove(cache.location.."/"..string.gsub(k,":",".")) end stream:write("+OK")`
}
