package registry

import (
	"pbxmesh"
)

// stamp sets reg.Since, by which the mesh tells which of the registrations of one device
// is the newest. reg.Since is when a REGISTER was heard, or unknown when the registration
// was found in the switch's table.
//
// A registration that was found keeps the stamp that is known of it, also from before a
// restart. One that was heard keeps it too, because it is refreshed; but not when the
// device has registered on another node since: then it has come back, and is the newest.
// A stamp is later than every one of the same device that this node knows of, whatever
// the clocks say. The caller holds w.mu.
func (w *Writer) stamp(reg *pbxmesh.Registration) {
	now := w.o.Now()
	var own, newest pbxmesh.Stamp
	for _, r := range w.o.Replica.Lookup(reg.AOR) {
		switch {
		case r.Node != reg.Node:
			if r.Since > newest && r.Since.Known(now) && r.Live(now) && pbxmesh.SameDevice(r, reg) {
				newest = r.Since
			}
		case r.CallID == reg.CallID && r.Live(now):
			own = r.Since
		}
	}
	switch {
	case reg.Since == pbxmesh.StampUnknown:
		reg.Since = max(own, pbxmesh.StampFound)
	case own > pbxmesh.StampFound && own > newest && own.Known(now):
		reg.Since = own
	default:
		reg.Since = max(reg.Since, newest+1)
	}
}
