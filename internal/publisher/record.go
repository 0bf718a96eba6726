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
	headers := make([]kgo.RecordHeader, 0, 11)
	add := func(key, value string) {
		headers = append(headers, kgo.RecordHeader{Key: key, Value: []byte(value)})
	}
	correlation := r.CorrelationID.String()
	add("ce_specversion", "1.0")
	add("ce_id", r.EventID.String())
	add("ce_type", result.EventType)
	add("ce_source", source)
	add("ce_time", r.Timestamp.Format(time.RFC3339Nano))
	add("ce_correlationid", correlation)
	add("ce_workflowid", r.WorkflowID)
	add("ce_workflowrunid", r.WorkflowRunID)
	add("content-type", "application/json")
	if r.TraceParent != "" {
		add("traceparent", r.TraceParent)
	}
	if r.TraceState != "" {
		add("tracestate", r.TraceState)
	}
	return &kgo.Record{
		Topic:     topic,
		Key:       []byte(correlation),
		Value:     r.AppendJSON(make([]byte, 0, len(r.Payload)+512)),
		Headers:   headers,
		Timestamp: now.Add(time.Millisecond - time.Nanosecond).Truncate(time.Millisecond),
	}
}

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
