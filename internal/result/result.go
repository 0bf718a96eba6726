// Package result is the result event: what a workflow hands over, and what the
// Kafka record carries. It knows no other package of this module.
//
// A Result is decoded strictly (Decode), carries the bytes of its payload
// untouched, and is written back as JSON in one fixed field order (AppendJSON).
package result

import (
	"time"

	"github.com/google/uuid"
)

// EventType is the only event type that this module handles.
const EventType = "workflow.result"

// Limits of the fields, in bytes of UTF-8 and in levels.
const (
	MaxIDBytes = 256 // workflow_id and workflow_run_id, each
	MaxDepth   = 128 // nesting of the whole document, the event object being level 1
)

// Status says how the workflow ended.
type Status string

// The three ends of a workflow.
const (
	Success Status = "success" // it ran to its end
	Failure Status = "failure" // the workflow itself decided so
	Error   Status = "error"   // it broke
)

// Digest identifies the content of a result: the first 16 bytes of a SHA-256
// over the fields as they were supplied, before defaults and without event_id
// and timestamp, so that a resend has the digest of the first.
type Digest [16]byte

// Result is one valid result event.
type Result struct {
	EventID       uuid.UUID // identity; a UUIDv7 of ours if none was supplied
	CorrelationID uuid.UUID // event ID of the trigger
	WorkflowID    string    // 1 to MaxIDBytes bytes
	WorkflowRunID string    // 1 to MaxIDBytes bytes
	Payload       []byte    // the JSON object `result`, byte for byte; "{}" if it was left out
	Status        Status
	Timestamp     time.Time // UTC; the time of acceptance if none was supplied
	Error         *string   // nil is JSON null
	TraceParent   string    // W3C Trace Context of the request, or empty
	TraceState    string
	Digest        Digest
}
