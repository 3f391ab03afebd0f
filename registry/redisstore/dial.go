package redisstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Secrets are what a new connection shows, and whom it trusts.
type Secrets struct {
	Password         string
	SentinelPassword string

	// TLS is nil for connections without it, unless the URL says rediss.
	TLS *tls.Config

	// ReadTLS is used for Options.Read when it says rediss; nil for TLS.
	ReadTLS *tls.Config
}

// now returns what a connection that is made now uses.
func (o *Options) now() Secrets {
	if o.Secrets != nil {
		return o.Secrets()
	}
	return Secrets{Password: o.Password, SentinelPassword: o.SentinelPassword, TLS: o.TLS}
}

// dialer makes the connections of one store. The driver's own would keep the TLS
// configuration and the Sentinels' password of the beginning.
type dialer struct {
	o    *Options
	url  *redis.Options // what the URL says; nil without one
	near bool           // the URL is Options.Read
}

// tls returns the configuration of a connection that is made now, nil for none.
func (d *dialer) tls() *tls.Config {
	s := d.o.now()
	switch {
	case d.near && d.url.TLSConfig == nil:
		return nil
	case d.near && s.ReadTLS != nil:
		return s.ReadTLS
	case s.TLS != nil:
		return s.TLS
	case d.url != nil:
		return d.url.TLSConfig
	default:
		return nil
	}
}

// credentials is asked by the driver at each new connection to a server of records.
func (d *dialer) credentials(context.Context) (username, password string, err error) {
	username, password = d.o.Username, d.o.now().Password
	if username == "" && password == "" && d.url != nil {
		username, password = d.url.Username, d.url.Password
	}
	return username, password, nil
}

// keepAlive finds a server that is gone without a word: the driver's own values.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 5 * time.Second, Count: 3}

// dial connects, bounded by ctx and by Options.Timeout. With TLS the name in the
// configuration is verified, or else the one that is dialled, which may be an address.
func (d *dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	config := d.tls()
	plain := &net.Dialer{Timeout: d.o.Timeout, KeepAliveConfig: keepAlive}
	if config == nil {
		return plain.DialContext(ctx, network, addr)
	}
	return (&tls.Dialer{NetDialer: plain, Config: config}).DialContext(ctx, network, addr)
}

// toPrimary is the network of dials to the primary that Sentinel named, before dialSentinel
// makes it tcp. The driver has one dialer for both and tells it nothing else that differs.
const toPrimary = "tcp to the primary"

// primaryDials is a hook of the client for the primary, which the Sentinels' clients do
// not have.
type primaryDials struct{}

// DialHook implements redis.Hook.
func (primaryDials) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, _, addr string) (net.Conn, error) { return next(ctx, toPrimary, addr) }
}

// ProcessHook implements redis.Hook.
func (primaryDials) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

// ProcessPipelineHook implements redis.Hook.
func (primaryDials) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// dialSentinel dials the primary, or a Sentinel, to which it says the password itself:
// the driver would say the one that it was made with.
func (d *dialer) dialSentinel(ctx context.Context, network, addr string) (net.Conn, error) {
	if network == toPrimary {
		return d.dial(ctx, "tcp", addr)
	}
	conn, err := d.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	password := d.o.now().SentinelPassword
	if password == "" && d.o.SentinelUsername == "" {
		return conn, nil
	}
	_ = conn.SetDeadline(time.Now().Add(d.o.Timeout))
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = authenticate(conn, d.o.SentinelUsername, password)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("authenticate at the Sentinel %s: %w", addr, err)
	}
	_ = conn.SetDeadline(time.Time{})
	return conn, nil
}

// maxReply bounds the answer to AUTH, which is one line.
const maxReply = 1024

// authenticate sends AUTH on a connection that nothing was sent on. Without a username
// the password is the default user's.
func authenticate(conn net.Conn, username, password string) error {
	args := []string{"AUTH", username, password}
	if username == "" {
		args = []string{"AUTH", password}
	}
	var ask strings.Builder
	fmt.Fprintf(&ask, "*%d\r\n", len(args))
	for _, arg := range args {
		fmt.Fprintf(&ask, "$%d\r\n%s\r\n", len(arg), arg)
	}
	if _, err := conn.Write([]byte(ask.String())); err != nil {
		return err
	}
	// One byte at a time: what follows the line is the driver's.
	var reply []byte
	for b := make([]byte, 1); len(reply) < maxReply; reply = append(reply, b[0]) {
		if _, err := conn.Read(b); err != nil {
			return err
		}
		if b[0] != '\n' {
			continue
		}
		if line := strings.TrimRight(string(reply), "\r"); line != "+OK" {
			return errors.New(strings.TrimPrefix(line, "-"))
		}
		return nil
	}
	return errors.New("the answer to AUTH has no end")
}
