package failover

// CountAnew makes the tracker count the votes on every node at the next input, changed or not.
func (t *Tracker) CountAnew() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.nodes {
		n.counted.steady = false
	}
}
