package result

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// FieldError says what is wrong with one field.
type FieldError struct {
	Field string `json:"field"`
	Msg   string `json:"message"`
}

// InvalidError is a JSON object that is no valid event (HTTP 422). It names
// every field that is wrong once, in the order of the schema, then the unknown
// ones, of which it names the first 16 and counts the rest. It holds no values.
type InvalidError struct{ Fields []FieldError }

func (e *InvalidError) Error() string {
	parts := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		parts[i] = f.Field + ": " + f.Msg
	}
	return strings.Join(parts, "; ")
}

// validator turns a document into a Result and collects what is wrong with it.
type validator struct {
	doc   *document
	wrong [fieldCount]string
}

func (v *validator) err() error {
	var fields []FieldError
	for f, msg := range v.wrong {
		if v.doc.repeated[f] {
			msg = "given more than once"
		}
		if msg != "" {
			fields = append(fields, FieldError{field(f).String(), msg})
		}
	}
	for _, name := range v.doc.unknown {
		fields = append(fields, FieldError{name, "unknown field"})
	}
	if len(fields) == 0 {
		return nil
	}
	if n := v.doc.moreUnknown; n > 0 {
		fields[len(fields)-1].Msg += fmt.Sprintf("; %d further ones are not listed", n)
	}
	return &InvalidError{Fields: fields}
}

// result is valid, but for its defaults, if err is nil afterwards.
func (v *validator) result() Result {
	v.eventType()
	status := v.status()
	return Result{
		EventID:       v.uuid(fieldEventID),
		CorrelationID: v.uuid(fieldCorrelationID),
		WorkflowID:    v.id(fieldWorkflowID),
		WorkflowRunID: v.id(fieldWorkflowRunID),
		Payload:       v.payload(status),
		Status:        status,
		Timestamp:     v.timestamp(),
		Error:         v.errorText(status),
	}
}

func (v *validator) eventType() {
	if v.doc.values[fieldEventType] == nil {
		return
	}
	if s, ok := v.text(fieldEventType); ok && string(s) != EventType {
		v.wrong[fieldEventType] = `must be "` + EventType + `"`
	}
}

func (v *validator) status() Status {
	s, ok := v.text(fieldStatus)
	if !ok {
		return ""
	}
	for _, known := range []Status{Success, Failure, Error} {
		if string(s) == string(known) {
			return known
		}
	}
	v.wrong[fieldStatus] = "must be success, failure or error"
	return ""
}

// uuid takes the one text form of RFC 9562, in any case. The nil UUID identifies
// nothing: it is what a client sends that forgot to set one.
func (v *validator) uuid(f field) uuid.UUID {
	if f == fieldEventID && isNull(v.doc.values[f]) {
		return uuid.Nil
	}
	s, ok := v.text(f)
	if !ok {
		return uuid.Nil
	}
	id, err := uuid.ParseBytes(s)
	switch {
	case err != nil || len(s) != 36: // Parse also takes braces, URNs and bare digits
		v.wrong[f] = "must be a UUID of 36 characters, such as 0192f0c1-7b1e-7cc3-9d2a-0123456789ab"
	case id == uuid.Nil:
		v.wrong[f] = "must not be the nil UUID"
	}
	return id
}

func (v *validator) id(f field) string {
	s, ok := v.text(f)
	if ok && (len(s) == 0 || len(s) > MaxIDBytes) {
		v.wrong[f] = fmt.Sprintf("must have 1 to %d bytes of UTF-8, has %d", MaxIDBytes, len(s))
	}
	return string(s)
}

func (v *validator) payload(status Status) []byte {
	raw := v.doc.values[fieldResult]
	switch {
	case isNull(raw) && status == Success:
		v.wrong[fieldResult] = "is required for status success: a JSON object"
	case !isNull(raw) && raw[0] != '{':
		v.wrong[fieldResult] = "must be a JSON object"
	}
	return raw
}

func (v *validator) timestamp() time.Time {
	if isNull(v.doc.values[fieldTimestamp]) {
		return time.Time{}
	}
	s, ok := v.text(fieldTimestamp)
	if !ok {
		return time.Time{}
	}
	t, err := parseTime(string(s))
	if err != nil {
		v.wrong[fieldTimestamp] = "must be an RFC 3339 time of years 0000 to 9999 in UTC with at most 9 decimals, such as 2026-01-02T03:04:05.678Z"
	}
	return t
}

func (v *validator) errorText(status Status) *string {
	if isNull(v.doc.values[fieldError]) {
		if status == Error {
			v.wrong[fieldError] = "is required for status error: what broke"
		}
		return nil
	}
	raw, ok := v.text(fieldError)
	s := string(raw)
	switch {
	case ok && status == Success:
		v.wrong[fieldError] = "must be null for status success"
	case ok && status == Error && s == "":
		v.wrong[fieldError] = "must not be empty for status error"
	}
	return &s
}

// text is the value of a required string. Whoever asks for an optional one has
// made sure that it is there. It may be a part of the input: what is kept is copied.
func (v *validator) text(f field) ([]byte, bool) {
	raw := v.doc.values[f]
	if raw == nil {
		v.wrong[f] = "is required"
		return nil, false
	}
	if raw[0] != '"' {
		v.wrong[f] = "must be a string"
		return nil, false
	}
	s, exact := unquote(raw)
	if !exact {
		v.wrong[f] = `has an unpaired surrogate escape (\ud800 to \udfff)`
	}
	return s, exact
}
