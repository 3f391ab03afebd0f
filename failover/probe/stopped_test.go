package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
)

// envObserver makes this test binary an observer of the nodes in its value.
const envObserver = "PBXMESH_PROBE_OBSERVER"

// runObserver probes until its standard input ends and prints one line for each result.
func runObserver(text string) int {
	var nodes []pbxmesh.Node
	if err := json.Unmarshal([]byte(text), &nodes); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	lines := make(chan string, 10_000)
	p, err := New(Options{Interval: 800 * time.Millisecond, OnResult: func(r failover.ProbeResult) {
		lines <- fmt.Sprintln(r.Outcome, r.Node, r.Sent, r.RTT)
	}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p.SetMembers(nodes)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		cancel()
	}()
	go func() {
		for line := range lines {
			_, _ = os.Stdout.WriteString(line)
		}
	}()
	if err := p.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// TestStoppedObserver stops a real observer for three seconds while its probes are under
// way: of nodes that answer it never says that they do not.
func TestStoppedObserver(t *testing.T) {
	t.Parallel()
	var nodes []pbxmesh.Node
	for i := range 60 {
		r := newResponder(t, "127.0.0.1", "200 OK")
		r.delay.Store(int64(200 * time.Millisecond)) // a quarter of the probes is under way
		nodes = append(nodes, r.node(pbxmesh.NodeID(fmt.Sprint("n", i))))
	}
	text, err := json.Marshal(nodes)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), envObserver+"="+string(text))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGCONT)
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}()
	lines := bufio.NewScanner(stdout)
	seen := make(map[string]int)
	results := func(n int) {
		for range n {
			if !lines.Scan() {
				t.Fatalf("the observer ended: %v", lines.Err())
			}
			var outcome, node string
			if _, err := fmt.Sscan(lines.Text(), &outcome, &node); err != nil {
				t.Fatalf("%q: %v", lines.Text(), err)
			}
			seen[outcome]++
		}
	}
	// On a busy machine the nodes themselves, which are here, may answer too late: then it
	// is tried again. The fault that this is about shows every time.
	for try := 1; ; try++ {
		results(120) // all are measured, so the wait is some 600 ms
		if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		<-time.After(3 * time.Second)
		if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		clear(seen)
		results(60)
		t.Log(seen)
		if seen["ok"]+seen["late"] == 60 && seen["ok"] >= 10 {
			return
		}
		if try == 5 {
			t.Fatalf("of nodes that answer an observer that was stopped says %v", seen)
		}
	}
}
