package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"pbxmesh"
)

// Keys returns every key of the file as a path ("failover.probe.interval"), in
// the order of the types. A list of sections adds "[]" to its key.
func Keys() []string { return appendKeys(nil, reflect.TypeFor[Config](), "") }

func appendKeys(keys []string, t reflect.Type, prefix string) []string {
	for f := range fields(t) {
		ft, path := f.Type, prefix+f.Tag.Get("yaml")
		if ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		suffix := ""
		if ft.Kind() == reflect.Slice {
			ft, suffix = ft.Elem(), "[]"
		}
		keys = append(keys, path)
		if ft.Kind() == reflect.Struct && scalars[ft] == nil {
			keys = appendKeys(keys, ft, path+suffix+".")
		}
	}
	return keys
}

func fields(t reflect.Type) func(func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if f := t.Field(i); f.Tag.Get("yaml") != "" && !yield(f) {
				return
			}
		}
	}
}

func fieldByKey(t reflect.Type, key string) (reflect.StructField, bool) {
	for f := range fields(t) {
		if f.Tag.Get("yaml") == key {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

func keysOf(t reflect.Type) []string {
	var keys []string
	for f := range fields(t) {
		keys = append(keys, f.Tag.Get("yaml"))
	}
	return keys
}

// scalarText is the text of a scalar as it stands in the file, without quotes.
func scalarText(n ast.Node) (string, bool) {
	switch t := n.(type) {
	case *ast.StringNode:
		return t.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return strings.TrimSpace(n.GetToken().Value), true
	case *ast.LiteralNode:
		return strings.TrimRight(t.Value.Value, "\n"), true
	default:
		return "", false
	}
}

// kindOf names what stands in the file, with its text where it is a scalar.
func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a section"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	case *ast.BoolNode:
		return "the truth value " + n.GetToken().Value
	}
	if s, ok := scalarText(n); ok {
		return show(s)
	}
	return "a " + strings.ToLower(n.Type().String())
}

func wanted(t reflect.Type, allowed string) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "a duration such as 5s"
	case reflect.TypeFor[netip.Addr]():
		return "an IP address"
	case reflect.TypeFor[netip.AddrPort]():
		return "an IP address with port, or \"\" for off,"
	case reflect.TypeFor[netip.Prefix]():
		return "a network such as 192.0.2.0/24"
	case reflect.TypeFor[pbxmesh.NodeID]():
		return "a node's id"
	case reflect.TypeFor[Degrees]():
		return "degrees such as 42.89"
	case reflect.TypeFor[HostPort]():
		return "host:port"
	case reflect.TypeFor[URL]():
		return "a registry (" + urlForms + ")"
	case reflect.TypeFor[ReplicaURL]():
		return "the URL of a replica such as redis://127.0.0.1:6379, or \"\" for none,"
	case reflect.TypeFor[File](), reflect.TypeFor[SecretFile]():
		return "the path of a file"
	}
	switch {
	case allowed != "":
		return "one of " + strings.ReplaceAll(allowed, ",", ", ")
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Int:
		return "a whole number"
	case t.Kind() == reflect.Uint16:
		return "a port (0 to 65535, 0 is off)"
	default:
		return "text"
	}
}

// didYouMean names the one candidate that is at most two typing errors away.
func didYouMean(word string, candidates []string) string {
	for _, c := range candidates {
		if c == word+"_file" { // a secret written where its file belongs
			return " (did you mean " + c + "?)"
		}
	}
	best, bestAt := "", 3
	for _, c := range candidates {
		if dist := distance(word, c); dist < bestAt && dist < len(c) {
			best, bestAt = c, dist
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s?)", best)
}

// distance is Levenshtein's, in bytes; words longer than any key are far away.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
