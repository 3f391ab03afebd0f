package redisstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/registry"
)

const (
	scanCount = 3000 // fields per HSCAN, 1 MB of usual records
)

// readMembers reads all announcements.
func (s *Store) readMembers(ctx context.Context, from redis.UniversalClient) (members []registry.Announcement, bad int, err error) {
	add := func(node, text string) error {
		if a, err := registry.DecodeAnnouncement(node, text); err == nil && len(members) < registry.MaxMembers {
			members = append(members, a)
		} else {
			bad++
		}
		return nil
	}
	var answer []string
	err = s.read(ctx, from, func(ctx context.Context, c redis.UniversalClient) (err error) {
		answer, err = readMembers.Run(ctx, c, []string{s.membersKey()}, registry.MaxAnnouncementLen, 4*registry.MaxMembers).StringSlice()
		return wrap("read "+s.membersKey(), err)
	})
	switch {
	case err != nil:
		return nil, 0, err
	case len(answer) == 1: // somebody filled the list
		if err := s.scan(ctx, from, s.membersKey(), add); err != nil {
			return nil, bad, err
		}
		return members, bad, nil
	}
	for i := 0; i+1 < len(answer); i += 2 {
		_ = add(answer[i], answer[i+1])
	}
	return members, bad, nil
}

// scan calls each for every field of a hash; some may come twice.
func (s *Store) scan(ctx context.Context, from redis.UniversalClient, key string, each func(field, value string) error) error {
	return s.scanMatch(ctx, from, key, "", scanCount, each)
}

// scanMatch is scan for the fields that fit a glob pattern, count looked at a time. A cursor
// means nothing on another server, so all of it is read from one.
func (s *Store) scanMatch(ctx context.Context, from redis.UniversalClient, key, match string, count int64, each func(field, value string) error) error {
	cursor := uint64(0)
	for {
		var page []string
		var next uint64
		err := s.readAt(ctx, from, func(ctx context.Context, c redis.UniversalClient) (err error) {
			page, next, err = c.HScan(ctx, key, cursor, match, count).Result()
			return wrap("read "+key, err)
		})
		if err != nil {
			return err
		}
		for i := 0; i+1 < len(page); i += 2 {
			if err := each(page[i], page[i+1]); err != nil {
				return err
			}
		}
		if next == 0 {
			return nil
		}
		cursor = next
	}
}

// Snapshot implements registry.Source. The place is read before the records, so
// following from it misses nothing.
func (s *Store) Snapshot(ctx context.Context, node pbxmesh.NodeID, each func(registry.Record)) (registry.SnapshotInfo, error) {
	from := s.source(node)
	info, err := s.place(ctx, from, node)
	if err != nil {
		return info, err
	}
	err = s.scan(ctx, from, s.recordsKey(node, info.Term), func(field, value string) error {
		if rec, err := parseStored(field, value); err == nil {
			each(rec)
		} else {
			info.Bad++
		}
		return nil
	})
	if err != nil {
		return info, err
	}
	after, err := s.place(ctx, from, node)
	if err != nil {
		return info, err
	}
	if after.Term != info.Term {
		return info, fmt.Errorf("%w: redis: %s", registry.ErrChanged, node)
	}
	return info, nil
}

// place reads what the node's publication is at.
func (s *Store) place(ctx context.Context, from redis.UniversalClient, node pbxmesh.NodeID) (registry.SnapshotInfo, error) {
	info := registry.SnapshotInfo{Cursor: registry.Cursor{Node: node}}
	var meta []any
	err := s.readAt(ctx, from, func(ctx context.Context, c redis.UniversalClient) (err error) {
		meta, err = c.HMGet(ctx, s.key(node, "meta"), "v", "term", "seq", "epoch").Result()
		return wrap("read "+s.key(node, "meta"), err)
	})
	if err != nil {
		return info, err
	}
	var field [4]string
	for i := range min(len(field), len(meta)) {
		field[i], _ = meta[i].(string)
	}
	if field[0] == "" && field[1] == "" {
		return info, fmt.Errorf("%w: redis: %s", registry.ErrNoNode, node)
	}
	term, err1 := strconv.ParseUint(field[1], 10, 53)
	seq, err2 := strconv.ParseUint(field[2], 10, 53)
	if field[0] != "1" || err1 != nil || err2 != nil || term == 0 || len(field[3]) > registry.MaxNameLen {
		return info, fmt.Errorf("%w: redis: %s", registry.ErrCorrupt, s.key(node, "meta"))
	}
	info.Term, info.Seq, info.Epoch = term, seq, field[3]
	return info, nil
}

