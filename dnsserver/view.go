package dnsserver

import (
	"net/netip"
	"time"

	"pbxmesh"
	"pbxmesh/dnsserver/selection"
)

// DefaultKeepHosts is how long the host name of a node that is gone goes on answering:
// many times its TTL, because one resolver in twelve stretches those, and resolvers may
// serve stale records (RFC 8767).
const DefaultKeepHosts = time.Hour

// maxRetired bounds the nodes that are remembered after they are gone. The one that
// left first is forgotten.
const maxRetired = 1024

// view is everything that an answer is made from but the request and the client, at
// one moment. It is immutable, and another one takes its place when anything in it
// changes, which raises Zone.edition.
type view struct {
	choices *selection.Choices
	mesh    *pbxmesh.Mesh // of choices
	static  *static       // never nil
	signer  *signer       // nil when no zone is signed
	retired map[pbxmesh.NodeID]retired

	until time.Time // when it ends although nothing in it changed; zero is never
}

// retired is a node that left: what its host name goes on saying, and until when.
type retired struct {
	addresses []netip.Addr
	until     time.Time
}

// view returns what answers are made from now.
func (z *Zone) view() *view {
	now, choices, content, keys := z.now(), z.choices(), z.static.Load(), z.keys.Load()
	if v := z.viewed.Load(); v != nil && v.choices == choices && v.static == content && v.keys() == keys &&
		(v.until.IsZero() || now.Before(v.until)) {
		return v
	}
	z.renew.Lock()
	defer z.renew.Unlock()
	old := z.viewed.Load()
	v := &view{choices: choices, mesh: choices.Mesh(), static: content}
	v.retire(old, now.Add(z.opts.KeepHosts))
	v.forget(now)
	if keys != nil {
		if v.signer = old.sign(); v.signer == nil || v.signer.keys != keys || !now.Before(v.signer.until) {
			v.signer = newSigner(keys, now)
		}
		v.end(v.signer.until)
	}
	if old == nil || old.mesh != v.mesh || old.static != content {
		z.warnShadowed(v)
	}
	z.viewed.Store(v)
	z.edition.Add(1)
	return v
}

// keys are those that v signs with; nil when no zone is signed.
func (v *view) keys() *keyring {
	if v.signer == nil {
		return nil
	}
	return v.signer.keys
}

func (v *view) sign() *signer {
	if v == nil {
		return nil
	}
	return v.signer
}

// retire takes over what old remembers, and what it knew and v does not.
func (v *view) retire(old *view, until time.Time) {
	v.retired = make(map[pbxmesh.NodeID]retired)
	if old == nil {
		return
	}
	for id, r := range old.retired {
		v.retired[id] = r
	}
	if old.mesh != nil && old.mesh != v.mesh {
		for id, n := range old.mesh.Nodes {
			if len(n.Addresses) > 0 {
				v.retired[id] = retired{n.Addresses, until}
			}
		}
	}
	if v.mesh != nil {
		for id := range v.mesh.Nodes {
			delete(v.retired, id)
		}
	}
	for len(v.retired) > maxRetired {
		var first pbxmesh.NodeID
		for id, r := range v.retired {
			if first == "" || r.until.Before(v.retired[first].until) {
				first = id
			}
		}
		delete(v.retired, first)
	}
}

// forget drops whose time is over, and ends the view when the next one's is.
func (v *view) forget(now time.Time) {
	for id, r := range v.retired {
		if !now.Before(r.until) {
			delete(v.retired, id)
		} else {
			v.end(r.until)
		}
	}
}

// end lets the view end at t at the latest.
func (v *view) end(t time.Time) {
	if v.until.IsZero() || t.Before(v.until) {
		v.until = t
	}
}

// warnShadowed tells of nodes whose host name says something else.
func (z *Zone) warnShadowed(v *view) {
	if v.mesh == nil {
		return
	}
	for id := range v.mesh.Nodes {
		name := z.NodeName(id)
		if e := z.names[name]; e.service || e.host {
			z.log.Error("a node bears a name that the configuration uses: phones do not find it by its host name; rename one", "name", name)
		} else if v.static.names[name].takesAddress() {
			z.log.Error("a node bears a name whose address stands in the zone file: phones do not find it by its host name; rename one", "name", name)
		}
	}
}
