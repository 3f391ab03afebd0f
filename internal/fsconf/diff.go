package fsconf

import (
	"fmt"
	"slices"
	"strings"
)

const (
	diffContext = 3         // equal lines around a difference
	maxTable    = 4_000_000 // cells of the table of common lines; beyond, one big hunk
)

// Diff returns the unified difference between two texts, "" when they are equal.
// The names stand in its head.
func Diff(oldName, newName string, before, after []byte) string {
	a, b := slices.Collect(strings.Lines(string(before))), slices.Collect(strings.Lines(string(after)))
	ops := diffLines(a, b)
	if !slices.ContainsFunc(ops, func(o op) bool { return o.sign != ' ' }) {
		return ""
	}
	var out strings.Builder
	fmt.Fprintf(&out, "--- %s\n+++ %s\n", oldName, newName)
	for first := 0; first < len(ops); {
		from, to := hunk(ops, first)
		if from == to {
			break
		}
		writeHunk(&out, ops, from, to)
		first = to
	}
	return out.String()
}

// op is one line of a difference: ' ' in both, '-' in the old, '+' in the new text.
type op struct {
	sign byte
	text string
}

// hunk returns the first run of lines from first on that belongs together: changes,
// and the equal lines around them.
func hunk(ops []op, first int) (from, to int) {
	for i := first; i < len(ops); i++ {
		if ops[i].sign == ' ' {
			if to != 0 && i-to >= 2*diffContext {
				break
			}
			continue
		}
		if to == 0 {
			from = max(first, i-diffContext)
		}
		to = i + 1
	}
	if to == 0 {
		return len(ops), len(ops)
	}
	return from, min(len(ops), to+diffContext)
}

func writeHunk(out *strings.Builder, ops []op, from, to int) {
	oldLine, newLine := 1, 1
	for _, o := range ops[:from] {
		if o.sign != '+' {
			oldLine++
		}
		if o.sign != '-' {
			newLine++
		}
	}
	oldCount, newCount := 0, 0
	for _, o := range ops[from:to] {
		if o.sign != '+' {
			oldCount++
		}
		if o.sign != '-' {
			newCount++
		}
	}
	// An empty side begins before its line (POSIX diff -u).
	if oldCount == 0 {
		oldLine--
	}
	if newCount == 0 {
		newLine--
	}
	fmt.Fprintf(out, "@@ -%d,%d +%d,%d @@\n", oldLine, oldCount, newLine, newCount)
	for _, o := range ops[from:to] {
		out.WriteByte(o.sign)
		out.WriteString(o.text)
		if !strings.HasSuffix(o.text, "\n") {
			out.WriteString("\n\\ No newline at end of file\n")
		}
	}
}

// diffLines finds the longest common subsequence, after cutting what is equal at
// both ends: configuration files differ in a few lines.
func diffLines(a, b []string) []op {
	var head, tail []op
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		head = append(head, op{' ', a[0]})
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		tail = append(tail, op{' ', a[len(a)-1]})
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	slices.Reverse(tail)
	return slices.Concat(head, diffMiddle(a, b), tail)
}

func diffMiddle(a, b []string) []op {
	var ops []op
	i, j := 0, 0
	if (len(a)+1)*(len(b)+1) <= maxTable {
		common := make([][]int32, len(a)+1) // of a[i:] and b[j:]
		for i := range common {
			common[i] = make([]int32, len(b)+1)
		}
		for i := len(a) - 1; i >= 0; i-- {
			for j := len(b) - 1; j >= 0; j-- {
				if a[i] == b[j] {
					common[i][j] = common[i+1][j+1] + 1
				} else {
					common[i][j] = max(common[i+1][j], common[i][j+1])
				}
			}
		}
		for i < len(a) && j < len(b) {
			switch {
			case a[i] == b[j]:
				ops = append(ops, op{' ', a[i]})
				i, j = i+1, j+1
			case common[i+1][j] >= common[i][j+1]:
				ops = append(ops, op{'-', a[i]})
				i++
			default:
				ops = append(ops, op{'+', b[j]})
				j++
			}
		}
	}
	for ; i < len(a); i++ {
		ops = append(ops, op{'-', a[i]})
	}
	for ; j < len(b); j++ {
		ops = append(ops, op{'+', b[j]})
	}
	return ops
}
