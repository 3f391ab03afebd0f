package redirect

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/netip"
	"runtime/debug"

	"github.com/emiago/sipgo/sip"

	"pbxmesh"
	"pbxmesh/router"
)

// Methods that we know, as Allow names them.
const (
	allowed         = "INVITE, ACK, CANCEL, BYE, OPTIONS"
	allowedRegister = allowed + ", REGISTER"
)

// harmless are the option tags that a request may require of us although we know
// nothing of them: they speak of the dialog that the next hop will have.
var harmless = map[string]bool{
	"100rel": true, "timer": true, "precondition": true, "replaces": true, "early-session": true,
	"histinfo": true, "from-change": true, "norefersub": true, "resource-priority": true, "answermode": true,
}

// worker is what one goroutine needs to answer requests, so that answering
// allocates nothing of its own.
type worker struct {
	req      request
	out      []byte
	contacts [maxContacts]contact
}

// answer returns the answer to the request in packet, which it writes into, and
// where over UDP it goes; nil when there is none to give. It is a net as well:
// whatever a packet does to us, the next one is answered.
func (s *Server) answer(w *worker, packet []byte, from netip.AddrPort, t Transport) (out []byte, to netip.AddrPort) {
	defer func() {
		if p := recover(); p != nil {
			s.panicked(p, packet)
			out = nil
		}
	}()
	if isAck(packet) {
		s.counters.transport[t].Add(1)
		s.counters.acks.Add(1)
		return nil, to
	}
	if w.req.scan(packet, false) != scanRequest {
		s.counters.dropped.Add(1)
		return nil, to
	}
	if w.req.length > len(packet)-w.req.header {
		w.req.refuse("Content-Length Beyond The Packet") // RFC 3261 section 18.3
	}
	return s.respond(w, len(packet), from, t)
}

// panicked tells what must not have happened.
func (s *Server) panicked(p any, packet []byte) {
	s.counters.panics.Add(1)
	s.log.Error("panic while answering; this is a bug", "panic", p, "packet", hex.EncodeToString(packet), "stack", string(debug.Stack()))
}

// isAck tells the packets that make up half of a redirect's traffic from their
// first bytes. An ACK is never answered, whatever else is in it.
func isAck(packet []byte) bool { return bytes.HasPrefix(packet, []byte("ACK ")) }

// respond answers the request in w, which had size bytes.
func (s *Server) respond(w *worker, size int, from netip.AddrPort, t Transport) ([]byte, netip.AddrPort) {
	r := &w.req
	s.counters.transport[t].Add(1)
	if equalFold(r.method, "ack") {
		s.counters.acks.Add(1)
		return nil, netip.AddrPort{}
	}
	hash := s.hash(r)
	rep, rec := s.decide(w, hash, from, t)
	limit := maxStreamAnswer
	if t == UDP {
		limit = min(maxGrowth*size, maxUDPAnswer)
	}
	w.out = w.out[:0]
	out := r.appendReply(w.out, &rep, hash, from, limit)
	if out == nil && len(rep.contacts) > 0 {
		rep = status(sip.StatusInternalServerError) // the request is too short for what it asks
		out = r.appendReply(w.out, &rep, hash, from, limit)
	}
	if out == nil {
		s.counters.dropped.Add(1)
		return nil, netip.AddrPort{}
	}
	w.out = out
	s.count(r, &rep, rec.fallback)
	s.observe(r, &rep, rec.aor, from, t)
	return out, r.top.answerTo(from)
}

// target is what decide found out beside the answer itself.
type target struct {
	aor      pbxmesh.AOR
	fallback bool // the default node has it
}

