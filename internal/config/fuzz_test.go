package config

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// FuzzParse feeds Parse anything. It must not panic; what it accepts must pass its
// own checks again after a round trip; what it refuses must say where and name no
// secret of a URL.
func FuzzParse(f *testing.F) {
	f.Add([]byte(readExample(f)))
	f.Add([]byte(filledExample(f)))
	f.Add([]byte(nodeFile))
	f.Fuzz(func(t *testing.T, src []byte) {
		cfg, err := Parse("fuzz.yaml", src)
		if err != nil {
			var problems Problems
			if cfg != nil || !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("refused with %v and %v", cfg, err)
			}
			lines := strings.Count(string(src), "\n") + 1
			for _, p := range problems {
				if p.Text == "" || p.Line < 0 || p.Line > lines {
					t.Errorf("problem %+v in a file of %d lines", p, lines)
				}
			}
			return
		}
		text, err := cfg.YAML()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse("fuzz.yaml", text)
		if err != nil {
			t.Fatalf("accepted, but refused when written out:\n%v\n%s", err, text)
		}
		if !reflect.DeepEqual(again, cfg) {
			t.Fatalf("reads back differently:\n%+v\n%+v\n%s", cfg, again, text)
		}
		if cfg.API.Listen.IsValid() && !cfg.API.Listen.Addr().IsLoopback() && cfg.API.TokenFile == "" {
			t.Fatalf("an open API without token: %s", src)
		}
	})
}
