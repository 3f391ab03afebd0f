package config

import "time"

// Return is how slowly a node that was away gets its phones back.
type Return struct {
	// Hold is how long it gets no new phones, Ramp how long it takes from then on until
	// it gets all of them. Each relapse doubles Hold, up to MaxHold.
	Hold    time.Duration `yaml:"hold"`
	Ramp    time.Duration `yaml:"ramp"`
	MaxHold time.Duration `yaml:"max_hold"`
}

// LoadMarks are from which load on this node sends new phones elsewhere: none at the low
// mark, all at the high one. Percent of the switch's max-sessions, and of idle processor.
type LoadMarks struct {
	SessionsLow  int `yaml:"sessions_low"`
	SessionsHigh int `yaml:"sessions_high"`
	IdleLow      int `yaml:"idle_low"`
	IdleFull     int `yaml:"idle_full"`
}

func (f *Failover) setDefaults() {
	f.Return = Return{Hold: 30 * time.Second, Ramp: 2 * time.Minute, MaxHold: 10 * time.Minute}
	f.Load = LoadMarks{SessionsLow: 80, SessionsHigh: 95, IdleLow: 15, IdleFull: 3}
	f.RestartGrace = 10 * time.Second
	f.Probe.Mesh = true
	f.Latency.setDefaults()
}

func (d *decoder) validateFailover(f *Failover) {
	d.validateProbe(&f.Probe)
	d.validateLatency(&f.Latency)
	inRange(d, "failover.return.hold", f.Return.Hold, 0, time.Hour)
	inRange(d, "failover.return.ramp", f.Return.Ramp, 0, time.Hour)
	inRange(d, "failover.return.max_hold", f.Return.MaxHold, 0, time.Hour)
	if f.Return.MaxHold < f.Return.Hold && !d.isBad("failover.return.hold") {
		d.check("failover.return.max_hold", "%v must not be below failover.return.hold, which is %v", f.Return.MaxHold, f.Return.Hold)
	}
	inRange(d, "failover.restart_grace", f.RestartGrace, 0, time.Hour)
	l := &f.Load
	inRange(d, "failover.load.sessions_low", l.SessionsLow, 0, 100)
	inRange(d, "failover.load.sessions_high", l.SessionsHigh, 0, 100)
	if l.SessionsHigh <= l.SessionsLow && (l.SessionsLow > 0 || l.SessionsHigh > 0) && !d.isBad("failover.load.sessions_low") {
		d.check("failover.load.sessions_high", "%d must be above failover.load.sessions_low, which is %d; both 0 is off", l.SessionsHigh, l.SessionsLow)
	}
	inRange(d, "failover.load.idle_low", l.IdleLow, 0, 100)
	inRange(d, "failover.load.idle_full", l.IdleFull, 0, 100)
	if l.IdleFull >= l.IdleLow && (l.IdleLow > 0 || l.IdleFull > 0) && !d.isBad("failover.load.idle_low") {
		d.check("failover.load.idle_full", "%d must be below failover.load.idle_low, which is %d; both 0 is off", l.IdleFull, l.IdleLow)
	}
}
