package result_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"workflow-results-sidecar/internal/result"
)

// FuzzDecode gives Decode any bytes. Whatever they are:
//
//   - it neither panics nor writes to its input;
//   - what it refuses is refused with a reason, of bounded length: a document can
//     neither fill the log nor the answer;
//   - what it accepts is valid by api/result.schema.json, and every field is what
//     encoding/json reads there;
//   - its payload is in the record byte for byte;
//   - its record decodes to the same result, is written the same again, and a
//     resend has the same digest.
func FuzzDecode(f *testing.F) {
	schema := compileSchema(f)
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
		checkFields(t, schema, data, r)
	})
}

// maxReason is 9 fields and 16 unknown ones of 64 bytes and their texts.
const maxReason = 4096

// checkFields reads the event in another way.
func checkFields(t *testing.T, schema *jsonschema.Schema, data []byte, r result.Result) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(doc); err != nil {
		t.Errorf("accepted, and the schema says: %v", err)
	}
	fields, ok := doc.(map[string]any)
	if !ok {
		t.Fatalf("%T", doc)
	}
	if fields["workflow_id"] != r.WorkflowID || fields["workflow_run_id"] != r.WorkflowRunID || fields["status"] != string(r.Status) {
		t.Errorf("%v became %+v", fields, r)
	}
	if text, ok := fields["error"].(string); ok != (r.Error != nil) || ok && text != *r.Error {
		t.Errorf("error %v became %v", fields["error"], r.Error)
	}
	if text, ok := fields["correlation_id"].(string); !ok || !strings.EqualFold(text, r.CorrelationID.String()) {
		t.Errorf("correlation_id %v became %s", fields["correlation_id"], r.CorrelationID)
	}
	if text, ok := fields["event_id"].(string); ok && !strings.EqualFold(text, r.EventID.String()) {
		t.Errorf("event_id %s became %s", text, r.EventID)
	}
	if text, ok := fields["timestamp"].(string); ok {
		if at, err := time.Parse(time.RFC3339Nano, text); err != nil || !at.Equal(r.Timestamp) {
			t.Errorf("timestamp %s became %s (%v)", text, r.Timestamp, err)
		}
	}
}

func checkRefusal(t *testing.T, err error) {
	kind, fields := classify(err)
	if kind == "accepted" || kind == "invalid" && len(fields) == 0 || err.Error() == "" {
		t.Errorf("refused without a reason: %#v", err)
	}
	if len(err.Error()) > maxReason {
		t.Errorf("a reason of %d bytes: %v", len(err.Error()), err)
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
