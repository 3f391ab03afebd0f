package esl

import (
	"errors"
	"fmt"
	"strings"
)

// Sentinel errors; compare with errors.Is. What wraps them names the address.
var (
	// ErrACL reports that the switch turned our address away before it asked for
	// a password.
	ErrACL = errors.New("FreeSWITCH refused us by ACL: add this host to the list that apply-inbound-acl " +
		"names in event_socket.conf.xml (without one: loopback only), then run `fs_cli -x reloadacl`")

	// ErrAuth reports a refused password.
	ErrAuth = errors.New("FreeSWITCH refused our password: the event socket password we are given (its password file) " +
		"must equal the `password` parameter in event_socket.conf.xml")

	// ErrNoGreeting reports a peer that took the connection and did not greet in
	// time, or greeted with something that is no event socket.
	ErrNoGreeting = errors.New("no event socket greeting: check that the address is listen-ip and listen-port of " +
		"event_socket.conf.xml and that the switch is not hung")

	// ErrTimeout reports a command without an answer in time. The connection is
	// closed with it, because the late answer would look like the next one's.
	ErrTimeout = errors.New("no answer from FreeSWITCH in time: the switch is hung, overloaded or unreachable; the connection is given up")

	// ErrClosed reports a connection that has ended; the wrapped text says why.
	ErrClosed = errors.New("event socket connection is closed")

	// ErrInvalidCommand reports a command that was not sent, because it holds
	// what the event socket would misread.
	ErrInvalidCommand = errors.New("invalid event socket command")

	// ErrProtocol reports bytes that cannot be the event socket protocol. The
	// connection is closed with it: there is no way back into step.
	ErrProtocol = errors.New("broken event socket frame: the peer is not FreeSWITCH's event socket, or a frame is over our bound")
)

// ReplyError is an answer in which the switch says no: "-ERR ..." or "-USAGE ...".
// The connection is well.
type ReplyError struct {
	Command string // what was asked, cut to its first word or two
	Text    string // what was answered, one line
}

// Error returns both, with control characters escaped.
func (e *ReplyError) Error() string {
	return fmt.Sprintf("FreeSWITCH answers %s with %s", shorten(e.Command), shorten(e.Text))
}

// replyError returns a *ReplyError when text is a refusal, nil otherwise.
func replyError(command, text string) error {
	if !strings.HasPrefix(text, "-ERR") && !strings.HasPrefix(text, "-USAGE") {
		return nil
	}
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return &ReplyError{Command: command, Text: line}
}

// shorten quotes what came from outside for an error: ASCII, at most 80 bytes.
func shorten(s string) string {
	const limit = 80
	if len(s) > limit {
		return fmt.Sprintf("%+q...", s[:limit])
	}
	return fmt.Sprintf("%+q", s)
}
