package esl

import (
	"fmt"
	"strconv"
	"strings"
)

// Bounds of what we send, in bytes.
const (
	maxCommand    = 1 << 20
	maxHeaderName = 128
)

// message is a command in wire form, ready to be sent: it ends in a blank line or
// in its body. It implements eslgo's command.Command.
type message string

// BuildMessage implements command.Command. eslgo adds its own end of message,
// which the guard takes away again.
func (m message) BuildMessage() string { return string(m) }

// lineMessage returns a command of one line.
func lineMessage(line string) (message, error) {
	if err := checkText("the command", line); err != nil {
		return "", err
	}
	if strings.TrimSpace(line) != line || line == "" {
		return "", fmt.Errorf("%w: %s is empty or has blanks around it", ErrInvalidCommand, shorten(line))
	}
	if len(line) > maxCommand {
		return "", fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrInvalidCommand, len(line), maxCommand)
	}
	return message(line + "\n\n"), nil
}

// headerMessage returns a command with headers and a body, whose length is
// announced. A header of ours named Content-Length is refused: two of them would
// let a value choose where the body ends.
func headerMessage(line string, headers []Header, body []byte) (message, error) {
	first, err := lineMessage(line)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString(string(first[:len(first)-1]))
	for _, h := range headers {
		if err := checkName(h.Name); err != nil {
			return "", err
		}
		if err := checkText("the value of "+h.Name, h.Value); err != nil {
			return "", err
		}
		b.WriteString(h.Name)
		b.WriteString(": ")
		b.WriteString(h.Value)
		b.WriteByte('\n')
	}
	if len(body) > 0 {
		b.WriteString("content-length: ")
		b.WriteString(strconv.Itoa(len(body)))
		b.WriteString("\n\n")
		b.Write(body)
	} else {
		b.WriteByte('\n')
	}
	if b.Len() > maxCommand {
		return "", fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrInvalidCommand, b.Len(), maxCommand)
	}
	return message(b.String()), nil
}

// checkText refuses control characters: a line break in a value ends the line, a
// blank line the packet, and what follows would be read as a command of its own.
func checkText(what, s string) error {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == 0x7f {
			return fmt.Errorf("%w: control character %+q at byte %d of %s", ErrInvalidCommand, s[i:i+1], i, shorten(what))
		}
	}
	return nil
}

// checkName allows what RFC 9110 section 5.6.2 calls a token.
func checkName(name string) error {
	if name == "" || len(name) > maxHeaderName {
		return fmt.Errorf("%w: header name of %d bytes, 1 to %d are allowed", ErrInvalidCommand, len(name), maxHeaderName)
	}
	for i := range len(name) {
		if !isToken(name[i]) {
			return fmt.Errorf("%w: header name %s", ErrInvalidCommand, shorten(name))
		}
	}
	if strings.EqualFold(name, "Content-Length") {
		return fmt.Errorf("%w: Content-Length is set from the body", ErrInvalidCommand)
	}
	return nil
}

func isToken(c byte) bool {
	return isWord(c) || strings.IndexByte("!#$%&'*+.^|~-", c) >= 0
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
}

// checkWord allows an event name or an application name, and with extra more
// bytes for a subclass.
func checkWord(what, word, extra string) error {
	if word == "" {
		return fmt.Errorf("%w: %s is empty", ErrInvalidCommand, what)
	}
	for i := range len(word) {
		if c := word[i]; !isWord(c) && strings.IndexByte(extra, c) < 0 {
			return fmt.Errorf("%w: %s %s", ErrInvalidCommand, what, shorten(word))
		}
	}
	return nil
}

// subscribeMessage puts plain events first: everything after the word CUSTOM is
// read as a subclass.
func subscribeMessage(events, subclasses []string) (message, error) {
	if len(events)+len(subclasses) == 0 {
		return "", fmt.Errorf("%w: no event to subscribe to", ErrInvalidCommand)
	}
	words := []string{"event", "plain"}
	for _, e := range events {
		if err := checkWord("event name", e, ""); err != nil {
			return "", err
		}
		if strings.EqualFold(e, "CUSTOM") {
			return "", fmt.Errorf("%w: CUSTOM is no event of its own; name its subclasses", ErrInvalidCommand)
		}
		words = append(words, e)
	}
	if len(subclasses) > 0 {
		words = append(words, "CUSTOM")
	}
	for _, s := range subclasses {
		if err := checkWord("event subclass", s, ":.-"); err != nil {
			return "", err
		}
		words = append(words, s)
	}
	return lineMessage(strings.Join(words, " "))
}
