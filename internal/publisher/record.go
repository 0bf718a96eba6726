package publisher

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/result"
)

const maxClockStep = 10 * time.Minute

// recordOf makes the Kafka record of a result: key = correlation ID, headers in
// CloudEvents 1.0 Kafka binary mode, value = the event. The timestamp is the
// time of sending, rounded up to the broker's milliseconds: never earlier than
// the acceptance, by which readers seek. Where the acceptance lies further ahead
// than a clock is set back in earnest, its clock was wrong, and a broker would
// refuse the record (message.timestamp.after.max.ms).
func recordOf(topic, source string, row *outbox.Row, now time.Time) *kgo.Record {
	r := &row.Result
	if ahead := row.AcceptedAt.Sub(now); ahead > 0 && ahead < maxClockStep {
		now = row.AcceptedAt // the clock was set back
	}
	// One piece of memory for all texts of a record: they live and die together.
	buf := r.AppendJSON(make([]byte, 0, len(r.Payload)+2*recordTexts+len(source)))
	value, start := buf[:len(buf):len(buf)], len(buf)
	take := func() []byte {
		text := buf[start:len(buf):len(buf)]
		start = len(buf)
		return text
	}
	text := func(s string) []byte {
		buf = append(buf, s...)
		return take()
	}
	id := func(id uuid.UUID) []byte {
		buf = result.AppendUUID(buf, id)
		return take()
	}
	correlation := id(r.CorrelationID)
	headers := append(make([]kgo.RecordHeader, 0, 12), // one more for a trace's
		kgo.RecordHeader{Key: "ce_specversion", Value: text("1.0")},
		kgo.RecordHeader{Key: "ce_id", Value: id(r.EventID)},
		kgo.RecordHeader{Key: "ce_type", Value: text(result.EventType)},
		kgo.RecordHeader{Key: "ce_source", Value: text(source)},
		kgo.RecordHeader{Key: "ce_time", Value: text(r.Timestamp.Format(time.RFC3339Nano))},
		kgo.RecordHeader{Key: "ce_correlationid", Value: correlation},
		kgo.RecordHeader{Key: "ce_workflowid", Value: text(r.WorkflowID)},
		kgo.RecordHeader{Key: "ce_workflowrunid", Value: text(r.WorkflowRunID)},
		kgo.RecordHeader{Key: "content-type", Value: text("application/json")},
	)
	if r.TraceParent != "" {
		headers = append(headers, kgo.RecordHeader{Key: "traceparent", Value: text(r.TraceParent)})
	}
	if r.TraceState != "" {
		headers = append(headers, kgo.RecordHeader{Key: "tracestate", Value: text(r.TraceState)})
	}
	return &kgo.Record{
		Topic:     topic,
		Key:       correlation,
		Value:     value,
		Headers:   headers,
		Timestamp: now.Add(time.Millisecond - time.Nanosecond).Truncate(time.Millisecond),
	}
}

// recordTexts is what the fields of a record beside the payload nearly always fit
// into, once as JSON and once as headers.
const recordTexts = 384

// watermarkValue is the value of a watermark record; its key is the outbox ID.
type watermarkValue struct {
	Seq        int64     `json:"seq"`
	Generation uuid.UUID `json:"generation"`
	Parkings   int64     `json:"parkings"`
	Owner      uuid.UUID `json:"owner"`
}

func watermarkRecord(topic string, partition int32, id uuid.UUID, w outbox.Watermark) (*kgo.Record, error) {
	value, err := json.Marshal(watermarkValue(w))
	if err != nil {
		return nil, fmt.Errorf("encode the watermark: %w", err)
	}
	return &kgo.Record{Topic: topic, Partition: partition, Key: []byte(id.String()), Value: value}, nil
}

func decodeWatermark(value []byte) (outbox.Watermark, error) {
	var w watermarkValue
	if err := json.Unmarshal(value, &w); err != nil {
		return outbox.Watermark{}, fmt.Errorf("decode a watermark of ours: %w", err)
	}
	return outbox.Watermark(w), nil
}
