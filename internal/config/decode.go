package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds that keep a wrong file (a core dump, a log) from being read as YAML.
const (
	maxFileSize = 8 << 20 // bytes
	maxItems    = 4096    // entries of one list
	maxNetworks = 1 << 16 // entries of dns.preferences
	maxProblems = 100     // reported; more would only scroll the first away
)

// decoder walks the syntax tree by the types of Config. The YAML library's own
// decoder stops at the first problem; an operator wants all of them, and the
// later checks want to know where every value stood.
type decoder struct {
	file     string
	dir      string
	lines    []string
	at       map[string]position // where each value (or section key) stands
	bad      map[string]bool     // already reported: no further check of it
	tainted  map[string]bool     // something in it was reported
	problems Problems
}

type position struct{ line, column int }

// defaulter is a section behind a pointer, whose defaults apply once it appears.
type defaulter interface{ setDefaults() }

func newDecoder(file string, src []byte) *decoder {
	return &decoder{
		file:  file,
		dir:   filepath.Dir(file),
		lines: strings.Split(string(src), "\n"),
		at:    make(map[string]position),
		bad:   make(map[string]bool),

		tainted: make(map[string]bool),
	}
}

// report records a problem with the value at path, once per path.
func (d *decoder) report(path, format string, args ...any) {
	if d.bad[path] {
		return
	}
	d.bad[path] = true
	for p := path; p != ""; p = around(p) {
		d.tainted[p] = true
	}
	d.add(d.where(path), path, fmt.Sprintf(format, args...))
}

// where finds path, or the nearest section around it that the file has.
func (d *decoder) where(path string) position {
	for path != "" {
		if pos, ok := d.at[path]; ok {
			return pos
		}
		path = around(path)
	}
	return position{}
}

func (d *decoder) add(pos position, path, text string) {
	if len(d.problems) >= maxProblems {
		return
	}
	// The parser counts a lone carriage return as a line; the file ends earlier then.
	pos.line = min(pos.line, len(d.lines))
	p := Problem{File: d.file, Line: pos.line, Column: pos.column, Path: path, Text: text}
	if pos.line > 0 {
		p.Source = showable(d.lines[pos.line-1])
	}
	d.problems = append(d.problems, p)
}

// isBad reports whether path, something in it or something around it was reported.
func (d *decoder) isBad(path string) bool {
	if d.tainted[path] {
		return true
	}
	for ; path != ""; path = around(path) {
		if d.bad[path] {
			return true
		}
	}
	return false
}

// around is the section or list that path stands in; "" at the top.
func around(path string) string { return path[:max(strings.LastIndexAny(path, ".["), 0)] }

// document returns the root of the one document in src; nil when there is none.
func (d *decoder) document(src []byte) (root ast.Node) {
	// The parser is fed a file that an operator may have mangled in any way. Should
	// it panic on one, that is still a mistake in the file to the operator.
	defer func() {
		if r := recover(); r != nil {
			root = nil
			d.add(position{}, "", fmt.Sprintf("the file cannot be read as YAML: %v", r))
		}
	}()
	f, err := parser.ParseBytes(src, 0)
	if err != nil {
		d.syntax(err)
		return nil
	}
	for _, doc := range f.Docs {
		switch {
		case doc.Body == nil:
		case doc.Body.Type() == ast.DirectiveType:
			d.add(positionOf(doc.Body), "", "a YAML directive is not read: remove the line")
		case root == nil:
			root = doc.Body
		default:
			d.add(positionOf(doc.Body), "", "a second document starts here: one file holds one configuration, remove the line '---' or what follows it")
			return root
		}
	}
	return root
}

func (d *decoder) syntax(err error) {
	var ye yaml.Error
	if !errors.As(err, &ye) || ye.GetToken() == nil || ye.GetToken().Position == nil {
		d.add(position{}, "", "the file is no YAML: "+err.Error())
		return
	}
	pos := ye.GetToken().Position
	d.add(position{pos.Line, pos.Column}, "", "the file is no YAML: "+strings.TrimSpace(ye.GetMessage()))
}

func positionOf(n ast.Node) position {
	if n == nil {
		return position{}
	}
	tk := n.GetToken()
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		tk = m.Values[0].Key.GetToken() // a block mapping's own token is its first colon
	}
	if mv, ok := n.(*ast.MappingValueNode); ok {
		tk = mv.Key.GetToken()
	}
	if tk == nil || tk.Position == nil {
		return position{}
	}
	return position{tk.Position.Line, tk.Position.Column}
}

// value reads n into v. Whatever is wrong is reported, and v keeps its default.
func (d *decoder) value(n ast.Node, v reflect.Value, path, allowed string) {
	if v.Kind() == reflect.Pointer {
		// "node: null" says that there is none; a bare "node:" is a section whose
		// keys were forgotten.
		if null, ok := n.(*ast.NullNode); ok && null.Token.Value == "null" && null.Token.Type != token.ImplicitNullType {
			return
		}
		elem := reflect.New(v.Type().Elem())
		if def, ok := elem.Interface().(defaulter); ok {
			def.setDefaults()
		}
		d.value(n, elem.Elem(), path, allowed)
		v.Set(elem)
		return
	}
	switch n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
		d.report(path, "anchors, aliases and tags are not read: write the value itself")
		return
	}
	isList := v.Kind() == reflect.Slice
	isSection := v.Kind() == reflect.Struct && scalars[v.Type()] == nil
	switch {
	case isSection:
		d.section(n, v, path)
	case isList:
		d.list(n, v, path)
	default:
		d.scalar(n, v, path, allowed)
	}
}

