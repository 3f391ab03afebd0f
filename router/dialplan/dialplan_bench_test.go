package dialplan

import (
	"net/http"
	"testing"
)

// BenchmarkDialstring and BenchmarkXML are what a question costs without the wire.
func BenchmarkDialstring(b *testing.B) {
	s := newServer(b, newFake(), nil)
	b.ReportAllocs()
	for b.Loop() {
		if r := ask(s, "GET", "/dialstring/1002@pbx.test", ""); r.StatusCode != http.StatusOK {
			b.Fatal(r)
		}
	}
}

func BenchmarkXML(b *testing.B) {
	s := newServer(b, newFake(), nil)
	form := callForm("1002")
	for i := range 300 { // as many parameters as a real call has
		form += "&variable_x" + string(rune('a'+i%26)) + "=some%20text%20that%20nobody%20reads"
	}
	b.ReportAllocs()
	for b.Loop() {
		if r := ask(s, "POST", "/xml", form); len(r.body) < 500 {
			b.Fatal(r)
		}
	}
}