// decide returns the answer to the request in w.
func (s *Server) decide(w *worker, hash uint64, from netip.AddrPort, t Transport) (reply, target) {
	r := &w.req
	switch {
	case !equalFold(r.version, "sip/2.0"):
		return status(sip.StatusVersionNotSupported), target{}
	case r.fault != "":
		return reply{status: sip.StatusBadRequest, reason: r.fault}, target{}
	}
	method := string(r.method) // does not leave this frame, so it is not copied
	switch method {
	case "CANCEL":
		// Our answer to the INVITE was final, so there is nothing to cancel (RFC 3261
		// section 9.2); which of the two it is tells the sender whether we had it.
		if s.recent.has(hash) {
			return status(sip.StatusOK), target{}
		}
		return status(sip.StatusCallTransactionDoesNotExists), target{}
	case "INVITE", "OPTIONS", "BYE", "REGISTER":
	default:
		return s.notAllowed(), target{}
	}
	if r.toTag != nil || method == "BYE" {
		return status(sip.StatusCallTransactionDoesNotExists), target{} // no dialog was ever made here
	}
	if bad := unsupported(r.require); bad != nil {
		rep := status(sip.StatusBadExtension)
		rep.bad = bad
		return rep, target{}
	}
	switch method {
	case "OPTIONS":
		return s.options(), target{}
	case "REGISTER":
		return s.register(w, from, t), target{}
	}
	rep, tg := s.invite(w)
	s.recent.add(hash)
	return rep, tg
}

func (s *Server) notAllowed() reply {
	rep := status(sip.StatusMethodNotAllowed)
	rep.allow = s.allowHeader
	return rep
}

// options says whether calls may be sent here (RFC 3261 section 11.2).
func (s *Server) options() reply {
	if s.opt.Ready != nil && s.opt.Ready() != nil {
		return status(sip.StatusServiceUnavailable)
	}
	rep := status(sip.StatusOK)
	rep.allow, rep.accept = s.allowHeader, true
	return rep
}

// invite finds out which nodes hold the callee.
func (s *Server) invite(w *worker) (reply, target) {
	candidates, code := s.callee(w.req.uri)
	if code != 0 {
		return status(code), target{}
	}
	var (
		mesh *pbxmesh.Mesh
		tg   target
	)
	for _, aor := range candidates {
		if aor.IsZero() {
			continue
		}
		tg.aor = aor
		regs, age, err := s.opt.Directory.Lookup(s.ctx, aor)
		if err != nil && !errors.Is(err, pbxmesh.ErrNotRegistered) {
			return status(sip.StatusServiceUnavailable), tg
		}
		// After the records: a picture taken before might not know the node of one yet.
		mesh = s.opt.Nodes.Mesh()
		plan := router.Decide(router.Input{AOR: aor, Registrations: regs, Mesh: mesh, Now: s.opt.Now(), DataAge: age})
		switch plan.Result {
		case router.ResultRouted:
			return w.found(&plan), tg
		case router.ResultUnreachable:
			return status(sip.StatusTemporarilyUnavailable), tg
		}
	}
	if s.opt.DefaultNode == "" || tg.aor.IsZero() {
		return status(sip.StatusNotFound), tg
	}
	node, ok := mesh.Node(s.opt.DefaultNode)
	if !ok || !node.Mesh.Addr().Is4() || !mesh.State(s.opt.DefaultNode).TakesCalls() {
		return status(sip.StatusTemporarilyUnavailable), tg
	}
	tg.fallback = true
	rep := status(sip.StatusMovedTemporarily)
	rep.contacts = append(w.contacts[:0], contact{aor: tg.aor, at: node.Mesh, q: "1.0", node: node.ID})
	return rep, tg
}

// found turns a plan into contacts: its groups become q-values (RFC 3261 section
// 20.10), so whoever forks rings a group together and tries the groups in turn.
func (w *worker) found(plan *router.Plan) reply {
	rep := status(sip.StatusMovedTemporarily)
	rep.contacts = w.contacts[:0]
	for i, group := range plan.Targets {
		q := [...]string{"1.0", "0.5"}[min(i, 1)]
		for j := range group {
			if len(rep.contacts) == maxContacts {
				return rep
			}
			rep.contacts = append(rep.contacts, contact{aor: plan.AOR, at: group[j].Mesh, q: q, node: group[j].Node})
		}
	}
	return rep
}

