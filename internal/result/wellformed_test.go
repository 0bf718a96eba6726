package result

import (
	"strings"
	"testing"
)

// FuzzWellFormed: the fast look and encoding/json agree about every document.
func FuzzWellFormed(f *testing.F) {
	nested := func(n int) string { return strings.Repeat(`{"a":`, n) + "0" + strings.Repeat("}", n) }
	for _, text := range []string{
		"", " ", "{", "{}", " {} ", "{} x", "[]", "0", `{"a":1}`, `{"a":1,}`, `{"a" :1 , "b": [ ] }`, `{"a":[1,2,]}`, `{"a":[,]}`, `{,}`, `{"a"}`, `{"a":}`, `{a:1}`, `{"a":1 "b":2}`,
		`{"a":true}`, `{"a":tru}`, `{"a":falsey}`, `{"a":nul`, `{"a":null}`, `{"a":01}`, `{"a":-}`, `{"a":-0.0e-10}`, `{"a":1.}`, `{"a":.1}`, `{"a":1e}`, `{"a":1E+5}`, `{"a":+1}`, `{"a":0x1}`,
		`{"a":"\u00e9\"\\\/\b\f\n\r\t"}`, `{"a":"\u00g0"}`, `{"a":"\u00`, `{"a":"\u12"}`, `{"a":"\x"}`, "{\"a\":\"\x1f\"}", "{\"a\":\"\x7f\"}", "{\"a\":\"\xff\"}", "{\"\x00\":1}", "{\"a\":1}\x00", `{"a":"\uD800"}`, `{"a":"\u\u\u\u"}`, "{\"a\":\"\\u00\x10\x10\"}",
		"\ufeff{}", nested(MaxDepth), nested(MaxDepth + 1), `{"a":` + strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth) + "}", `{"a":` + strings.Repeat("[", MaxDepth-1) + strings.Repeat("]", MaxDepth-1) + "}",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := explain(data); wellFormed(data) != (err == nil) {
			t.Errorf("%q: %v", data, err)
		}
	})
}
