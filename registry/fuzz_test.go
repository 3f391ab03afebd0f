package registry

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"pbxmesh"
)

// Whatever stands in a store: a registration that is accepted is valid, can be
// written again, and comes back as the same.
func FuzzDecodeRegistration(f *testing.F) {
	reg := device(f, "london", 1, epoch0)
	rec := record(f, reg, 1)
	f.Add(rec.Key, rec.Value)
	f.Add(rec.Key, strings.Replace(rec.Value, `"v":1`, `"v":2`, 1))
	f.Add(rec.Key, rec.Value[:len(rec.Value)/2])
	f.Add(rec.Key, `{"v":1,"i":"x","x":9e99}`)
	f.Add(rec.Key, `{"v":1,"i":"x","x":1,"s":"[fe80::1%eth0]:5060"}`)
	f.Add("1001,sofia/gateway/x@pbx.test|AAAAAAAAAAAAAAAA", `{"v":1,"i":"x","x":1}`)
	f.Add("1001@pbx.test|", `[]`)
	f.Add("", "null")
	f.Fuzz(func(t *testing.T, key, value string) {
		rec := Record{Kind: KindRegistration, Key: key, Value: value, Seq: 1}
		reg, err := decodeRegistration("london", &rec)
		if err != nil {
			if !errors.Is(err, pbxmesh.ErrInvalidRecord) {
				t.Fatalf("error %v does not say that the record is invalid", err)
			}
			return
		}
		if err := reg.Validate(); err != nil {
			t.Fatalf("accepted what is invalid: %v", err)
		}
		if got := reg.AOR.String() + "|"; !strings.HasPrefix(key, got) {
			t.Fatalf("%s from the key %q", got, key)
		}
		again, err := EncodeRegistration(&reg)
		if err != nil || again.Key != key {
			t.Fatalf("written again: key %q for %q, err %v", again.Key, key, err)
		}
		back, err := decodeRegistration("london", &again)
		if err != nil || back.ID() != reg.ID() || !same(&back, &reg) {
			t.Fatalf("%+v came back as %+v, err %v", reg, back, err)
		}
	})
}

func FuzzDecodeLease(f *testing.F) {
	l := Lease{Node: "london", Owner: "host", Instance: "1", Beat: 3, Epoch: "core", Term: 5, Seq: 6,
		Digests: Digests{KindRegistration: {Count: 2, Sum: 7}}, Switch: SwitchState{Alive: true}, TTL: 5e9}
	text, err := EncodeLease(&l)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(text[:20])
	f.Add(`{"v":2,"body":{}}`)
	f.Add(`{"v":1,"body":{"node":"paris","ttl":1}}`)
	f.Add(`{"v":1,"body":{"node":"london","ttl":-1,"term":18446744073709551615}}`)
	f.Add(`{"v":1,"body":{"node":"london","ttl":1,"digests":{"registration":"x"}}}`)
	f.Fuzz(func(t *testing.T, text string) {
		l, err := DecodeLease("london", text)
		if err != nil {
			if !errors.Is(err, pbxmesh.ErrInvalidRecord) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if l.Node != "london" || l.Term > MaxNumber || l.TTL <= 0 {
			t.Fatalf("accepted %+v", l)
		}
		if _, err := EncodeLease(&l); err != nil {
			t.Fatalf("accepted what cannot be written: %v", err)
		}
	})
}

func FuzzDecodeAnnouncement(f *testing.F) {
	f.Add("london", `{"v":1,"body":{"node":{"id":"london","addresses":["192.0.2.1"],"ports":{"udp":5060},"mesh":"192.0.2.1:5090"}}}`)
	f.Add("london", `{"v":1,"body":{"node":{"id":"london","mesh":"[::1]:5090"}}}`)
	f.Add("london", `{"v":1,"body":{"node":{"id":"paris"},"gone":true}}`)
	f.Add("x}y", `{"v":1,"body":{"node":{"id":"x}y"}}}`)
	f.Fuzz(func(t *testing.T, node, text string) {
		a, err := DecodeAnnouncement(node, text)
		if err != nil {
			if !errors.Is(err, pbxmesh.ErrInvalidRecord) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if id, err := pbxmesh.ParseNodeID(node); err != nil || id != a.Node.ID {
			t.Fatalf("accepted node %q as %q", node, a.Node.ID)
		}
		if a.Node.Mesh.IsValid() && !a.Node.Mesh.Addr().Is4() {
			t.Fatalf("accepted the mesh address %s", a.Node.Mesh)
		}
		if _, err := EncodeAnnouncement(&a); err != nil {
			t.Fatalf("accepted what cannot be written: %v", err)
		}
	})
}

func FuzzReadState(f *testing.F) {
	r := NewReplica(ReplicaOptions{})
	r.announce(&Announcement{Node: pbxmesh.Node{ID: "london"}})
	reg := device(f, "london", 1, epoch0.AddDate(100, 0, 0))
	r.putLocal(&reg)
	var buf bytes.Buffer
	if err := r.writeState(&buf, epoch0); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add(buf.Bytes()[:buf.Len()-10])
	f.Add([]byte("{\"pbxmesh_state\":1}\n{\"end\":{\"lines\":1,\"sum\":\"\"}}\n"))
	f.Add([]byte("{\"pbxmesh_state\":2}\n"))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		st, err := readState(bytes.NewReader(data), epoch0)
		if err != nil {
			if !errors.Is(err, ErrStateFile) {
				t.Fatalf("error %v", err)
			}
			return
		}
		r := NewReplica(ReplicaOptions{})
		r.restore(st, epoch0)
		checkConsistent(t, r)
		r.Walk(func(reg *pbxmesh.Registration) bool {
			if err := reg.Validate(); err != nil || !reg.Live(epoch0) {
				t.Fatalf("took %+v from a state file: %v", reg, err)
			}
			return true
		})
	})
}
