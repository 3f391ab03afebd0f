package redirect

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseNumbers(t *testing.T) {
	t.Parallel()
	table, err := ParseNumbers([]byte("# office\n\n+17165550100\t1001@PBX.test\r\n  Front.Desk   sip:1002@pbx.test  \n"))
	if err != nil || len(table) != 2 || table["+17165550100"].String() != "1001@pbx.test" || table["front.desk"].String() != "1002@pbx.test" {
		t.Errorf("%v, %v", table, err)
	}
	for name, c := range map[string]struct{ src, want string }{
		"one word":         {"1 a@b\n+1716\n", "line 2: 1 words"},
		"three words":      {"+1716 1001@pbx.test # office\n", "line 1: 4 words"},
		"no address":       {"# x\n+1716 1001\n", "line 2: invalid address"},
		"bad address":      {"+1716 1001@pbx.test,sofia/x\n", "line 1: invalid address"},
		"bad number":       {"+1716;x 1001@pbx.test\n", "line 1: the number"},
		"number twice":     {"A 1@b\n\na 2@b\n", "line 3: the number a stands in line 1"},
		"half a line":      {"+1716 1001@pbx.test\n+1717 100", "line 2: the file ends"},
		"long line":        {strings.Repeat("1", maxNumberLine+1) + "\n", "line 1: longer"},
		"binary":           {"\x00\x01\n", "line 1"},
		"every bad line":   {"x\ny\n", "line 2"},
		"at most ten told": {strings.Repeat("x\n", 50), "line 10"},
	} {
		table, err := ParseNumbers([]byte(c.src))
		if err == nil || table != nil || !strings.Contains(err.Error(), c.want) || strings.Count(err.Error(), "\n") >= maxLineErrors {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestNumbersFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "numbers")
	write := func(text string) {
		t.Helper()
		// As an editor does, so that no half-written file is ever seen.
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	write("+17165550100 1002@pbx.test\n")
	w := newWorld()
	w.register(t, "1002", domain, "london")
	w.register(t, "1003", domain, "buffalo")
	o := w.options()
	o.NumbersFile, o.Poll = file, 5*time.Millisecond
	s := newServer(t, o)
	c := newClient(t, s.Addrs(UDP)[0])
	ask := func(uri string) string {
		t.Helper()
		res := parsed(t, c.ask(invite("INVITE", uri)))
		return strings.Join(append([]string{strings.Fields(res.StartLine())[1]}, contactsOf(res)...), " ")
	}
	const (
		london  = "302 <sip:1002@pbx.test:5090;maddr=192.0.2.20>;q=1.0"
		buffalo = "302 <sip:1003@pbx.test:5090;maddr=192.0.2.10>;q=1.0"
	)
	for uri, want := range map[string]string{
		"sip:+17165550100@192.0.2.1": london, "sip:+17165550100@other.test;user=phone": london,
		"sip:+17165550100;npdi@192.0.2.1": london, "tel:+1-716-555-0100;x=y": london, "tel:+1(716)5550100": london,
		"sip:17165550100@192.0.2.1": "404", "tel:+1": "404", "tel:": "404", "sip:1003@pbx.test": buffalo,
	} {
		if got := ask(uri); got != want {
			t.Errorf("%s: %s, want %s", uri, got, want)
		}
	}
	write("+17165550100 1003@pbx.test\n+17165550101 1003@pbx.test\n")
	eventually(t, "the table is read again", func() bool { return s.Stats().Numbers.Entries == 2 })
	if got := ask("sip:+17165550100@192.0.2.1"); got != buffalo {
		t.Errorf("after the change: %s", got)
	}
	write("+17165550100 1002@pbx.test\nbroken\n")
	eventually(t, "the broken file is told", func() bool { return s.Stats().Numbers.Err != nil })
	if err := s.Stats().Numbers.Err; !strings.Contains(err.Error(), "line 2") || !strings.Contains(err.Error(), file) {
		t.Errorf("the error is %v", err)
	}
	if got := ask("sip:+17165550100@192.0.2.1"); got != buffalo {
		t.Errorf("with a broken file: %s", got)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the missing file is told", func() bool { return os.IsNotExist(unwrapped(s.Stats().Numbers.Err)) })
	if got := ask("sip:+17165550101@192.0.2.1"); got != buffalo {
		t.Errorf("without a file: %s", got)
	}
	write("+17165550100 1002@pbx.test\n")
	eventually(t, "the good file is read", func() bool { n := s.Stats().Numbers; return n.Entries == 1 && n.Err == nil })
	if got := ask("sip:+17165550100@192.0.2.1"); got != london {
		t.Errorf("in the end: %s", got)
	}
}

func unwrapped(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		if _, ok := err.(*os.PathError); ok {
			return err
		}
		err = u.Unwrap()
	}
}
