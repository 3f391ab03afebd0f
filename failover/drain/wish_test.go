package drain

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pbxmesh"
)

// valid is a wish within every bound.
func valid() Wish {
	return Wish{
		Node: "london", Wanted: pbxmesh.WantedDraining, Rev: 7, At: start.Add(time.Hour), Turn: 5, Since: start,
		By: "alice@jumphost", Reason: "new kernel", Force: true,
	}
}

func TestWishRoundTrip(t *testing.T) {
	t.Parallel()
	elsewhere := time.FixedZone("", 5*3600)
	for name, change := range map[string]func(*Wish){
		"everything set": func(*Wish) {},
		"in service":     func(w *Wish) { w.Wanted, w.By, w.Reason, w.Force = pbxmesh.WantedInService, "", "", false },
		"out":            func(w *Wish) { w.Wanted = pbxmesh.WantedOut },
		"first one":      func(w *Wish) { w.Rev, w.Turn, w.At = 1, 1, w.Since },
		"last number":    func(w *Wish) { w.Rev = 1 << 53 },
		"another zone":   func(w *Wish) { w.At, w.Since = w.At.In(elsewhere), w.Since.In(elsewhere) },
		"letters of all": func(w *Wish) { w.Reason = "Grüße, \u4f60\u597d \u2014 \"<&>\" \\" },
		// JSON writes six bytes for each of these.
		"longest texts": func(w *Wish) {
			w.By, w.Reason = strings.Repeat("<", MaxByLen), strings.Repeat("&", MaxReasonLen)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := valid()
			change(&w)
			text, err := w.Encode()
			if err != nil {
				t.Fatal(err)
			}
			got, err := DecodeWish("london", text)
			if err != nil || !got.At.Equal(w.At) || !got.Since.Equal(w.Since) {
				t.Fatalf("%s is read as %+v, %v", text, got, err)
			}
			got.At, got.Since = w.At, w.Since
			if got != w {
				t.Errorf("read again: %+v, want %+v", got, w)
			}
		})
	}
}

// Every refusal, with what it says.
func TestWishOutOfBounds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*Wish)
		says   string
	}{
		"no node":          {func(w *Wish) { w.Node = "" }, `node ""`},
		"node in capitals": {func(w *Wish) { w.Node = "London" }, `node "London"`},
		"unknown state":    {func(w *Wish) { w.Wanted = pbxmesh.WantedOut + 1 }, "london wants 3, number 7 since 5"},
		"no number":        {func(w *Wish) { w.Rev, w.Turn = 0, 0 }, "number 0 since 0"},
		"number too high":  {func(w *Wish) { w.Rev = 1<<53 + 1 }, "number 9007199254740993 since 5"},
		"no turn":          {func(w *Wish) { w.Turn = 0 }, "number 7 since 0"},
		"turn after it":    {func(w *Wish) { w.Turn = 8 }, "number 7 since 8"},
		"no time":          {func(w *Wish) { w.At = time.Time{} }, "said in the year 1"},
		"clock at zero":    {func(w *Wish) { w.Since = time.Unix(0, 0) }, "said in the year 1970"},
		"the year in UTC": {func(w *Wish) {
			w.At = time.Date(2000, 1, 1, 0, 30, 0, 0, time.FixedZone("", 3600))
		}, "said in the year 1999"},
		"far future":  {func(w *Wish) { w.At = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, "said in the year 10000"},
		"long name":   {func(w *Wish) { w.By = strings.Repeat("x", MaxByLen+1) }, "the name of who wants it has 129 bytes, at most 128 are allowed"},
		"long reason": {func(w *Wish) { w.Reason = strings.Repeat("x", MaxReasonLen+1) }, "the reason has 257 bytes, at most 256 are allowed"},
		"escape":      {func(w *Wish) { w.By = "\x1b[2J" }, "the name of who wants it has characters that cannot be printed"},
		"new line":    {func(w *Wish) { w.Reason = "a\nb" }, "the reason has characters that cannot be printed"},
		"C1 control":  {func(w *Wish) { w.Reason = "a\u009bb" }, "the reason has characters that cannot be printed"},
		"separator":   {func(w *Wish) { w.Reason = "a\u2028b" }, "the reason has characters that cannot be printed"},
		"no UTF-8":    {func(w *Wish) { w.Reason = "a\xffb" }, "the reason has characters that cannot be printed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := valid()
			tc.change(&w)
			text, err := w.Encode()
			if !errors.Is(err, ErrWish) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("encoded as %s, %v; want %q", text, err, tc.says)
			}
		})
	}
}

