package result_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"workflow-results-sidecar/internal/result"
)

// FuzzDecode: Decode never panics nor writes to its input, and what it refuses
// is refused with a reason. What it accepts is a JSON object whose payload is in
// the record byte for byte; its record decodes to the same result, is written
// the same again, and a resend has the same digest.
func FuzzDecode(f *testing.F) {
	for _, v := range slices.Concat(readVectors(f, validVectors), readVectors(f, invalidVectors)) {
		f.Add(v.data())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		input := bytes.Clone(data)
		r, err := result.Decode(data, time.Unix(1767323045, 678))
		if !bytes.Equal(data, input) {
			t.Fatal("the input was written to")
		}
		if err != nil {
			checkRefusal(t, err)
			return
		}
		checkAccepted(t, data, r)
	})
}

func checkRefusal(t *testing.T, err error) {
	kind, fields := classify(err)
	if kind == "accepted" || kind == "invalid" && len(fields) == 0 || err.Error() == "" {
		t.Errorf("refused without a reason: %#v", err)
	}
}

func checkAccepted(t *testing.T, data []byte, r result.Result) {
	var event, written struct {
		Result json.RawMessage `json:"result"`
	}
	if err := json.Unmarshal(data, &event); err != nil {
		t.Fatalf("accepted, but no JSON object: %v", err)
	}
	supplied := event.Result != nil && string(event.Result) != "null"
	if supplied && !bytes.Equal(event.Result, r.Payload) {
		t.Errorf("payload %q, supplied was %q", r.Payload, event.Result)
	}

	value := r.AppendJSON(nil)
	if err := json.Unmarshal(value, &written); err != nil || !bytes.Equal(written.Result, r.Payload) {
		t.Fatalf("payload %q, in the record %q (%v)", r.Payload, written.Result, err)
	}
	again, err := result.Decode(value, time.Time{})
	if err != nil {
		t.Fatalf("the record %q is refused: %v", value, err)
	}
	if !supplied {
		again.Digest = r.Digest // {} in the record is not what was supplied
	}
	if diff := cmp.Diff(r, again); diff != "" {
		t.Errorf("the record decodes to another result:\n%s", diff)
	}
	if rewritten := again.AppendJSON(nil); !bytes.Equal(rewritten, value) {
		t.Errorf("written as %q, then as %q", value, rewritten)
	}
	resent, err := result.Decode(data, time.Unix(2e9, 0))
	if err != nil || resent.Digest != r.Digest {
		t.Errorf("a resend has another digest (%v)", err)
	}
}
