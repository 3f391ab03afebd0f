package dialplan

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"pbxmesh"
	"pbxmesh/router"
)

// Outcome is the word for a decision: the one that the socket hook leaves in
// pbxmesh_result, the header X-Pbxmesh-Result here. The words never change.
type Outcome string

// The outcomes that a decision has before anybody rings.
const (
	Routed        Outcome = "routed"
	NotRegistered Outcome = "not-registered"
	Unreachable   Outcome = "unreachable"
	Invalid       Outcome = "invalid"
	Unavailable   Outcome = "unavailable"
	Overloaded    Outcome = "overloaded"
)

// cause is the FreeSWITCH hangup cause that goes with an outcome; the socket hook
// gives the same ones.
func (o Outcome) cause() string {
	switch o {
	case Routed:
		return "NONE"
	case NotRegistered:
		return "USER_NOT_REGISTERED"
	case Unreachable:
		return "DESTINATION_OUT_OF_ORDER"
	case Invalid:
		return "INVALID_NUMBER_FORMAT"
	case Overloaded:
		return "SWITCH_CONGESTION"
	default:
		return "NORMAL_TEMPORARY_FAILURE"
	}
}

// decision is a plan and what it means for the dialplan.
type decision struct {
	plan    router.Plan
	outcome Outcome
}

// decide looks aor up and decides. It returns within ctx's deadline whatever the
// directory does.
func (s *Server) decide(ctx context.Context, door string, aor pbxmesh.AOR, fromMesh bool) decision {
	start := time.Now()
	v, err := s.ask.Look(ctx, aor, s.opt.Directory, s.opt.Nodes.Mesh)
	d := decision{outcome: Unavailable}
	if err != nil {
		s.log.Warn("the registry cannot be asked, the switch goes on without us", "aor", aor, "err", err)
	} else {
		d.plan = router.Decide(router.Input{
			AOR: aor, Local: s.opt.Local, FromMesh: fromMesh,
			Registrations: v.Regs, Mesh: v.Mesh, Now: s.opt.Now(), DataAge: v.Age,
		})
		d.outcome = outcomeOf(d.plan.Result)
		if d.outcome == Routed && d.plan.BridgeString(s.opt.Bridge) == "" {
			d.outcome = Unreachable // every target was on the mesh profile
		}
	}
	s.observe(Record{
		Door: door, AOR: aor, FromMesh: fromMesh, Outcome: d.outcome, Cause: d.outcome.cause(),
		Nodes: slices.Compact(slices.Collect(d.plan.Nodes)), Decision: time.Since(start),
	})
	return d
}

func outcomeOf(r router.Result) Outcome {
	switch r {
	case router.ResultRouted:
		return Routed
	case router.ResultNotRegistered:
		return NotRegistered
	case router.ResultUnreachable:
		return Unreachable
	default:
		return Invalid
	}
}

// remote returns the plan without its local targets.
func remote(p router.Plan) router.Plan {
	var groups [][]router.Target
	for _, g := range p.Targets {
		var kept []router.Target
		for _, t := range g {
			if !t.Local {
				kept = append(kept, t)
			}
		}
		if len(kept) > 0 {
			groups = append(groups, kept)
		}
	}
	p.Targets = groups
	return p
}

func (s *Server) observe(r Record) {
	s.counters.count(r.Outcome)
	if s.opt.Observe != nil {
		s.opt.Observe(r)
	}
	if !s.opt.LogCalls || r.Outcome != Routed {
		return // a binding is asked for every number: only ours are worth a line
	}
	nodes := make([]string, len(r.Nodes))
	for i, n := range r.Nodes {
		nodes[i] = string(n)
	}
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "call",
		slog.String("door", r.Door), slog.String("aor", r.AOR.String()), slog.String("result", string(r.Outcome)),
		slog.String("nodes", strings.Join(nodes, ",")), slog.Bool("from_mesh", r.FromMesh),
		slog.Int64("decision_us", r.Decision.Microseconds()))
}
