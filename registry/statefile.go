package registry

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/google/renameio/v2"

	"pbxmesh"
)

// Bounds of a state file. A file beyond them is not ours.
const (
	maxStateSize    = 4 << 30 // bytes
	maxStateLine    = 16 << 10
	maxStateRecords = 10_000_000
)

// ErrStateFile reports a state file that is missing its end, was changed, or was
// not written by this version. It is safe to delete: it is written again.
var ErrStateFile = errors.New("invalid state file")

// A state file is one JSON value per line: a head, members, registrations, and
// an end that counts and sums up every line before it, so that neither half a
// file nor an edited one is taken for the truth.
type (
	stateHead struct {
		Version int       `json:"pbxmesh_state"`
		Saved   time.Time `json:"saved"`
		Synced  time.Time `json:"synced"` // zero: never
	}
	stateLine struct {
		Member *stateMember `json:"m,omitempty"`
		Record *stateRecord `json:"r,omitempty"`
		End    *stateEnd    `json:"end,omitempty"`
	}
	stateMember struct {
		Announcement
		Fresh time.Time `json:"fresh"`
	}
	stateRecord struct {
		Node  pbxmesh.NodeID `json:"n"`
		Kind  Kind           `json:"k"`
		Key   string         `json:"i"`
		Value string         `json:"x"`
	}
	stateEnd struct {
		Lines int    `json:"lines"`
		Sum   string `json:"sum"`
	}
)

// SaveState writes members and registrations to path, readable by the owner only.
// The file is replaced at once or not at all.
func (r *Replica) SaveState(path string, now time.Time) error {
	file, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o600))
	if err != nil {
		return fmt.Errorf("save the registry's state: %w", err)
	}
	defer func() { _ = file.Cleanup() }()
	out := bufio.NewWriterSize(file, 1<<16)
	if err := r.writeState(out, now); err != nil {
		return fmt.Errorf("save the registry's state in %s: %w", path, err)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("save the registry's state in %s: %w", path, err)
	}
	if err := file.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("save the registry's state in %s: %w", path, err)
	}
	return nil
}

func (r *Replica) writeState(out io.Writer, now time.Time) error {
	sum := xxhash.New()
	enc := json.NewEncoder(io.MultiWriter(out, sum))
	enc.SetEscapeHTML(false)
	r.mu.RLock()
	head := stateHead{Version: wireVersion, Saved: now.UTC()}
	if r.synced {
		head.Synced = r.known.UTC()
	}
	r.mu.RUnlock()
	if err := enc.Encode(&head); err != nil {
		return err
	}
	lines := 1
	for _, ns := range r.states() {
		ns.info.Lock()
		m := stateMember{Announcement: Announcement{Node: ns.node, Left: ns.left}, Fresh: ns.fresh.UTC()}
		announced := ns.announced
		ns.info.Unlock()
		if !announced {
			continue
		}
		if err := enc.Encode(stateLine{Member: &m}); err != nil {
			return err
		}
		lines++
	}
	var failed error
	r.Walk(func(reg *pbxmesh.Registration) bool {
		if !reg.Live(now) {
			return true
		}
		rec, err := EncodeRegistration(reg)
		if err != nil {
			return true // cannot be: it was validated when it came in
		}
		line := stateLine{Record: &stateRecord{Node: reg.Node, Kind: rec.Kind, Key: rec.Key, Value: rec.Value}}
		if failed = enc.Encode(line); failed != nil {
			return false
		}
		lines++
		return true
	})
	if failed != nil {
		return failed
	}
	end := stateLine{End: &stateEnd{Lines: lines, Sum: strconv.FormatUint(sum.Sum64(), 16)}}
	return json.NewEncoder(out).Encode(end)
}

// StateReport says what a state file brought.
type StateReport struct {
	Saved         time.Time
	Members       int
	Registrations int // live ones
}

