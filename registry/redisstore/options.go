package redisstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Options say where Redis is. Exactly one of URL, Addresses and
// SentinelAddresses names it.
type Options struct {
	// URL is one server: redis://host:port/db, rediss:// for TLS, unix:///path.
	URL string
	// Addresses are host:port of some nodes of a Redis Cluster.
	Addresses []string
	// SentinelAddresses are host:port of the Sentinels that watch SentinelMaster.
	SentinelAddresses []string
	SentinelMaster    string
	SentinelUsername  string
	SentinelPassword  string

	// Read, when not "", is a server near this daemon that follows the primary, in the forms
	// of URL: it is read while it is not far behind, and everything is written to the primary.
	// Username, Password and database are those of the primary. Not with Addresses.
	Read string

	// Behind is how far Read may be behind to be read, at least a renewal's time less than
	// after what a daemon counts as silent. Default and at most 1 s.
	Behind time.Duration

	// Username and Password are an ACL user's; they win over those in URL.
	Username, Password string

	// TLS, when not nil, is used for every connection but those to Read, where the scheme
	// rediss asks for it; with an empty ServerName the name that is dialled is verified.
	TLS *tls.Config

	// Secrets, when not nil, is asked at each new connection and stands for Password,
	// SentinelPassword and TLS, which may so change while the store is open. What was
	// connected stays so. It is called by several goroutines at a time, more than once
	// for a connection, and should not block.
	Secrets func() Secrets

	// Prefix starts every key; letters, digits, '.', '-' and '_'. Default
	// "pbxmesh". Two meshes on one Redis need two prefixes.
	Prefix string

	// Timeout bounds dialling, and one command beside the time it is told to
	// wait. Default 2 s.
	Timeout time.Duration

	// StreamLength is about how many batches of a node are kept for followers
	// that were away; one holds at most a writer's BatchSize records. Default
	// 2048.
	StreamLength int

	// GarbageTTL is how long what a node published outlives its last renewal.
	// Default 24 h.
	GarbageTTL time.Duration
}

func (o *Options) setDefaults() error {
	named := 0
	for _, is := range []bool{o.URL != "", len(o.Addresses) > 0, len(o.SentinelAddresses) > 0} {
		if is {
			named++
		}
	}
	if named != 1 {
		return errors.New("redis: name the store with exactly one of a URL, cluster addresses and sentinel addresses")
	}
	if len(o.SentinelAddresses) > 0 && o.SentinelMaster == "" {
		return errors.New("redis: sentinel addresses need the name of the primary that they watch")
	}
	if o.Read != "" && len(o.Addresses) > 0 {
		return errors.New("redis: a replica to read from is not offered with a Redis Cluster")
	}
	if o.Prefix == "" {
		o.Prefix = "pbxmesh"
	}
	for i := range len(o.Prefix) {
		c := o.Prefix[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(".-_", c) >= 0) {
			return fmt.Errorf("redis: the key prefix %+q may hold letters, digits, '.', '-' and '_' only", o.Prefix)
		}
	}
	if o.Timeout <= 0 {
		o.Timeout = 2 * time.Second
	}
	if o.Behind <= 0 || o.Behind > maxBehind {
		o.Behind = maxBehind
	}
	if o.StreamLength <= 0 {
		o.StreamLength = 2048
	}
	if o.GarbageTTL <= 0 {
		o.GarbageTTL = 24 * time.Hour
	}
	return nil
}

// The driver writes to standard error by itself. What it has to say is in the
// errors that it returns, and a store that is away for an hour would fill the
// log. It has one logger for the whole process and reads it without a lock, so
// only an init can change it safely.
func init() { redis.SetLogger(discard{}) }

type discard struct{}

func (discard) Printf(context.Context, string, ...any) {}

// universal returns what all clients have in common.
func (o *Options) universal(d *dialer) *redis.UniversalOptions {
	return &redis.UniversalOptions{
		// The cluster client appends to the slice it was given.
		Addrs: slices.Clone(o.Addresses), Dialer: d.dial, CredentialsProviderContext: d.credentials,
		ClientName: "pbxmesh", Protocol: 2, DisableIdentity: true,
		DialTimeout: o.Timeout, ReadTimeout: o.Timeout, WriteTimeout: o.Timeout, PoolTimeout: o.Timeout,
		// Without it a deadline of ours would not reach the connection.
		ContextTimeoutEnabled: true,
		// Every command may be repeated (see the scripts), and one repetition
		// hides a pooled connection that a restarted server forgot.
		MaxRetries: 1, MinRetryBackoff: 8 * time.Millisecond, MaxRetryBackoff: 64 * time.Millisecond,
		DialerRetries: 1,
		// In a cluster every followed node holds one connection while it waits.
		PoolSize:                 128,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
}

// client returns a client of the primary that has not dialled yet.
func (o *Options) client() (redis.UniversalClient, error) {
	d := &dialer{o: o}
	u := o.universal(d)
	switch {
	case o.URL != "":
		p, err := redis.ParseURL(o.URL)
		if err != nil {
			return nil, fmt.Errorf("redis: %w", err)
		}
		d.url = p
		s := u.Simple()
		s.Network, s.Addr, s.DB = p.Network, p.Addr, p.DB
		return redis.NewClient(s), nil
	case len(o.SentinelAddresses) > 0:
		u.Addrs, u.MasterName = slices.Clone(o.SentinelAddresses), o.SentinelMaster
		u.Dialer = d.dialSentinel
		client := redis.NewFailoverClient(u.Failover())
		client.AddHook(primaryDials{})
		return client, nil
	default:
		return redis.NewClusterClient(u.Cluster()), nil
	}
}

// nearClient returns a client of Read that has not dialled yet, nil when there is none.
func (o *Options) nearClient() (redis.UniversalClient, error) {
	if o.Read == "" {
		return nil, nil
	}
	p, err := redis.ParseURL(o.Read)
	if err != nil {
		return nil, fmt.Errorf("redis: the server to read from: %w", err)
	}
	db := 0
	if o.URL != "" {
		primary, err := redis.ParseURL(o.URL)
		if err != nil {
			return nil, fmt.Errorf("redis: %w", err)
		}
		db = primary.DB
	}
	if p.DB != 0 && p.DB != db {
		return nil, fmt.Errorf("redis: the server to read from is asked for database %d, the primary for %d", p.DB, db)
	}
	d := &dialer{o: o, url: p, near: true}
	s := o.universal(d).Simple()
	s.Network, s.Addr, s.DB = p.Network, p.Addr, db
	near := min(o.Timeout, replicaTimeout)
	s.DialTimeout, s.ReadTimeout, s.WriteTimeout, s.PoolTimeout = near, near, near, near
	return redis.NewClient(s), nil
}
