package dnsserver

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// retryKeys is when keys that could not be used are tried again although no file
// changed: their times may have come.
const retryKeys = time.Minute

// watchedKeys is the state of the key directory when it was last read. Only NewZone
// and Run touch it.
type watchedKeys struct {
	watched[string]
	retry time.Time // zero when what was read is in force
}

// loadKeys reads the keys of all zones for the first time.
func (z *Zone) loadKeys() error {
	if z.opts.KeyDir == "" {
		return nil
	}
	keys, err := z.readKeys(z.now(), z.opts.GenerateKeys)
	if err != nil {
		return err
	}
	z.keyDir.first(keyDirState(z.opts.KeyDir))
	z.keys.Store(keys)
	return nil
}

// pollKeys reads the keys again when a file changed or a key's time has come. Keys that
// are wrong leave the former ones in force: a zone whose parent says that it is signed
// must not go without signatures.
func (z *Zone) pollKeys() {
	old := z.keys.Load()
	if old == nil {
		return
	}
	now := z.now()
	changed := z.keyDir.due(keyDirState(z.opts.KeyDir))
	due := !old.until.IsZero() && !now.Before(old.until)
	if !z.keyDir.retry.IsZero() {
		due = !now.Before(z.keyDir.retry)
	}
	if !changed && !due {
		return
	}
	z.keyDir.retry = time.Time{}
	keys, err := z.readKeys(now, false)
	if err != nil {
		z.keyDir.retry = now.Add(retryKeys)
		z.stats.keyErrors.Add(1)
		z.stats.keysStale.Store(true)
		z.log.Error("the keys are not read, the former ones go on signing", "dir", z.opts.KeyDir, "err", err)
		return
	}
	z.stats.keysStale.Store(false)
	z.keys.Store(keys)
	for apex, k := range keys.zones {
		z.log.Info("keys read", "zone", apex, "published", len(k.dnskey), "signing", len(k.forKeys))
	}
}

func (z *Zone) readKeys(now time.Time, generate bool) (*keyring, error) {
	r := &keyring{zones: make(map[string]*zoneKeys)}
	for _, apex := range slices.Sorted(maps.Keys(z.apexes)) {
		keys, err := ReadKeys(z.opts.KeyDir, apex)
		if err != nil {
			return nil, err
		}
		if len(keys) == 0 && generate {
			k, err := GenerateKey(z.opts.KeyDir, apex, now, now)
			if err != nil {
				return nil, err
			}
			z.log.Warn("key generated; copy it to the other name servers before the parent zone gets its DS record", "zone", apex, "file", k.File)
			keys = []*Key{k}
		}
		if r.zones[apex], err = newZoneKeys(apex, keys, now); err != nil {
			return nil, err
		}
		if next := nextKeyTime(keys, now); !next.IsZero() && (r.until.IsZero() || next.Before(r.until)) {
			r.until = next
		}
	}
	return r, nil
}

// keyDirState is different whenever a key file in dir is.
func keyDirState(dir string) string {
	names, err := keyFiles(dir)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, name := range names {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil {
			fmt.Fprintf(&b, "%s %d %d %o\n", name, info.ModTime().UnixNano(), info.Size(), info.Mode())
		}
	}
	return b.String()
}
