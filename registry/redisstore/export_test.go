package redisstore

import (
	"time"

	"pbxmesh"
)

// Ages makes what s read of nodes, or with none of the members, d older.
func (s *Store) Ages(d time.Duration, nodes ...pbxmesh.NodeID) {
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	for _, id := range nodes {
		if l := s.seen.leases[id]; l != nil {
			l.at = l.at.Add(-d)
			if l.still > 0 { // the same text was there, so its clock was nearer
				l.apart -= d
			}
		}
	}
	if len(nodes) == 0 {
		s.seen.at = s.seen.at.Add(-d)
	}
}
