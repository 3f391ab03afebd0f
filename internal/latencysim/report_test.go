package latencysim

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// envReport names the folder with latency.md, which gets the figures, and the plot; it
// turns the long run on.
const envReport = "PBXMESH_SIM_LATENCY"

const internets = 5

// TestReport makes what docs/latency.md shows: several internets, figures every eighth of
// an interval for the first one, and a plot. Run it with make sim-latency.
func TestReport(t *testing.T) {
	folder := os.Getenv(envReport)
	if folder == "" {
		t.Skipf("the long run: make sim-latency, which sets %s", envReport)
	}
	var text strings.Builder
	crowded := reportUsual(t, &text)
	few := reportHard(t, &text)
	if err := os.WriteFile(filepath.Join(folder, "latency.svg"), []byte(plot(crowded, few)), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(folder, "latency.md")
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	page, err := replaced(string(old), text.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(page), 0o600); err != nil {
		t.Fatal(err)
	}
}

// What stands between these lines of latency.md is made by TestReport.
const (
	figuresBegin = "<!-- made by `make sim-latency`: do not edit -->\n"
	figuresEnd   = "<!-- end -->\n"
)

// replaced puts text between the two lines of a page.
func replaced(page, text string) (string, error) {
	head, rest, ok := strings.Cut(page, figuresBegin)
	_, tail, ok2 := strings.Cut(rest, figuresEnd)
	if !ok || !ok2 {
		return "", fmt.Errorf("no line %q with %q behind it", figuresBegin, figuresEnd)
	}
	return head + figuresBegin + text + figuresEnd + tail, nil
}

func TestReplaced(t *testing.T) {
	t.Parallel()
	page := "a\n" + figuresBegin + "old\n" + figuresEnd + "b\n"
	if got, err := replaced(page, "new\n"); err != nil || got != strings.Replace(page, "old", "new", 1) {
		t.Errorf("%q %v", got, err)
	}
	if _, err := replaced("a\n"+figuresEnd+figuresBegin, "new\n"); err == nil {
		t.Error("a page without the lines was taken")
	}
}

// reportUsual writes the figures of networks with 10 to 49 phones, and returns a series
// of the first internet.
func reportUsual(t *testing.T, out *strings.Builder) (series []moment) {
	var mean [2]moment // after one interval, and two after the change
	fmt.Fprint(out, "| internet | when | best node | mean excess | 95th percentile | distance alone: best node | mean excess | changed for the worse | for the better | tries |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for seed := uint64(1); seed <= internets; seed++ {
		s := newSim(t, seed, usual)
		at := func(intervals float64, more time.Duration) moment {
			s.run(t, time.Duration(intervals*float64(s.interval))+more)
			return s.moment()
		}
		row := func(when string, m moment) {
			fmt.Fprintf(out, "| %d | %s | %.1f %% | %.1f ms | %.1f ms | %.1f %% | %.1f ms | %.0f %% | %.0f %% | %.1f %% |\n",
				seed, when, 100*m.best, m.excess, m.p95, 100*m.distance, m.byRoad, 100*m.changed[0], 100*m.changed[1], 100*m.tries)
		}
		steps := func(from, to int) {
			for q := from * 8; seed == 1 && q < to*8; q++ {
				series = append(series, at(float64(q)/8, 0))
			}
		}
		steps(0, 1)
		first := at(1, shared)
		row("one interval", first)
		steps(1, changeAfter)
		s.run(t, changeAfter*s.interval)
		s.change(changeShare)
		row("routes just changed", s.moment())
		steps(changeAfter, changeAfter+2)
		last := at(changeAfter+2, shared)
		row("two intervals later", last)
		if seed == 1 {
			series = append(series, last)
		}
		for i, m := range []moment{first, last} {
			mean[i].best += m.best / internets
			mean[i].excess += m.excess / internets
			if m.best < wantEach || m.excess >= wantExcessMS {
				t.Errorf("internet %d is below the claim: %v", seed, m)
			}
		}
	}
	for _, m := range mean {
		if m.best < wantBest || m.excess >= wantExcessMS {
			t.Errorf("the mean of all internets: %v", m)
		}
	}
	challenges := reportChallenges(t)
	fmt.Fprintf(out, "\nThe mean of the %d: %.1f %% and %.1f ms after one interval, %.1f %% and %.1f ms two intervals after the change. With challenges alone,\n"+
		"without the switch's keep-alives: %.1f %% and %.1f ms after one interval, %.1f %% and %.1f ms after three.\n",
		internets, 100*mean[0].best, mean[0].excess, 100*mean[1].best, mean[1].excess,
		100*challenges[0].best, challenges[0].excess, 100*challenges[1].best, challenges[1].excess)
	return series
}

// reportChallenges runs the same without keep-alives: the tick of the event socket is then
// all there is.
func reportChallenges(t *testing.T) (mean [2]moment) {
	for seed := uint64(1); seed <= internets; seed++ {
		alone := usual
		alone.keepAlive = 0
		s := newSim(t, seed, alone)
		for i, intervals := range []int{1, 3} {
			s.run(t, time.Duration(intervals)*s.interval+shared)
			m := s.moment()
			mean[i].best += m.best / internets
			mean[i].excess += m.excess / internets
		}
	}
	return mean
}

// hardSeries are those of the plot.
type hardSeries struct{ learnt, not []moment }

// reportHard writes the figures of few phones, hidden subnets and liars, beside those of the same
// when nothing is learnt of resolvers, and without liars, and returns series of the first
// internet.
func reportHard(t *testing.T, out *strings.Builder) (series hardSeries) {
	fmt.Fprintf(out, "\nThree phones a network, %.0f %% of the networks asked for without client subnet (a third each by resolvers of their provider, in the hub nearest to\nthem, and in another hub), and %.0f of a hundred phones lie; the last lines of each internet are the same when nothing is learnt of resolvers, and without liars:\n\n"+
		"| internet | when | best node | mean excess | with client subnet | of these, where phones lie | provider's resolvers | regional | far away | distance alone: best node | mean excess | tries |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n",
		100*hard.hidden, 100*hard.liars)
	row := func(seed uint64, when string, m moment, lied string) {
		fmt.Fprintf(out, "| %d | %s | %.1f %% | %.1f ms | %.1f %% | %s | %.1f %% | %.1f %% | %.1f %% | %.1f %% | %.1f ms | %.1f %% |\n",
			seed, when, 100*m.best, m.excess, 100*m.shown, lied, 100*m.kinds[provided], 100*m.kinds[regional], 100*m.kinds[far], 100*m.distance, m.byRoad, 100*m.tries)
	}
	var learnt, not moment
	add := func(sum *moment, m moment) {
		sum.best += m.best / internets
		sum.excess += m.excess / internets
		sum.shown += m.shown / internets
		sum.lied += m.lied / internets
		for i := range sum.kinds {
			sum.kinds[i] += m.kinds[i] / internets
			sum.possible[i] += m.possible[i] / internets
		}
	}
	run := func(s *sim, intervals int, plotted *[]moment) moment {
		for q := int(s.now.Sub(s.start) * 4 / s.interval); plotted != nil && q < intervals*4; q++ {
			s.run(t, time.Duration(q)*s.interval/4)
			*plotted = append(*plotted, s.moment())
		}
		s.run(t, time.Duration(intervals)*s.interval+shared)
		return s.moment()
	}
	for seed := uint64(1); seed <= internets; seed++ {
		var plotLearnt, plotNot *[]moment
		if seed == 1 {
			plotLearnt, plotNot = &series.learnt, &series.not
		}
		s := newSim(t, seed, hard)
		var m moment
		for _, when := range []struct {
			at   int
			name string
		}{{1, "one interval"}, {5, "five intervals"}, {hardIntervals, fmt.Sprintf("%d intervals", hardIntervals)}} {
			m = run(s, when.at, plotLearnt)
			row(seed, when.name, m, fmt.Sprintf("%.1f %%", 100*m.lied))
		}
		add(&learnt, m)
		if m.best <= m.distance || m.excess >= m.byRoad {
			t.Errorf("internet %d is not better than distance alone: %v", seed, m)
		}
		blind := hard
		blind.follow = false
		m = run(newSim(t, seed, blind), hardIntervals, plotNot)
		row(seed, fmt.Sprintf("%d, nothing learnt", hardIntervals), m, fmt.Sprintf("%.1f %%", 100*m.lied))
		add(&not, m)
		honest := hard
		honest.liars = 0
		row(seed, fmt.Sprintf("%d, without liars", hardIntervals), run(newSim(t, seed, honest), hardIntervals, nil), "-")
	}
	if learnt.shown < wantShown || learnt.lied < wantLied {
		t.Errorf("the mean of all internets: %v", learnt)
	}
	if learnt.kinds[far] < wantFar || learnt.best <= not.best || learnt.excess >= not.excess || learnt.kinds[regional] < not.kinds[regional]-0.02 {
		t.Errorf("what is learnt of resolvers: %v, and without it: %v", learnt, not)
	}
	fmt.Fprintf(out, "\nThe mean of the %d after %d intervals: %.1f %% and %.1f ms; %.1f %% with client subnet, %.1f %% of these where phones lie; behind resolvers of the provider\n"+
		"%.1f %%, regional ones %.1f %%, those far away %.1f %%. When nothing is learnt of resolvers: %.1f %% and %.1f ms; %.1f %%, %.1f %%, %.1f %%.\n"+
		"One answer for all networks of a resolver is right for %.1f %%, %.1f %% and %.1f %% of them at best.\n",
		internets, hardIntervals, 100*learnt.best, learnt.excess, 100*learnt.shown, 100*learnt.lied, 100*learnt.kinds[provided], 100*learnt.kinds[regional], 100*learnt.kinds[far],
		100*not.best, not.excess, 100*not.kinds[provided], 100*not.kinds[regional], 100*not.kinds[far],
		100*learnt.possible[provided], 100*learnt.possible[regional], 100*learnt.possible[far])
	return series
}

const hardIntervals = 15

// plot draws the share of networks at the best node, with many phones and with few, and
// that by distance alone.
func plot(series []moment, few hardSeries) string {
	const left, top, width, height = 60.0, 30.0, 600.0, 260.0
	const intervals = hardIntervals
	x := func(at time.Duration) float64 {
		return left + width*float64(at)/float64(usual.interval)/intervals
	}
	y := func(share float64) float64 { return top + height*(1-share)/0.6 } // 40 to 100 %
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 350" font-family="sans-serif" font-size="12">`+"\n")
	fmt.Fprintf(&b, `<rect width="700" height="350" fill="white"/><text x="%g" y="18">Client networks that are told the node with the lowest latency</text>`+"\n", left)
	for share := 0.4; share < 1.01; share += 0.1 {
		fmt.Fprintf(&b, `<line x1="%g" y1="%.1f" x2="%g" y2="%.1f" stroke="#ddd"/><text x="%g" y="%.1f" text-anchor="end">%.0f %%</text>`+"\n", left, y(share), left+width, y(share), left-6, y(share)+4, 100*share)
	}
	for i := 0; i <= intervals; i++ {
		at := x(time.Duration(i) * usual.interval)
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%g" x2="%.1f" y2="%g" stroke="#ddd"/><text x="%.1f" y="%g" text-anchor="middle">%d</text>`+"\n", at, top, at, top+height, at, top+height+16, i)
	}
	fmt.Fprintf(&b, `<text x="%g" y="%g" text-anchor="middle">registration intervals; after %d the routes of a tenth of the providers change (many phones alone)</text>`+"\n", left+width/2, top+height+36, changeAfter)
	for _, line := range []struct {
		colour string
		series []moment
		value  func(*moment) float64
		name   string
		label  float64
	}{
		{"#1f6fb4", series, func(m *moment) float64 { return m.best }, "10 to 49 phones a network, client subnets sent", 0.975},
		{"#3a9a4e", few.learnt, func(m *moment) float64 { return m.shown }, "three phones, five liars of a hundred, client subnets sent", 0.89},
		{"#b08020", few.learnt, func(m *moment) float64 { return m.hidden }, "the same behind resolvers that send none", 0.76},
		{"#8060a0", few.not, func(m *moment) float64 { return m.hidden }, "behind these when nothing is learnt of them", 0.49},
		{"#c0504d", few.not, func(m *moment) float64 { return m.distance }, "distance alone", 0.69},
	} {
		var points []string
		for i := range line.series {
			m := &line.series[i]
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(m.at), y(line.value(m))))
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/><text x="%g" y="%.1f" fill="%s">%s</text>`+"\n",
			strings.Join(points, " "), line.colour, left+0.25*width, y(line.label), line.colour, line.name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
