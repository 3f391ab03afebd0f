package esl

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"
)

// TestFarewellIsNotTheAnswer: a switch that never answered the last command may
// still answer the farewell. That is no answer to the command.
func TestFarewellIsNotTheAnswer(t *testing.T) {
	t.Parallel()
	peer, sw := net.Pipe()
	t.Cleanup(func() { sw.Close() })
	read := make(chan struct{})
	s, err := newSession(peer, newFrameReader(peer, 0, callBuffer), sessionConfig{
		commandTimeout: waitLong, log: slog.New(slog.DiscardHandler), label: "the switch",
		onEvent: func(*Event) { close(read) },
		farewell: func() string {
			// The event behind the answer tells that the answer was looked at.
			_, _ = sw.Write([]byte("Content-Type: command/reply\nReply-Text: +OK\n\n" +
				"Content-Type: text/event-plain\nContent-Length: 28\n\nEvent-Name: CHANNEL_PARK\n\n\n\n"))
			select {
			case <-read:
			case <-time.After(waitLong):
				t.Error("the event did not arrive")
			}
			return ""
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() { // a switch that takes the command and says nothing
		_, _ = bufio.NewReader(sw).ReadString('\n')
		cancel(errors.New("out of time"))
	}()
	if answer, err := s.api(ctx, "status"); !errors.Is(err, ErrTimeout) {
		t.Errorf("the command returned %q, %v; want ErrTimeout", answer, err)
	}
}
