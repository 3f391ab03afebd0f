package esl

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/percipia/eslgo"
)

// link is an attached eslgo connection and our end of the socket to it.
type link struct {
	conn   *eslgo.Conn
	inner  net.Conn
	secret string        // eslgo's password towards the guard
	gone   chan struct{} // closed when eslgo has closed itself
}

// What the guard says to eslgo.
const (
	wireAuthRequest = "Content-Type: auth/request\n\n"
	wireAuthOK      = "Content-Type: command/reply\nReply-Text: +OK accepted\n\n"
	wireAuthRefused = "Content-Type: command/reply\nReply-Text: -ERR invalid\n\nContent-Type: command/reply\nReply-Text: +OK bye\n\n"
	wireDisconnect  = "Content-Type: text/disconnect-notice\n\n"
)

// attach starts an eslgo connection whose network is a private socket pair.
//
// eslgo can only dial, so there is a listener for the time of one connection.
// Nobody else can take part: on Linux the peer's process is checked, elsewhere
// the socket lies in a directory that only we may enter. After the dial nothing
// here has a deadline, because both ends are ours and eslgo could not be told to
// give up: it waits for its greeting for ever, even where nobody can accept its
// connection for want of descriptors. So two are set aside before it dials; should
// others be quicker, release gives up what the caller holds, and as a last resort
// the connection is accepted later, behind the caller's back.
func attach(log eslgo.Logger, release func()) (*link, error) {
	unreserve, err := reserveDescriptors()
	if err != nil {
		return nil, err
	}
	ln, cleanup, err := listenPrivate()
	if err != nil {
		unreserve()
		cleanup()
		return nil, fmt.Errorf("open a private socket: %w", err)
	}
	l := &link{secret: rand.Text(), gone: make(chan struct{})}
	opts := eslgo.InboundOptions{
		Options: eslgo.Options{
			Context:     context.Background(), //nolint:contextcheck // ended by the guard, see session.detach
			Logger:      log,
			ExitTimeout: time.Second,
		},
		Network:      "unix",
		Password:     l.secret,
		OnDisconnect: func() { close(l.gone) },
		AuthTimeout:  time.Hour, // the guard answers; see session.detach for the second time
	}
	dialled := make(chan error, 1)
	unreserve()
	go func() {
		conn, err := opts.Dial(ln.Addr().String())
		if err != nil {
			ln.Close() // ends Accept
		}
		l.conn = conn
		dialled <- err
	}()
	const tries = 200 // one second
	inner, err := acceptSelf(ln, tries, release)
	switch {
	case errors.Is(err, net.ErrClosed):
		cleanup()
		return nil, fmt.Errorf("attach to the private socket: %w", <-dialled)
	case err != nil:
		go abandon(ln, cleanup, dialled)
		return nil, fmt.Errorf("attach to the private socket: %w", err)
	}
	cleanup()
	l.inner = inner
	if err := answerAuth(inner, l.secret, wireAuthOK); err != nil {
		inner.Close()
		return nil, fmt.Errorf("attach to the private socket: %w", err)
	}
	if err := <-dialled; err != nil {
		inner.Close()
		return nil, fmt.Errorf("attach to the private socket: %w", err)
	}
	return l, nil
}

// reserveDescriptors makes sure that there are two, which the caller then frees.
func reserveDescriptors() (free func(), err error) {
	a, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("no file descriptors left (raise the limit, LimitNOFILE): %w", err)
	}
	b, err := os.Open(os.DevNull)
	if err != nil {
		a.Close()
		return nil, fmt.Errorf("no file descriptors left (raise the limit, LimitNOFILE): %w", err)
	}
	return func() {
		a.Close()
		b.Close()
	}, nil
}

// abandon accepts an eslgo whose session has failed, as soon as that is possible,
// and refuses its password, which makes it close. It ends with eslgo's dial.
func abandon(ln net.Listener, cleanup func(), dialled <-chan error) {
	defer cleanup()
	const ever = 1 << 62
	inner, err := acceptSelf(ln, ever, func() {})
	if err == nil {
		_ = answerAuth(inner, "", wireAuthRefused)
		_, _ = io.Copy(io.Discard, inner)
		inner.Close()
	}
	<-dialled //nolint:errcheck // a refused attachment is what was asked for
}

func listenPrivate() (ln net.Listener, cleanup func(), err error) {
	if runtime.GOOS == "linux" {
		// The abstract name space leaves nothing behind in a file system.
		ln, err = net.Listen("unix", "@pbxmesh-esl-"+rand.Text())
		return ln, func() {
			if ln != nil {
				ln.Close()
			}
		}, err
	}
	dir, err := os.MkdirTemp("", "esl") // mode 0700
	if err != nil {
		return nil, func() {}, err
	}
	ln, err = net.Listen("unix", filepath.Join(dir, "s"))
	return ln, func() {
		if ln != nil {
			ln.Close()
		}
		os.RemoveAll(dir)
	}, err
}

// acceptSelf returns the connection that comes from this process. An error is
// net.ErrClosed, or that of the last try.
func acceptSelf(ln net.Listener, tries int, release func()) (net.Conn, error) {
	for try := 1; ; try++ {
		c, err := ln.Accept()
		switch {
		case err == nil && isSelf(c):
			return c, nil
		case err == nil:
			c.Close()
		case errors.Is(err, net.ErrClosed) || try >= tries:
			return nil, err
		default: // no descriptors left: give back what we hold and try again
			release()
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// answerAuth plays the greeting to eslgo's end. An empty secret takes any.
func answerAuth(c net.Conn, secret, answer string) error {
	if _, err := io.WriteString(c, wireAuthRequest); err != nil {
		return err
	}
	r := bufio.NewReaderSize(c, 64) // eslgo says no more than this before Dial returns
	line, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	if secret != "" && strings.TrimSpace(line) != "auth "+secret {
		return errors.New("the peer does not know the secret of this connection")
	}
	if _, err := r.ReadString('\n'); err != nil {
		return err
	}
	_, err = io.WriteString(c, answer)
	return err
}
