package esl

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// TestAPIRecordings plays every recorded API reply and expects it back whole.
func TestAPIRecordings(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("testdata/api-replies.txt")
	if err != nil {
		t.Fatal(err)
	}
	replies := map[string]string{}
	var commands []string
	for _, section := range strings.Split("\n"+string(b), "\n## ")[1:] {
		command, reply, _ := strings.Cut(section, "\n")
		replies[command] = reply
		commands = append(commands, command)
	}
	if len(commands) < 20 {
		t.Fatalf("%d replies recorded", len(commands))
	}
	sw := newTestSwitch(t, func(w *wire) {
		if !w.greet() {
			return
		}
		for {
			lines, _, err := w.command()
			if err != nil {
				return
			}
			w.api(replies[strings.TrimPrefix(lines[0], "api ")])
		}
	})
	c := dialTest(t, Config{Address: sw.addr()})
	for _, command := range commands {
		got, err := c.API(testContext(t), command)
		if command == "nosuchcommand" {
			var refused *ReplyError
			if !errors.As(err, &refused) || refused.Command != command || !strings.Contains(err.Error(), "Command not found") {
				t.Errorf("%s: %q, %v", command, got, err)
			}
			continue
		}
		if want := strings.TrimRight(replies[command], "\n"); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", command, got, err, want)
		}
	}
}

// FuzzMessage: whatever is asked for, a message that is sent is one command: it has
// one blank line, before its body, and its lines are the ones asked for.
func FuzzMessage(f *testing.F) {
	f.Add("sendevent CUSTOM", "Event-Subclass", "multicast::event", []byte(nil))
	f.Add("sendmsg", "execute-app-arg", "sofia/mesh/sip:1002@pbx.test|error/x", []byte("body\n\nbody"))
	f.Fuzz(func(t *testing.T, line, name, value string, body []byte) {
		m, err := headerMessage(line, []Header{{name, value}}, body)
		if err != nil {
			if !isInvalid(err) || m != "" {
				t.Fatalf("%q, %v", m, err)
			}
			return
		}
		head, rest, ok := strings.Cut(string(m), "\n\n")
		if !ok || rest != string(body) {
			t.Fatalf("%q: the body is %q, want %q", m, rest, body)
		}
		lines := strings.Split(head, "\n")
		want := 2
		if len(body) > 0 {
			want = 3
		}
		if len(lines) != want || lines[0] != line || lines[1] != name+": "+value {
			t.Fatalf("%q has the lines %q", m, lines)
		}
		if strings.ContainsAny(head, "\r\x00") {
			t.Fatalf("%q holds a control character", m)
		}
	})
}
