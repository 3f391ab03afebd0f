// Package reload reads small files again that are replaced while the daemon runs:
// passwords, secrets, certificates. It reads the whole content each time and compares
// that: the time of a file says nothing when its rights changed, when it was copied
// with its time, or when it was written twice within a tick. Large files (zones,
// databases) are none of its business: who holds them looks at their times first.
package reload

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
)

// Options say what is read.
type Options[R comparable, T any] struct {
	// Name says in the log what it is: the key in the configuration.
	Name string

	// Read returns the content of the files. It must not block for long.
	Read func() (R, error)

	// Make turns a content into a value. It is not asked again while the content is the
	// one that the value was made of.
	Make func(R) (T, error)

	// Logger may be nil.
	Logger *slog.Logger
}

// Value is what files hold, and what they held last when they cannot be used now. It
// is for concurrent use.
type Value[R comparable, T any] struct {
	opt  Options[R, T]
	last atomic.Pointer[T]

	mu   sync.Mutex
	read R      // what last was made of
	told string // the failure that was logged; "" while all is well
}

// New reads for the first time: a failure is an error here, and only here.
func New[R comparable, T any](o Options[R, T]) (*Value[R, T], error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	v := &Value[R, T]{opt: o}
	content, err := o.Read()
	if err != nil {
		return nil, err
	}
	made, err := o.Make(content)
	if err != nil {
		return nil, err
	}
	v.read = content
	v.last.Store(&made)
	return v, nil
}

// Now reads again and returns what the files hold now. While they cannot be read or
// used it returns what they held last, logs each failure once, and logs when it is over.
func (v *Value[R, T]) Now() T {
	v.mu.Lock()
	defer v.mu.Unlock()
	content, err := v.opt.Read()
	changed := err == nil && content != v.read
	if changed {
		var made T
		if made, err = v.opt.Make(content); err == nil {
			v.read = content
			v.last.Store(&made)
		}
	}
	switch {
	case err != nil && err.Error() != v.told:
		v.told = err.Error()
		v.opt.Logger.Error("a file cannot be used, what it held before stays in force", "key", v.opt.Name, "error", err)
	case err == nil && (changed || v.told != ""):
		v.told = ""
		v.opt.Logger.Info("a file was read again", "key", v.opt.Name, "changed", changed)
	}
	return *v.last.Load()
}

// Last returns what the files held when they were read last, and reads nothing.
func (v *Value[R, T]) Last() T { return *v.last.Load() }

// As is the Make of a value that is its content.
func As[T any](content T) (T, error) { return content, nil }

// ReadFile reads a regular file of at most limit bytes. It waits for nobody: a pipe is
// an error.
func ReadFile(file string, limit int64) ([]byte, error) {
	info, err := os.Stat(file)
	if err == nil && !info.Mode().IsRegular() { // opening a pipe would wait for a writer
		return nil, fmt.Errorf("%s is no regular file", file)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(content)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", file, limit)
	}
	return content, err
}