func (d *decoder) section(n ast.Node, v reflect.Value, path string) {
	var entries []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.NullNode: // a section whose keys are all comments
		return
	case *ast.MappingNode:
		entries = m.Values
	case *ast.MappingValueNode:
		entries = []*ast.MappingValueNode{m}
	default:
		d.report(path, "%s is found where a section with keys is wanted: %s", kindOf(n), strings.Join(keysOf(v.Type()), ", "))
		return
	}
	seen := make(map[string]bool, len(entries))
	for _, e := range entries {
		d.entry(e, v, path, seen)
	}
}

func (d *decoder) entry(e *ast.MappingValueNode, v reflect.Value, path string, seen map[string]bool) {
	key, ok := e.Key.(ast.Node).(*ast.StringNode)
	if !ok {
		d.add(positionOf(e), path, "the key is no plain word; allowed here: "+strings.Join(keysOf(v.Type()), ", "))
		return
	}
	full := key.Value
	if path != "" {
		full = path + "." + key.Value
	}
	field, ok := fieldByKey(v.Type(), key.Value)
	if !ok {
		d.add(positionOf(e), path, fmt.Sprintf("unknown key %s%s; allowed here: %s",
			show(key.Value), didYouMean(key.Value, keysOf(v.Type())), strings.Join(keysOf(v.Type()), ", ")))
		return
	}
	if seen[key.Value] {
		d.add(positionOf(e), path, fmt.Sprintf("the key %s stands here twice: remove one", show(key.Value)))
		return
	}
	seen[key.Value] = true
	d.at[full] = positionOf(e)
	if _, block := e.Value.(*ast.MappingNode); !block {
		if _, null := e.Value.(*ast.NullNode); !null {
			d.at[full] = positionOf(e.Value)
		}
	}
	d.value(e.Value, v.FieldByIndex(field.Index), full, field.Tag.Get("allowed"))
}

func (d *decoder) list(n ast.Node, v reflect.Value, path string) {
	seq, ok := n.(*ast.SequenceNode)
	switch {
	case !ok:
		d.report(path, "%s is found where a list is wanted: write [a, b], or one '- entry' a line; [] is an empty list", kindOf(n))
		return
	case len(seq.Values) > itemLimit(path):
		d.report(path, "the list has %d entries: at most %d are allowed", len(seq.Values), itemLimit(path))
		return
	case len(seq.Values) == 0:
		v.SetZero() // an empty list and no list are the same
		return
	}
	out := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, item := range seq.Values {
		sub := fmt.Sprintf("%s[%d]", path, i)
		d.at[sub] = positionOf(item)
		d.value(item, out.Index(i), sub, "")
	}
	v.Set(out)
}

// itemLimit is small where entries are compared with one another, or are asked in
// turn when something runs.
func itemLimit(path string) int {
	if path == "dns.preferences" || path == "failover.latency.networks" {
		return maxNetworks
	}
	return maxItems
}

func (d *decoder) scalar(n ast.Node, v reflect.Value, path, allowed string) {
	text, ok := scalarText(n)
	if !ok {
		d.report(path, "%s is found where %s is wanted", kindOf(n), wanted(v.Type(), allowed))
		return
	}
	if parse := scalars[v.Type()]; parse != nil {
		value, err := parse(text)
		if err != nil {
			d.report(path, "%s", err)
			return
		}
		v.Set(reflect.ValueOf(value))
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		b, isBool := n.(*ast.BoolNode)
		if !isBool {
			d.report(path, "%s is found where true or false is wanted", kindOf(n))
			return
		}
		v.SetBool(b.Value)
	case reflect.Int:
		i, err := strconv.ParseInt(text, 10, 32)
		if _, isInt := n.(*ast.IntegerNode); !isInt || err != nil {
			d.report(path, "%s is found where a whole number is wanted", kindOf(n))
			return
		}
		v.SetInt(i)
	case reflect.Uint16:
		i, err := strconv.ParseUint(text, 10, 16)
		if _, isInt := n.(*ast.IntegerNode); !isInt || err != nil {
			d.report(path, "%s is found where a port is wanted: 0 to 65535 are allowed, 0 is off", kindOf(n))
			return
		}
		v.SetUint(i)
	default:
		d.text(n, v, path, allowed)
	}
}

func (d *decoder) text(n ast.Node, v reflect.Value, path, allowed string) {
	var s string
	switch t := n.(type) {
	case *ast.StringNode:
		s = t.Value
	case *ast.LiteralNode:
		s = strings.TrimRight(t.Value.Value, "\n")
	default:
		d.report(path, "%s is found where text is wanted: put it in quotes", kindOf(n))
		return
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
		d.report(path, "%s has a control character or line break at byte %d: none is allowed", show(s), i)
		return
	}
	if allowed != "" && !slices.Contains(strings.Split(allowed, ","), s) {
		d.report(path, "%s is not known%s: %s are allowed", show(s), didYouMean(s, strings.Split(allowed, ",")), strings.ReplaceAll(allowed, ",", ", "))
		return
	}
	if t := v.Type(); s != "" && (t == reflect.TypeFor[File]() || t == reflect.TypeFor[SecretFile]()) && !filepath.IsAbs(s) {
		s = filepath.Join(d.dir, s)
	}
	v.SetString(s)
}
