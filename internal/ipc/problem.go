package ipc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/result"
)

// problem is an error as the client sees it (RFC 9457).
type problem struct {
	Type   string              `json:"type"`
	Title  string              `json:"title"`
	Status int                 `json:"status"`
	Detail string              `json:"detail,omitempty"`
	Errors []result.FieldError `json:"errors,omitempty"` // 422: every field that is wrong
	Held   *View               `json:"held,omitempty"`   // 409: what is held under the event ID
	Limit  int64               `json:"limit_bytes,omitempty"`
	Size   int64               `json:"size_bytes,omitempty"` // 413; left out where it is unknown

	name       string
	retryAfter int // seconds; 0: no header
}

const problemType = "urn:workflow-results:problem:"

// problemNames are the last parts of all types, and the reasons of the metric
// rejected_total. It has them from the start: an alert must not rest on a series
// that is not there yet.
var problemNames = []string{
	"bad-query", "busy", "conflict", "forbidden", "full", "incomplete", "internal", "interrupted", "invalid", "media-type", "method", "not-found",
	"not-json", "not-parked", "payload-hidden", "slow", "too-large", "too-many-lines", "too-many-waiters", "unavailable", "unknown-path",
}

func newProblem(status int, name, title, detail string) *problem {
	return &problem{Type: problemType + name, Title: title, Status: status, Detail: detail, name: name}
}

func (p *problem) Error() string { return fmt.Sprintf("%d %s: %s", p.Status, p.Title, p.Detail) }

func (p *problem) after(seconds int) *problem {
	p.retryAfter = seconds
	return p
}

func tooLarge(what string, size, limit int64) *problem {
	detail := fmt.Sprintf("the %s is larger than %d bytes", what, limit)
	if size > 0 {
		detail = fmt.Sprintf("the %s has %d bytes, the limit is %d", what, size, limit)
	}
	if what == "result" {
		detail += ": the topic's max.message.bytes, less what a record adds"
	}
	p := newProblem(http.StatusRequestEntityTooLarge, "too-large", "too large", detail)
	p.Size, p.Limit = max(size, 0), limit
	return p
}

func badQuery(format string, args ...any) *problem {
	return newProblem(http.StatusBadRequest, "bad-query", "bad query", fmt.Sprintf(format, args...))
}

// problemOf is the one table from errors to statuses. A 5xx means unknown, not
// "not stored": the client sends it again with the same event_id.
func problemOf(err error) *problem {
	var (
		known    *problem
		syntax   *result.SyntaxError
		invalid  *result.InvalidError
		conflict *outbox.ConflictError
		large    *http.MaxBytesError
	)
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &syntax):
		return newProblem(http.StatusBadRequest, "not-json", "not a JSON object", syntax.Error())
	case errors.As(err, &invalid):
		p := newProblem(http.StatusUnprocessableEntity, "invalid", "invalid result", invalid.Error())
		p.Errors = invalid.Fields
		return p
	case errors.As(err, &conflict):
		p := newProblem(http.StatusConflict, "conflict", "event_id is held with other content", conflict.Error())
		held := viewOf(conflict.Held)
		p.Held = &held
		return p
	case errors.As(err, &large):
		return tooLarge("body", 0, large.Limit)
	case errors.Is(err, outbox.ErrNotFound):
		return newProblem(http.StatusNotFound, "not-found", "no such result", err.Error())
	case errors.Is(err, outbox.ErrNotParked):
		return newProblem(http.StatusConflict, "not-parked", "not parked", err.Error())
	case errors.Is(err, outbox.ErrFull):
		return newProblem(http.StatusInsufficientStorage, "full", "the outbox is full",
			"the limit of the outbox or the disk is reached; publishing goes on and makes room: send it again with the same event_id").after(5)
	case errors.Is(err, outbox.ErrBusy):
		return newProblem(http.StatusServiceUnavailable, "busy", "busy", "too many results wait for a commit: send it again with the same event_id").after(1)
	case errors.Is(err, outbox.ErrUnavailable), errors.Is(err, outbox.ErrClosed):
		return newProblem(http.StatusServiceUnavailable, "unavailable", "the outbox cannot store results",
			"the sidecar's log and /readyz name the cause; send it again with the same event_id").after(5)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return newProblem(http.StatusServiceUnavailable, "interrupted", "interrupted", "the request ended before its commit: send it again with the same event_id").after(1)
	default:
		return newProblem(http.StatusInternalServerError, "internal", "internal error", "the sidecar's log names the cause; send it again with the same event_id").after(5)
	}
}

func (p *problem) json() []byte {
	body, err := json.Marshal(p)
	if err != nil { // only strings and numbers: cannot be
		return []byte(`{"type":"` + problemType + `internal","title":"internal error","status":500}`)
	}
	return body
}

// writeProblem answers with err's problem and returns it. A client that is gone
// is no error of ours.
func writeProblem(w http.ResponseWriter, err error) *problem {
	p := problemOf(err)
	if p.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(p.json(), '\n'))
	return p
}
