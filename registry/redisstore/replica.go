package redisstore

import (
	"errors"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
)

// replica is a server near this daemon that follows the primary, and is read instead of it.
type replica struct {
	client redis.UniversalClient

	mu    sync.Mutex
	avoid time.Time // until then the primary is read
}

// replicaAvoided is how long a replica is not asked after it failed.
const replicaAvoided = 10 * time.Second

// reader is where things are read: near by, if it works.
func (s *Store) reader() redis.UniversalClient {
	if s.near == nil {
		return s.client
	}
	s.near.mu.Lock()
	defer s.near.mu.Unlock()
	if time.Now().Before(s.near.avoid) {
		return s.client
	}
	return s.near.client
}

// readFailed takes note of an error of reading, and returns it.
func (s *Store) readFailed(err error) error {
	if s.near != nil && errors.Is(err, pbxmesh.ErrUnavailable) {
		s.near.mu.Lock()
		s.near.avoid = time.Now().Add(replicaAvoided)
		s.near.mu.Unlock()
	}
	return err
}

// oursWritten is what this daemon wrote into a field of the heads, and what of it a look saw.
type oursWritten struct {
	values []oursValue // oldest first; the first one is what was seen last
}

type oursValue struct {
	value string
	at    time.Time
}

const maxOurs = 60

// willWrite takes note that this daemon writes value into a field of the heads: how much later
// it is read tells how far a replica is behind.
func (s *Store) willWrite(field, value string) {
	if s.near == nil {
		return
	}
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	w := s.seen.ours[field]
	if w == nil {
		w = &oursWritten{}
		s.seen.ours[field] = w
	}
	if w.values = append(w.values, oursValue{value, time.Now()}); len(w.values) > maxOurs {
		w.values = append(w.values[:1], w.values[2:]...)
	}
}

// sawOurs takes in what a look saw of what this daemon wrote. The caller holds s.seen.mu.
func (s *Store) sawOurs(l *look) {
	for field, w := range s.seen.ours {
		value := l.value(field)
		for i := len(w.values) - 1; i >= 0; i-- {
			if w.values[i].value == value {
				w.values = w.values[i:]
				break
			}
		}
	}
}

// Lag implements registry.Source: the time since the first thing that this daemon wrote and
// has not read since.
func (s *Store) Lag() time.Duration {
	if s.near == nil {
		return 0
	}
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	lag := time.Duration(0)
	for _, w := range s.seen.ours {
		if len(w.values) > 1 {
			lag = max(lag, s.seen.look.at.Sub(w.values[1].at))
		}
	}
	return lag
}