// register sends a phone to the nodes that are best for where it is.
func (s *Server) register(w *worker, from netip.AddrPort, t Transport) reply {
	if s.opt.Chooser == nil {
		return s.notAllowed()
	}
	mesh := s.opt.Nodes.Mesh()
	rep := status(sip.StatusMovedTemporarily)
	rep.contacts = w.contacts[:0]
	qs := [...]string{"1.0", "0.8", "0.6"} // best three, as the name servers answer
	for _, id := range s.opt.Chooser.Choose(from.Addr()) {
		node, ok := mesh.Node(id)
		if !ok {
			continue
		}
		port := [...]uint16{node.Ports.UDP, node.Ports.TCP, node.Ports.TLS}[t]
		for _, a := range node.Addresses {
			if a = a.Unmap(); port != 0 && a.Is4() == from.Addr().Is4() && a.Zone() == "" {
				rep.contacts = append(rep.contacts, contact{at: netip.AddrPortFrom(a, port), via: t, q: qs[len(rep.contacts)], node: id})
				break
			}
		}
		if len(rep.contacts) == len(qs) {
			break
		}
	}
	if len(rep.contacts) == 0 {
		return status(sip.StatusServiceUnavailable)
	}
	return rep
}

// unsupported returns the option tags of a Require header that we cannot promise
// anything about, nil when there are none. What is no list of tags is all of it: the
// header was checked to be printable, and is echoed as it came.
func unsupported(require []byte) []byte {
	for tag := range bytes.SplitSeq(require, []byte(",")) {
		if tag = bytes.Trim(tag, " \t"); len(tag) > 0 && !harmless[string(bytes.ToLower(tag))] {
			return require
		}
	}
	return nil
}

func (s *Server) count(r *request, rep *reply, fallback bool) {
	c := &s.counters
	switch invite, register := equalFold(r.method, "invite"), equalFold(r.method, "register"); {
	case rep.status == sip.StatusBadRequest:
		c.malformed.Add(1)
	case rep.status == sip.StatusMethodNotAllowed:
		c.unknown.Add(1)
	case register && rep.status == sip.StatusMovedTemporarily:
		c.registers.Add(1)
	case invite && rep.status == sip.StatusMovedTemporarily:
		c.redirected.Add(1)
		if fallback {
			c.defaultNode.Add(1)
		}
	case invite && rep.status == sip.StatusNotFound:
		c.notFound.Add(1)
	case invite && rep.status == sip.StatusTemporarilyUnavailable:
		c.unreachable.Add(1)
	case invite && rep.status == sip.StatusServiceUnavailable:
		c.unavailable.Add(1)
	case equalFold(r.method, "options") && (rep.status == sip.StatusOK || rep.status == sip.StatusServiceUnavailable):
		c.options.Add(1)
	default:
		c.other.Add(1)
	}
}

func (s *Server) observe(r *request, rep *reply, aor pbxmesh.AOR, from netip.AddrPort, t Transport) {
	logged := s.logged && (equalFold(r.method, "invite") || equalFold(r.method, "register"))
	if s.opt.Observe == nil && !logged {
		return
	}
	rec := Record{Method: string(r.method), Status: rep.status, AOR: aor, From: from, Transport: t}
	for i := range rep.contacts {
		rec.Nodes = append(rec.Nodes, rep.contacts[i].node)
	}
	if s.opt.Observe != nil {
		s.opt.Observe(rec)
	}
	if logged {
		s.log.LogAttrs(context.Background(), slog.LevelDebug, "redirect", slog.String("method", rec.Method),
			slog.Int("status", rec.Status), slog.String("aor", aor.String()), slog.Any("nodes", rec.Nodes),
			slog.String("from", from.String()), slog.String("transport", t.String()))
	}
}
