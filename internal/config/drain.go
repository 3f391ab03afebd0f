package config

import "time"

// Drain is how the phones of this node are moved away.
type Drain struct {
	// Method is how a phone is told: check-sync sends a NOTIFY and takes the
	// registration away after Grace, flush takes it away at once, wait does neither.
	Method string `yaml:"method" allowed:"check-sync,flush,wait"`

	// Pace is how many registrations per second the other nodes may receive; 0
	// computes it from their capacity.
	Pace int `yaml:"pace"`

	// After is how long nobody is told at first: the TTL of the name servers' answers.
	After time.Duration `yaml:"after"`

	// Grace is how long a phone that was told keeps its registration.
	Grace time.Duration `yaml:"grace"`

	// Again is the least time between two turns at one phone that came back.
	Again time.Duration `yaml:"again"`
}

func (d *decoder) validateDrain(c *Drain) {
	inRange(d, "failover.drain.pace", c.Pace, 0, 1000)
	inRange(d, "failover.drain.after", c.After, 0, time.Hour)
	inRange(d, "failover.drain.grace", c.Grace, 5*time.Second, 24*time.Hour)
	inRange(d, "failover.drain.again", c.Again, 5*time.Second, 24*time.Hour)
}
