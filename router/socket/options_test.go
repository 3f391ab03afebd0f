package socket

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pbxmesh/router"
)

func TestObserveAndLog(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var records []Record
	var logged bytes.Buffer
	_, addr := start(t, func(o *Options) {
		o.LogCalls = true
		o.Logger = slog.New(slog.NewTextHandler(&lockedWriter{mu: &mu, w: &logged}, nil))
		o.Observe = func(r Record) { mu.Lock(); records = append(records, r); mu.Unlock() }
	})
	dialling("1003", events("execute-complete-failed")).dial(t, addr).wait()
	dialling("1,2\n").dial(t, addr).wait()
	mu.Lock()
	defer mu.Unlock()
	if len(records) != 2 {
		t.Fatalf("%d records", len(records))
	}
	r := records[0]
	if r.AOR.String() != "1003@pbx.test" || r.Outcome != Routed || fmt.Sprint(r.Nodes) != "[buffalo london]" || r.Total < r.Decision || r.Decision <= 0 {
		t.Errorf("record %+v", r)
	}
	if r := records[1]; !r.AOR.IsZero() || r.Outcome != Invalid || r.Cause != "INVALID_NUMBER_FORMAT" {
		t.Errorf("record %+v", r)
	}
	for _, want := range []string{"aor=1003@pbx.test result=routed cause=NONE nodes=buffalo,london from_mesh=false", "result=invalid", "component=socket"} {
		if !strings.Contains(logged.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, logged.String())
		}
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// TestWrongModeIsNamed: a dialplan without `async full` is told so in the log.
func TestWrongModeIsNamed(t *testing.T) {
	t.Parallel()
	for header, value := range map[string]string{"Socket-Mode": "static", "Control": "single-channel"} {
		var mu sync.Mutex
		var logged bytes.Buffer
		_, addr := start(t, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&lockedWriter{mu: &mu, w: &logged}, nil)) })
		dialling("1009", with(header, value)).dial(t, addr).wait()
		mu.Lock()
		if !strings.Contains(logged.String(), "async full") || !strings.Contains(logged.String(), value) {
			t.Errorf("%s: the log says %s", header, logged.String())
		}
		mu.Unlock()
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	good := Options{Directory: directoryFunc(users), Nodes: nodesFunc(towns), Local: "buffalo"}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Options){
		"Directory":     func(o *Options) { o.Directory = nil },
		"Nodes":         func(o *Options) { o.Nodes = nil },
		"local node":    func(o *Options) { o.Local = "" },
		"node name":     func(o *Options) { o.Local = "Buffalo" },
		"mesh profile":  func(o *Options) { o.Bridge.MeshProfile = "a,b" },
		"local profile": func(o *Options) { o.Bridge = router.BridgeOptions{LocalProfile: "mesh"} },
		"domain":        func(o *Options) { o.Domain = "pbx.test,x" },
		"negative":      func(o *Options) { o.Budget = -1 },
	} {
		o := good
		change(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), strings.Fields(name)[0]) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	o := good
	o.Budget, o.ConnectTimeout = 100*time.Millisecond, time.Hour
	if o, err := o.withDefaults(); err != nil || o.ConnectTimeout != 75*time.Millisecond {
		t.Errorf("ConnectTimeout %v, %v", o.ConnectTimeout, err)
	}
	o = good
	o.Budget = 10 * time.Second // a slow switch gets its share of a larger budget
	if o, err := o.withDefaults(); err != nil || o.ConnectTimeout != 4*time.Second {
		t.Errorf("ConnectTimeout %v, %v", o.ConnectTimeout, err)
	}
	if o, _ := good.withDefaults(); o.Budget != time.Second || o.ConnectTimeout+o.DecisionTimeout >= o.Budget {
		t.Errorf("the defaults leave no time for commands: %+v", o)
	}
}

func TestVocabulary(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{
		testUUID: true, "": false, "5ea7a1dd-e7932921@192.0.2.10": true, "my-call-1": true, "my call": true, "z97<8df>6d~8g6+7sdg@h": true,
		"a%41&=;b": true, `it's "x"`: true, "\xff\xfe@h": true, "2f036e00-7eb9-44a5-9c03-aadb99d875\n8": false, "a\x00": false, "\x7f": false,
		strings.Repeat("-", 256): true, strings.Repeat("-", 257): false,
	} {
		if validUUID(s) != want {
			t.Errorf("validUUID(%q) is %v", s, !want)
		}
	}
	for s, want := range map[string]bool{
		"NO_USER_RESPONSE": true, "RECOVERY_ON_TIMER_EXPIRE": true, "": false, "failure": false, "A;B": false, "A\nB": false,
		"A B": false, strings.Repeat("A", maxCauseLen+1): false, "${X}": false,
	} {
		if validCause(s) != want {
			t.Errorf("validCause(%q) is %v", s, !want)
		}
	}
	for uuid, want := range map[string][]string{
		testUUID:                       {"uuid_setvar_multi " + testUUID + " pbxmesh_result=failed;pbxmesh_cause=NORMAL_UNSPECIFIED;a=true;b="},
		"5ea7a1dd-e7932921@192.0.2.10": {"uuid_setvar_multi 5ea7a1dd-e7932921@192.0.2.10 pbxmesh_result=failed;pbxmesh_cause=NORMAL_UNSPECIFIED;a=true;b="},
		`<'x\"&;=>`:                    {`uuid_setvar_multi <'x\"&;=> pbxmesh_result=failed;pbxmesh_cause=NORMAL_UNSPECIFIED;a=true;b=`},
		"my call":                      {"uuid_setvar 'my call' pbxmesh_result failed", "uuid_setvar 'my call' pbxmesh_cause NORMAL_UNSPECIFIED", "uuid_setvar 'my call' a true", "uuid_setvar 'my call' b"},
		"my call's":                    nil, `my \call`: nil, "a\nb": nil, " a": nil,
	} {
		if got := setCommands(uuid, Failed, "x;y", []variable{{"a", "true"}, {"b", ""}}); !slices.Equal(got, want) {
			t.Errorf("%q: commands %q, want %q", uuid, got, want)
		}
	}
	for r, want := range map[router.Result]Outcome{
		router.ResultNotRegistered: NotRegistered, router.ResultUnreachable: Unreachable, router.ResultInvalid: Invalid, router.ResultRouted: Unreachable,
	} {
		if got, cause := giveBackFor(r); got != want || !validCause(cause) {
			t.Errorf("%s: %s, %s", r, got, cause)
		}
	}
}