func TestDecodeWishRefuses(t *testing.T) {
	t.Parallel()
	w := valid()
	good, err := w.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ text, says string }{
		"nothing":         {"", "unexpected end of JSON input"},
		"no object":       {"[]", "cannot unmarshal array"},
		"null":            {"null", `version 0, node "", wanted ""`},
		"another version": {strings.Replace(good, `"v":1`, `"v":2`, 1), "version 2"},
		"another node":    {strings.Replace(good, "london", "buffalo", 1), `node "buffalo"`},
		"another word":    {strings.Replace(good, "draining", "asleep", 1), `wanted "asleep"`},
		"number below 0":  {strings.Replace(good, `"rev":7`, `"rev":-7`, 1), "cannot unmarshal number"},
		"number too high": {strings.Replace(good, `"rev":7`, `"rev":9007199254740993`, 1), "number 9007199254740993"},
		"no time":         {strings.Replace(good, `"at":"2026-11-26T23:00:00Z"`, `"at":"yesterday"`, 1), "parsing time"},
		"too long":        {good + strings.Repeat(" ", maxWishLen), "at most 4096 are allowed"},
		"an escape":       {strings.Replace(good, "alice", `\u001b[2J`, 1), "cannot be printed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.text == good {
				t.Fatal("nothing was changed")
			}
			got, err := DecodeWish("london", tc.text)
			if !errors.Is(err, ErrWish) || !strings.Contains(err.Error(), tc.says) || got != (Wish{}) {
				t.Errorf("read as %+v, %v; want %q", got, err, tc.says)
			}
		})
	}
}

// Whatever is heard first, everybody comes to the same wish.
func TestNewerIsATotalOrder(t *testing.T) {
	t.Parallel()
	change := func(f func(*Wish)) Wish {
		w := valid()
		f(&w)
		return w
	}
	// Each one is newer than all before it.
	order := []Wish{
		change(func(w *Wish) { w.Rev, w.At = 6, w.At.Add(time.Hour) }), // a number beats a clock
		change(func(*Wish) {}),
		change(func(w *Wish) { w.By = "bob" }),
		change(func(w *Wish) { w.By, w.Reason = "bob", "z" }),
		change(func(w *Wish) { w.Wanted, w.By = pbxmesh.WantedOut, "" }),
		change(func(w *Wish) { w.At, w.Wanted = w.At.Add(time.Nanosecond), pbxmesh.WantedInService }),
		change(func(w *Wish) { w.Rev, w.At = 8, start }),
	}
	for i := range order {
		for j := range order {
			if got := order[i].Newer(&order[j]); got != (i > j) {
				t.Errorf("%d newer than %d: %v", i, j, got)
			}
		}
	}
}

func TestParseWanted(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]pbxmesh.Wanted{"in service": pbxmesh.WantedInService, "draining": pbxmesh.WantedDraining, "out": pbxmesh.WantedOut} {
		if got, ok := ParseWanted(text); !ok || got != want {
			t.Errorf("%q is %v, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "Draining", "in-service", "drain"} {
		if got, ok := ParseWanted(text); ok {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

// FuzzDecodeWish: what is accepted is within bounds, is about the node that was asked
// for, and survives being shared again.
func FuzzDecodeWish(f *testing.F) {
	w := valid()
	good, err := w.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add("london", good)
	f.Add("london", strings.Replace(good, "2026-11-26T23:00:00Z", "2000-01-01T00:00:00+14:00", 1))
	f.Add("london", strings.Replace(good, "2026-11-26T23:00:00Z", "9999-12-31T23:59:59-12:00", 1))
	f.Add("buffalo", `{"v":1,"node":"buffalo","wanted":"out","rev":1,"turn":1}`)
	f.Add("", "{}")
	f.Fuzz(func(t *testing.T, node, text string) {
		w, err := DecodeWish(node, text)
		if err != nil {
			if !errors.Is(err, ErrWish) || w != (Wish{}) {
				t.Fatalf("refused with %v, and %+v", err, w)
			}
			return
		}
		if string(w.Node) != node || len(w.By) > MaxByLen || len(w.Reason) > MaxReasonLen || !printable(w.By) || !printable(w.Reason) || w.Newer(&w) {
			t.Fatalf("accepted %+v", w)
		}
		again, err := w.Encode()
		if err != nil {
			t.Fatalf("accepted, but cannot be shared: %v", err)
		}
		back, err := DecodeWish(node, again)
		if err != nil || back.Newer(&w) || w.Newer(&back) {
			t.Fatalf("%+v is read again as %+v, %v", w, back, err)
		}
	})
}
