package result

import (
	"fmt"
	"time"

	"github.com/google/uuid"
)

// Decode reads one result event, api/result.schema.json, strictly: the client
// learns at once what would otherwise surprise a reader of the topic. What it
// accepts it does not alter, so strings with half a surrogate pair and times
// finer than a nanosecond are refused; UUIDs become lower-case and times UTC.
//
// A left-out event_id becomes a new UUIDv7, timestamp becomes now (the time of
// acceptance), and result becomes {}. Null counts as left out for these three,
// save that success needs its result, and for error; for no other field.
//
// The error is a *SyntaxError or an *InvalidError. The payload is a part of data
// and no copy of it: data must not be written to while the Result is in use.
func Decode(data []byte, now time.Time) (Result, error) {
	if err := checkSyntax(data); err != nil {
		return Result{}, err
	}
	doc := readDocument(data)
	v := validator{doc: &doc}
	r := v.result()
	if err := v.err(); err != nil {
		return Result{}, err
	}
	r.Digest = digest(&r, !isNull(doc.values[fieldResult]))
	if err := r.setDefaults(&doc, now); err != nil {
		return Result{}, err
	}
	return r, nil
}

func (r *Result) setDefaults(doc *document, now time.Time) error {
	if isNull(doc.values[fieldResult]) {
		r.Payload = []byte("{}")
	}
	if isNull(doc.values[fieldTimestamp]) {
		r.Timestamp = now.Round(0).UTC() // the monotonic reading would not survive the record
	}
	if !isNull(doc.values[fieldEventID]) {
		return nil
	}
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("make an event ID: %w", err)
	}
	r.EventID = id
	return nil
}
