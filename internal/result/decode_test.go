package result_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/result"
)

const correlation = "7f9c24e8-3b12-4fef-91e0-5a6b7c8d9e0f"

// event is a valid failure without optional fields, and what is added to it.
func event(members string) []byte {
	return fmt.Appendf(nil, `{"correlation_id":%q,"workflow_id":"w","workflow_run_id":"r","status":"failure"%s}`, correlation, members)
}

func mustDecode(t *testing.T, data []byte) result.Result {
	t.Helper()
	r, err := result.Decode(data, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDefaults(t *testing.T) {
	now := time.Now().In(time.FixedZone("", 3600))
	for _, members := range []string{"", `,"event_id":null,"timestamp":null,"result":null,"error":null`} {
		r, err := result.Decode(event(members), now)
		if err != nil {
			t.Fatal(err)
		}
		if r.EventID.Version() != 7 {
			t.Errorf("event ID %s is no UUIDv7", r.EventID)
		}
		if want := now.Round(0).UTC(); r.Timestamp != want { // no monotonic reading, no zone
			t.Errorf("timestamp %#v, want %#v", r.Timestamp, want)
		}
		if string(r.Payload) != "{}" || r.Error != nil {
			t.Errorf("payload %s, error %v", r.Payload, r.Error)
		}
	}
	if a, b := mustDecode(t, event("")), mustDecode(t, event("")); a.EventID == b.EventID {
		t.Error("two results got the same event ID")
	}
}

func TestPayloadIsPartOfTheInput(t *testing.T) {
	data := event(`,"result":{"a":1}`)
	payload := mustDecode(t, data).Payload
	start := strings.Index(string(data), `{"a":1}`)
	if unsafe.SliceData(payload) != &data[start] {
		t.Error("the payload was copied")
	}
	if cap(payload) != len(payload) {
		t.Error("appending to the payload would overwrite the input")
	}
}

func TestSyntaxErrorOffset(t *testing.T) {
	tests := []struct {
		data   string
		offset int64
	}{
		{"", 0},
		{` {"a":nan}`, 8},
		{`{} {}`, 4},
		{" []", 2},
		{"{\"a\":\"\xff\"}", 7},
		{"{\"é\":\"\xe2\x82\"}", 8},
		{strings.Repeat(`{"a":`, 129) + "1" + strings.Repeat("}", 129), 128*5 + 1},
		{strings.Repeat("[", 20000), 10001}, // beyond what encoding/json reads
	}
	for _, test := range tests {
		_, err := result.Decode([]byte(test.data), time.Now())
		var syntax *result.SyntaxError
		if !errors.As(err, &syntax) || syntax.Offset != test.offset {
			t.Errorf("%.20q: got %v, want offset %d", test.data, err, test.offset)
		}
	}
}

func TestInvalidErrorText(t *testing.T) {
	_, err := result.Decode(event(`,"error":7,"event_type":"x","also":1`), time.Now())
	const want = `event_type: must be "workflow.result"; error: must be a string; also: unknown field`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// TestErrorsStaySmall: neither long names nor many, nor any value, make it into
// an error.
func TestErrorsStaySmall(t *testing.T) {
	secret := strings.Repeat("secret", 1000)
	var members strings.Builder
	fmt.Fprintf(&members, `,"event_id":%q,"timestamp":%q,"result":[%[1]q],"event_type":%[1]q`, secret, secret)
	for i := range 1000 {
		fmt.Fprintf(&members, `,"n%d%s":%q`, i, strings.Repeat("é", 1000), secret)
	}
	_, err := result.Decode(event(members.String()), time.Now())
	var invalid *result.InvalidError
	if !errors.As(err, &invalid) {
		t.Fatalf("got %v", err)
	}
	if got, want := len(invalid.Fields), 4+16; got != want {
		t.Errorf("%d fields named, want %d", got, want)
	}
	text := err.Error()
	if len(text) > 3000 || strings.Contains(text, "secret") {
		t.Errorf("%d bytes: %s", len(text), text)
	}
	if !strings.HasSuffix(text, "; 984 further ones are not listed") {
		t.Errorf("the rest is not counted: %s", text)
	}
}

func TestUnknownFieldIsNamedOnce(t *testing.T) {
	_, err := result.Decode(event(`,"x":1,"x":2`), time.Now())
	if want := "x: unknown field"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestDigest: a resend has the digest of the first, everything else another one.
func TestDigest(t *testing.T) {
	base := mustDecode(t, event("")).Digest
	for _, members := range []string{
		`,"event_id":"` + uuid.NewString() + `"`,
		`,"event_type":"workflow.result"`,
		`,"timestamp":"2026-01-02T03:04:05Z"`,
		`,"result":null,"error":null`,
	} {
		if mustDecode(t, event(members)).Digest != base {
			t.Errorf("%s changes the digest", members)
		}
	}
	upper := strings.ReplaceAll(string(event("")), correlation, strings.ToUpper(correlation))
	if mustDecode(t, []byte(upper)).Digest != base {
		t.Error("the case of a UUID changes the digest")
	}

	seen := map[result.Digest]string{base: "base"}
	other := strings.NewReplacer
	for name, data := range map[string]string{
		"result {}":         string(event(`,"result":{}`)),
		"result with space": string(event(`,"result":{ }`)),
		"error empty":       string(event(`,"error":""`)),
		"error":             string(event(`,"error":"x"`)),
		"error and result":  string(event(`,"error":"x","result":{}`)),
		"correlation_id":    other("7f9c", "7f9d").Replace(string(event(""))),
		"workflow_id":       other(`"w"`, `"v"`).Replace(string(event(""))),
		"workflow_run_id":   other(`"r"`, `"v"`).Replace(string(event(""))),
		"text moved":        other(`"w"`, `"wr"`, `"r"`, `"\u0000"`).Replace(string(event(""))),
		"text moved back":   other(`"w"`, `"w\u0000"`, `"r"`, `"r"`).Replace(string(event(""))),
		"status":            other("failure", "error").Replace(string(event(`,"error":"x"`))),
	} {
		d := mustDecode(t, []byte(data)).Digest
		if twin, ok := seen[d]; ok {
			t.Errorf("%s and %s share a digest", name, twin)
		}
		seen[d] = name
	}
}

// TestDigestFormat pins the encoding: outboxes on disk hold digests of it.
func TestDigestFormat(t *testing.T) {
	const want = "fc93a9a649ff103a07e29d39a9a23635"
	got := fmt.Sprintf("%x", mustDecode(t, event(`,"error":"x","result":{"a":1}`)).Digest)
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestAppendJSONWritesUTC(t *testing.T) {
	r := mustDecode(t, event(`,"timestamp":"2026-01-02T03:04:05Z"`))
	want := string(r.AppendJSON(nil))
	r.Timestamp = r.Timestamp.In(time.FixedZone("", -3600))
	if got := string(r.AppendJSON([]byte("x"))); got != "x"+want {
		t.Errorf("got %s, want x%s", got, want)
	}
}

// TestRecordIsNoLongerThanItsEvent but for the fields that were left out: a limit
// that the event kept must not be broken by the record.
func TestRecordIsNoLongerThanItsEvent(t *testing.T) {
	for _, text := range []string{`\n\r\t\b\f`, `\u0000\u001f`, `\"\\\/`, `\u00e9é\ud83d\ude00`} {
		member := `,"error":"` + strings.Repeat(text, 1000) + `"`
		data := event(member)
		r := mustDecode(t, data)
		bare := mustDecode(t, event(""))
		overhead := len(bare.AppendJSON(nil)) - len(event(""))
		if got, most := len(r.AppendJSON(nil)), len(data)+overhead; got > most {
			t.Errorf("%s: %d bytes became %d", text, len(data), got)
		}
	}
}

func kibibyte() []byte {
	return event(`,"event_id":"0192f0c1-7b1e-7cc3-9d2a-0123456789ab","result":{"items":[` +
		strings.Repeat(`{"name":"a b c","n":1.5},`, 32) + `null]}`)
}

func BenchmarkDecode(b *testing.B) {
	data, now := kibibyte(), time.Now()
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := result.Decode(data, now); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	r, err := result.Decode(kibibyte(), time.Now())
	if err != nil {
		b.Fatal(err)
	}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = r.AppendJSON(buf[:0])
	}
	b.SetBytes(int64(len(buf)))
}