// Changes implements registry.Source.
func (s *Store) Changes(ctx context.Context, after []registry.Cursor) ([]registry.Batch, error) {
	if len(after) == 0 {
		return nil, nil
	}
	batches, err := s.changes(ctx, after)
	if !errors.Is(err, registry.ErrCorrupt) {
		return batches, err
	}
	// One key that is no stream fails the whole call: find it, and go on with
	// the others.
	batches = nil
	for _, c := range after {
		some, err := s.changes(ctx, []registry.Cursor{c})
		switch {
		case errors.Is(err, registry.ErrCorrupt):
			some = []registry.Batch{{Node: c.Node, Broken: true, Bad: 1}}
		case err != nil:
			return nil, err
		}
		batches = append(batches, some...)
	}
	return batches, nil
}

func (s *Store) changes(ctx context.Context, after []registry.Cursor) ([]registry.Batch, error) {
	streams, ids := make([]string, 2*len(after)), make([]pbxmesh.NodeID, len(after))
	nodes := make(map[string]pbxmesh.NodeID, len(after))
	for i, c := range after {
		streams[i] = s.key(c.Node, "log")
		streams[len(after)+i] = strconv.FormatUint(c.Term, 10) + "-" + strconv.FormatUint(c.Seq, 10)
		nodes[streams[i]], ids[i] = c.Node, c.Node
	}
	// A negative Block asks without waiting.
	var answer []redis.XStream
	err := s.read(ctx, s.source(ids...), func(ctx context.Context, c redis.UniversalClient) (err error) {
		answer, err = c.XRead(ctx, &redis.XReadArgs{Streams: streams, Count: registry.MaxChanges, Block: -1}).Result()
		if errors.Is(err, redis.Nil) {
			return nil
		}
		return wrap("ask for changes", err)
	})
	if err != nil {
		return nil, err
	}
	var batches []registry.Batch
	for _, stream := range answer {
		for _, m := range stream.Messages {
			batches = append(batches, parseEntry(nodes[stream.Stream], m.ID, m.Values))
		}
	}
	return batches, nil
}

// fieldOf is the hash field of a record. A kind has letters only, so the first
// "|" ends it.
func fieldOf(r *registry.Record) string { return string(r.Kind) + "|" + r.Key }

func parseField(field string) (registry.Record, error) {
	kind, key, ok := strings.Cut(field, "|")
	if !ok {
		return registry.Record{}, fmt.Errorf("%w: field without a kind", pbxmesh.ErrInvalidRecord)
	}
	return registry.Record{Kind: registry.Kind(kind), Key: key}, nil
}

// parseStored reads a field and value of a records hash, which anyone may have
// written.
func parseStored(field, value string) (registry.Record, error) {
	rec, err := parseField(field)
	if err != nil {
		return rec, err
	}
	number, value, ok := strings.Cut(value, " ")
	seq, err := strconv.ParseUint(number, 10, 53)
	if !ok || err != nil || value == "" {
		return rec, fmt.Errorf("%w: value without a sequence", pbxmesh.ErrInvalidRecord)
	}
	rec.Seq, rec.Value = seq, value
	return rec, rec.Validate()
}

// parseEntry reads a stream entry, which anyone may have written. An entry whose
// frame cannot be read is Broken; a record that cannot be read is counted.
// Fields that are not known are skipped: a later version may have added them.
func parseEntry(node pbxmesh.NodeID, id string, values map[string]any) registry.Batch {
	b := registry.Batch{Node: node}
	broken := registry.Batch{Node: node, Broken: true, Bad: 1}
	text := func(name string) string { s, _ := values[name].(string); return s }

	term, seq, _ := strings.Cut(id, "-")
	var err [3]error
	b.Term, err[0] = strconv.ParseUint(term, 10, 53)
	b.Seq, err[1] = strconv.ParseUint(seq, 10, 53)
	b.Prev, err[2] = strconv.ParseUint(text("p"), 10, 53)
	b.Epoch, b.Reset = text("e"), text("k") == "reset"
	if err[0] != nil || err[1] != nil || err[2] != nil || text("v") != "1" || b.Prev >= b.Seq ||
		len(b.Epoch) > registry.MaxNameLen || len(values) > registry.MaxBatch+16 {
		return broken
	}
	digests := text("d")
	if len(digests) > registry.MaxLeaseLen || json.Unmarshal([]byte(digests), &b.Digests) != nil || len(b.Digests) > registry.MaxKinds {
		return broken
	}
	for name := range values {
		if len(name) < 2 || name[0] != '+' && name[0] != '-' {
			continue
		}
		rec, err := parseField(name[1:])
		rec.Seq = b.Seq
		if name[0] == '+' {
			rec.Value = text(name)
		}
		if err != nil || rec.Validate() != nil || rec.Tombstone() != (name[0] == '-') {
			b.Bad++
			continue
		}
		b.Records = append(b.Records, rec)
	}
	return b
}
