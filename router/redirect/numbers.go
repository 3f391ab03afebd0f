package redirect

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"pbxmesh"
	"pbxmesh/internal/reload"
)

// Bounds of a table of numbers.
const (
	maxNumbersFile = 64 << 20 // bytes
	maxNumberLine  = 512      // bytes
	maxLineErrors  = 10       // told at once
)

// numbers is the table from dialled numbers to addresses of record.
type numbers struct {
	file string
	log  *slog.Logger
	now  func() time.Time

	table atomic.Pointer[numbersTable]
	seen  fileState // of the last attempt to read; the poller's alone
}

// numbersTable is one immutable table, with what is wrong with the file since.
type numbersTable struct {
	byNumber map[string]pbxmesh.AOR
	loaded   time.Time
	err      error
}

// fileState tells one state of a file from the next.
type fileState struct {
	modified time.Time
	size     int64
	err      string
}

// ParseNumbers reads a table of numbers: one line each, the number and the address
// of record with spaces or tabs between.
//
//	# numbers of the Buffalo office
//	+17165550100   1001@pbx.example.com
//
// A number has the alphabet of a user part, letters without case, and stands once.
// Empty lines and lines that start with "#" say nothing. The last line ends like all
// others: a file that was only half written is refused.
//
// It is all or nothing. The error names every line that is wrong, at most ten.
func ParseNumbers(src []byte) (map[string]pbxmesh.AOR, error) {
	table := make(map[string]pbxmesh.AOR, bytes.Count(src, []byte("\n")))
	lines := make(map[string]int)
	var errs []error
	wrong := func(line int, format string, args ...any) {
		if len(errs) < maxLineErrors {
			errs = append(errs, fmt.Errorf("line %d: "+format, append([]any{line}, args...)...))
		}
	}
	n := 0
	for len(src) > 0 {
		n++
		line, rest, ended := bytes.Cut(src, []byte("\n"))
		src = rest
		text := strings.TrimSuffix(string(line[:min(len(line), maxNumberLine+1)]), "\r")
		fields := strings.Fields(text)
		switch {
		case !ended:
			wrong(n, "the file ends in the middle of it: end the last line too")
		case len(line) > maxNumberLine:
			wrong(n, "longer than %d bytes", maxNumberLine)
		case len(fields) == 0 || strings.HasPrefix(fields[0], "#"):
		case len(fields) != 2:
			wrong(n, "%d words, two are wanted: a number and user@domain", len(fields))
		default:
			// The alphabet of a number is that of a user, and so is the folding.
			key, err := pbxmesh.NewAOR(fields[0], "x")
			if err != nil {
				wrong(n, "the number: %w", err)
				continue
			}
			aor, err := pbxmesh.ParseAOR(fields[1])
			if err != nil {
				wrong(n, "%w", err)
				continue
			}
			if first, twice := lines[key.User()]; twice {
				wrong(n, "the number %s stands in line %d already", key.User(), first)
				continue
			}
			lines[key.User()] = n
			table[key.User()] = aor
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return table, nil
}

// lookup returns the address of a number, in any case of its letters.
func (n *numbers) lookup(number string) (pbxmesh.AOR, bool) {
	t := n.table.Load()
	if t == nil || len(t.byNumber) == 0 || len(number) > pbxmesh.MaxUserLen {
		return pbxmesh.AOR{}, false
	}
	aor, ok := t.byNumber[number]
	if !ok {
		aor, ok = t.byNumber[strings.ToLower(number)]
	}
	return aor, ok
}

// poll reads the file when it is another than at the last time. A file that cannot
// be read or is wrong leaves the older table in place, and is told once.
func (n *numbers) poll() error {
	if n.file == "" {
		return nil
	}
	now := stat(n.file)
	if now == n.seen && n.table.Load() != nil {
		return nil
	}
	n.seen = now
	old := n.table.Load()
	table, err := readNumbers(n.file)
	switch {
	case err == nil:
		n.table.Store(&numbersTable{byNumber: table, loaded: n.now()})
		n.log.Info("table of numbers read", "file", n.file, "numbers", len(table))
	case old == nil:
		return err
	default:
		n.table.Store(&numbersTable{byNumber: old.byNumber, loaded: old.loaded, err: err})
		n.log.Error("the table of numbers is not read, the older one stays in force", "file", n.file,
			"numbers", len(old.byNumber), "loaded", old.loaded, "err", err)
	}
	return nil
}

func stat(file string) fileState {
	info, err := os.Stat(file)
	if err != nil {
		return fileState{err: err.Error()}
	}
	return fileState{modified: info.ModTime(), size: info.Size()}
}

func readNumbers(file string) (map[string]pbxmesh.AOR, error) {
	src, err := reload.ReadFile(file, maxNumbersFile)
	if err != nil {
		return nil, fmt.Errorf("table of numbers: %w", err)
	}
	table, err := ParseNumbers(src)
	if err != nil {
		return nil, fmt.Errorf("table of numbers %s: %w", file, err)
	}
	return table, nil
}

func (n *numbers) stats() NumbersStats {
	t := n.table.Load()
	if t == nil {
		return NumbersStats{}
	}
	return NumbersStats{Entries: len(t.byNumber), Loaded: t.loaded, Err: t.err}
}