// LoadState fills an empty replica with what SaveState wrote, so that a daemon
// that starts with its store away still routes. Registrations that expired
// meanwhile are left out; whatever the store says later replaces the rest.
//
// An error that wraps fs.ErrNotExist when there is no file, ErrStateFile, which
// names line and reason, when its content is not what SaveState writes. Nothing
// is taken from such a file.
func (r *Replica) LoadState(path string, now time.Time) (StateReport, error) {
	file, err := os.Open(path)
	if err != nil {
		return StateReport{}, fmt.Errorf("load the registry's state: %w", err)
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return StateReport{}, fmt.Errorf("load the registry's state: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxStateSize {
		return StateReport{}, fmt.Errorf("%w: %s is no file, or larger than %d bytes", ErrStateFile, path, int64(maxStateSize))
	}
	st, err := readState(file, now)
	if err != nil {
		return StateReport{}, fmt.Errorf("load the registry's state from %s: %w; start without it, or delete the file", path, err)
	}
	return r.restore(st, now), nil
}

type state struct {
	head    stateHead
	members []stateMember
	regs    []pbxmesh.Registration
}

// readState parses a whole file before anything of it counts.
func readState(in io.Reader, now time.Time) (*state, error) {
	scan := bufio.NewScanner(in)
	scan.Buffer(make([]byte, 0, 4096), maxStateLine)
	sum := xxhash.New()
	st := &state{}
	known := map[pbxmesh.NodeID]bool{}
	lines := 0
	bad := func(err error) (*state, error) {
		return nil, fmt.Errorf("%w: line %d: %w", ErrStateFile, lines+1, err)
	}
	ended := false
	for scan.Scan() {
		text := scan.Bytes()
		if ended {
			return bad(errors.New("something follows the end"))
		}
		if lines == 0 {
			if err := json.Unmarshal(text, &st.head); err != nil {
				return bad(err)
			}
			if st.head.Version != wireVersion {
				return bad(fmt.Errorf("version %d, this daemon reads %d", st.head.Version, wireVersion))
			}
		} else {
			var line stateLine
			if err := json.Unmarshal(text, &line); err != nil {
				return bad(err)
			}
			if line.End != nil {
				want := strconv.FormatUint(sum.Sum64(), 16)
				if line.End.Lines != lines || line.End.Sum != want {
					return bad(fmt.Errorf("the file was changed: %d lines with sum %s, the end says %d and %s",
						lines, want, line.End.Lines, show(line.End.Sum)))
				}
				ended = true
				continue
			}
			if err := st.take(&line, known, now); err != nil {
				return bad(err)
			}
		}
		_, _ = sum.Write(text)
		_, _ = sum.Write([]byte{'\n'})
		lines++
	}
	if err := scan.Err(); err != nil {
		return bad(err)
	}
	if !ended {
		return bad(errors.New("the end is missing: the file was cut off"))
	}
	return st, nil
}

func (st *state) take(line *stateLine, known map[pbxmesh.NodeID]bool, now time.Time) error {
	switch {
	case line.Member != nil:
		if err := line.Member.Validate(); err != nil {
			return err
		}
		if len(st.members) >= MaxMembers || known[line.Member.Node.ID] {
			return fmt.Errorf("node %s stands twice, or more than %d nodes", line.Member.Node.ID, MaxMembers)
		}
		known[line.Member.Node.ID] = true
		st.members = append(st.members, *line.Member)
	case line.Record != nil:
		if !known[line.Record.Node] {
			return fmt.Errorf("registration on %s, which is no member", show(string(line.Record.Node)))
		}
		if line.Record.Kind != KindRegistration {
			return nil // a later version wrote it
		}
		reg, err := decodeRegistration(line.Record.Node, &Record{Kind: line.Record.Kind, Key: line.Record.Key, Value: line.Record.Value})
		if err != nil {
			return err
		}
		if len(st.regs) >= maxStateRecords {
			return fmt.Errorf("more than %d registrations", maxStateRecords)
		}
		if reg.Live(now) {
			st.regs = append(st.regs, reg)
		}
	default:
		return errors.New("neither a member nor a registration")
	}
	return nil
}

// restore takes over st where nothing newer is known.
func (r *Replica) restore(st *state, now time.Time) StateReport {
	report := StateReport{Saved: st.head.Saved, Members: len(st.members)}
	for i := range st.members {
		m := &st.members[i]
		if m.Node.ID == r.opts.Local {
			continue // what it announces stands in the configuration
		}
		r.announce(&m.Announcement)
		// A clock that was ahead when the file was written must not make the
		// view look younger than it is.
		if m.Fresh.Before(now) {
			r.node(m.Node.ID).setFresh(m.Fresh)
		}
	}
	for i := range st.regs {
		reg := &st.regs[i]
		ns := r.node(reg.Node)
		ns.mu.Lock()
		if ns.term == 0 && r.find(ns, reg.ID()) == nil {
			r.put(ns, nil, reg)
			report.Registrations++
		}
		ns.mu.Unlock()
	}
	r.mu.Lock()
	if r.known.IsZero() && st.head.Synced.Before(now) {
		r.known, r.synced = st.head.Synced, !st.head.Synced.IsZero()
	}
	r.mu.Unlock()
	return report
}
