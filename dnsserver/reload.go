package dnsserver

import (
	"context"
	"errors"
	"os"
	"time"

	"pbxmesh/internal/reload"
)

// pollFiles is how often Run looks whether a file changed.
const pollFiles = 2 * time.Second

// watched tells when something is to be read again: it has another state than what was
// read, and the same as at the last look. Files are seldom written in one stroke, and
// half a zone is a wrong one. Only NewZone and Run touch it.
type watched[S comparable] struct{ read, seen S }

func (w *watched[S]) due(now S) bool {
	settled := now == w.seen
	w.seen = now
	if now == w.read || !settled {
		return false
	}
	w.read = now
	return true
}

func (w *watched[S]) first(now S) { w.read, w.seen = now, now }

// fileState tells one state of a file from the next.
type fileState struct {
	modified time.Time
	size     int64
	mode     os.FileMode // one that may be read now is another
	err      string
}

// Run reads the zone file and the keys again when they change, until ctx ends. A file
// that is wrong leaves what was read before in force, and is told once. It returns
// ctx's error.
func (z *Zone) Run(ctx context.Context) error {
	tick := time.NewTicker(pollFiles)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			_ = z.pollZoneFile() // logs
			z.pollKeys()
			z.view() // ends kept answers whose time is over
		}
	}
}

// pollZoneFile reads the zone file when it is another than at the last time. The error
// is that of a file that was never read; later ones are logged.
func (z *Zone) pollZoneFile() error {
	file := z.opts.ZoneFile
	if file == "" {
		return nil
	}
	now, old := stat(file), z.static.Load()
	first := old.loaded.IsZero()
	if first {
		z.zoneFile.first(now)
	} else if !z.zoneFile.due(now) {
		return nil
	}
	content, err := z.readZoneFile(file)
	switch {
	case err == nil:
		content.loaded = z.now()
		z.static.Store(content)
		z.log.Info("zone file read", "file", file, "records", content.records)
	case first:
		return err
	default:
		z.stats.zoneFileErrors.Add(1)
		kept := *old
		kept.err = err
		z.static.Store(&kept)
		z.log.Error("the zone file is not read, the older one stays in force", "file", file,
			"records", old.records, "loaded", old.loaded, "err", err)
	}
	return nil
}

func (z *Zone) readZoneFile(file string) (*static, error) {
	src, err := reload.ReadFile(file, maxZoneFile)
	if err != nil {
		return nil, err
	}
	return z.parseStatic(src, file)
}

func stat(file string) fileState {
	info, err := os.Stat(file)
	if err != nil {
		var path *os.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return fileState{err: err.Error()}
	}
	return fileState{modified: info.ModTime(), size: info.Size(), mode: info.Mode()}
}
