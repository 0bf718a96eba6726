package ipc

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/result"
)

// View is an outbox entry as JSON. Null where it does not apply, or where only
// the watermark told us that the result is published.
type View struct {
	EventID       uuid.UUID       `json:"event_id"`
	CorrelationID uuid.UUID       `json:"correlation_id"`
	WorkflowID    string          `json:"workflow_id"`
	WorkflowRunID string          `json:"workflow_run_id"`
	Status        result.Status   `json:"status"`
	State         outbox.State    `json:"state"`
	Seq           int64           `json:"seq"`
	Bytes         int64           `json:"bytes"`
	AcceptedAt    time.Time       `json:"accepted_at"`
	Topic         *string         `json:"topic"`
	Partition     *int32          `json:"partition"`
	Offset        *int64          `json:"offset"`
	PublishedAt   *time.Time      `json:"published_at"`
	ParkedAt      *time.Time      `json:"parked_at"`
	Reason        *string         `json:"reason"`
	Result        json.RawMessage `json:"result,omitempty"` // only where payloads are shown: see writeWithPayload
}

func viewOf(e outbox.Entry) View {
	v := View{
		EventID: e.EventID, CorrelationID: e.CorrelationID, WorkflowID: e.WorkflowID, WorkflowRunID: e.WorkflowRunID,
		Status: e.Status, State: e.State, Seq: e.Seq, Bytes: e.Bytes, AcceptedAt: e.AcceptedAt,
		PublishedAt: e.PublishedAt, ParkedAt: e.ParkedAt,
	}
	if l := e.Location; l != nil {
		v.Topic, v.Partition, v.Offset = &l.Topic, &l.Partition, &l.Offset
	}
	if e.State == outbox.Parked {
		v.Reason = &e.Reason
	}
	return v
}

func (v View) entry() outbox.Entry {
	e := outbox.Entry{
		Seq: v.Seq, EventID: v.EventID, CorrelationID: v.CorrelationID, WorkflowID: v.WorkflowID, WorkflowRunID: v.WorkflowRunID,
		Status: v.Status, State: v.State, Bytes: v.Bytes, AcceptedAt: v.AcceptedAt, PublishedAt: v.PublishedAt, ParkedAt: v.ParkedAt,
	}
	if v.Topic != nil && v.Partition != nil && v.Offset != nil {
		e.Location = &outbox.Location{Topic: *v.Topic, Partition: *v.Partition, Offset: *v.Offset}
	}
	if v.Reason != nil {
		e.Reason = *v.Reason
	}
	return e
}

// receipt answers one accepted result.
type receipt struct {
	EventID   uuid.UUID    `json:"event_id"`
	Seq       int64        `json:"seq"`
	State     outbox.State `json:"state"`
	Duplicate bool         `json:"duplicate"`
	Topic     *string      `json:"topic,omitempty"`
	Partition *int32       `json:"partition,omitempty"`
	Offset    *int64       `json:"offset,omitempty"`
	Reason    string       `json:"reason,omitempty"` // of a parked one
}

// plain reports whether appendMembers writes all of it, as of nearly every receipt.
func (rc *receipt) plain() bool { return rc.Topic == nil && rc.Reason == "" }

// appendMembers writes the members that every receipt has. By hand: this is the hot
// path, and encoding/json takes several times as long.
func (rc *receipt) appendMembers(b []byte) []byte {
	b = append(b, `"event_id":"`...)
	b = result.AppendUUID(b, rc.EventID)
	b = append(b, `","seq":`...)
	b = strconv.AppendInt(b, rc.Seq, 10)
	b = append(b, `,"state":"`...)
	b = append(b, rc.State...)
	b = append(b, `","duplicate":`...)
	return strconv.AppendBool(b, rc.Duplicate)
}

func receiptOf(e outbox.Entry, duplicate bool) receipt {
	r := receipt{EventID: e.EventID, Seq: e.Seq, State: e.State, Duplicate: duplicate, Reason: e.Reason}
	if l := e.Location; l != nil {
		r.Topic, r.Partition, r.Offset = &l.Topic, &l.Partition, &l.Offset
	}
	return r
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		_ = writeProblem(w, err)
		return
	}
	writeBody(w, status, body)
}

func writeBody(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // a client that is gone is no error of ours
}

// writeWithPayload writes an entry with its payload byte for byte: json.Marshal
// would take out white space and escape what HTML minds. nil is one whose history
// window is over.
func writeWithPayload(w http.ResponseWriter, v View, payload []byte) {
	body, err := json.Marshal(v)
	if err != nil {
		_ = writeProblem(w, err)
		return
	}
	if payload == nil {
		payload = []byte("null")
	}
	body = append(body[:len(body)-1], `,"result":`...)
	writeBody(w, http.StatusOK, append(append(body, payload...), '}'))
}

// Views are entries as the socket's JSON shows them, for commands that print it.
func Views(entries []outbox.Entry) []View {
	views := make([]View, len(entries))
	for i, e := range entries {
		views[i] = viewOf(e)
	}
	return views
}
