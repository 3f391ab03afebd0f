package selection

import (
	"sync"
	"sync/atomic"

	"pbxmesh"
)

// Chooser holds what choices are made from beside the snapshot: preferences and
// ranking. Zones, and everybody else who sends phones somewhere, may share one.
type Chooser struct {
	plan    atomic.Pointer[plan]
	present atomic.Pointer[Choices]

	mu          sync.Mutex // held while a plan is compiled
	preferences *Preferences
	ranking     *Ranking
}

// NewChooser returns a Chooser with preferences, which may be nil, and no ranking.
func NewChooser(preferences *Preferences) *Chooser {
	c := &Chooser{preferences: preferences}
	c.plan.Store(newPlan(preferences, nil))
	return c
}

// SetPreferences replaces the preferences for all choices from now on. It returns when
// they are compiled, which takes some 50 ms for 20,000 networks; queries do not wait.
func (c *Chooser) SetPreferences(p *Preferences) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.preferences = p
	c.plan.Store(newPlan(p, c.ranking))
}

// SetRanking replaces the ranking, as SetPreferences does the preferences.
func (c *Chooser) SetRanking(r *Ranking) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ranking = r
	c.plan.Store(newPlan(c.preferences, r))
}

// On returns the choices on a snapshot: the same pointer until the snapshot, the
// preferences or the ranking change.
func (c *Chooser) On(mesh *pbxmesh.Mesh) *Choices {
	pl := c.plan.Load()
	if now := c.present.Load(); now != nil && now.mesh == mesh && now.plan == pl {
		return now
	}
	made := newChoices(mesh, pl)
	c.present.Store(made) // two at once make the same
	return made
}
