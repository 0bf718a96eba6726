package result

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// SyntaxError reports a document that is not one JSON object (RFC 8259).
type SyntaxError struct {
	Offset int64 // in bytes
	Msg    string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("%s (at byte %d)", e.Msg, e.Offset) }

// FieldError says what is wrong with one field.
type FieldError struct {
	Field string `json:"field"`
	Msg   string `json:"message"`
}

// InvalidError names every field that is wrong.
type InvalidError struct{ Fields []FieldError }

func (e *InvalidError) Error() string {
	parts := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		parts[i] = f.Field + ": " + f.Msg
	}
	return "invalid result: " + strings.Join(parts, "; ")
}

// document holds the raw value of each known field; nil where it was left out.
type document struct {
	eventType, eventID, correlationID, workflowID, workflowRunID []byte
	payload, status, timestamp, errorText                        []byte
}

// field returns the place of a field by its name, nil for an unknown name.
func (d *document) field(name string) *[]byte {
	switch name {
	case "event_type":
		return &d.eventType
	case "event_id":
		return &d.eventID
	case "correlation_id":
		return &d.correlationID
	case "workflow_id":
		return &d.workflowID
	case "workflow_run_id":
		return &d.workflowRunID
	case "result":
		return &d.payload
	case "status":
		return &d.status
	case "timestamp":
		return &d.timestamp
	case "error":
		return &d.errorText
	}
	return nil
}

// Decode reads one result event strictly and fills in what may be left out; now
// is the time of acceptance. Null counts as left out for event_id, timestamp
// and error, and for result unless the status is success. The error is a
// *SyntaxError or an *InvalidError. The payload aliases data.
func Decode(data []byte, now time.Time) (Result, error) {
	if err := checkSyntax(data); err != nil {
		return Result{}, err
	}
	var doc document
	var v validator
	splitObject(data, func(name string, value []byte) {
		slot := doc.field(name)
		switch {
		case slot == nil:
			v.unknown = append(v.unknown, FieldError{abbreviate(name), "unknown field"})
		case *slot != nil:
			v.unknown = append(v.unknown, FieldError{name, "given more than once"})
		default:
			*slot = value
		}
	})
	r := v.result(&doc)
	if fields := append(v.wrong, v.unknown...); len(fields) > 0 {
		return Result{}, &InvalidError{Fields: fields}
	}
	r.Digest = digest(&r, !isNull(doc.payload))
	return r, r.setDefaults(now)
}

func (r *Result) setDefaults(now time.Time) error {
	if r.Timestamp.IsZero() {
		r.Timestamp = now.UTC()
	}
	if r.EventID != uuid.Nil {
		return nil
	}
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("make an event ID: %w", err)
	}
	r.EventID = id
	return nil
}

// validator turns a document into a Result and collects what is wrong.
type validator struct{ wrong, unknown []FieldError }

func (v *validator) fail(field, format string, args ...any) {
	v.wrong = append(v.wrong, FieldError{field, fmt.Sprintf(format, args...)})
}

func (v *validator) result(d *document) Result {
	var r Result
	if d.eventType != nil {
		if s, ok := v.text("event_type", d.eventType); ok && s != EventType {
			v.fail("event_type", "must be %q", EventType)
		}
	}
	if !isNull(d.eventID) {
		r.EventID = v.uuid("event_id", d.eventID)
	}
	if d.correlationID == nil {
		v.fail("correlation_id", "is required: the event ID of the trigger")
	} else {
		r.CorrelationID = v.uuid("correlation_id", d.correlationID)
	}
	r.WorkflowID = v.id("workflow_id", d.workflowID)
	r.WorkflowRunID = v.id("workflow_run_id", d.workflowRunID)
	status := v.status(d.status)
	r.Status = status
	r.Payload = v.payload(d.payload, status)
	if !isNull(d.timestamp) {
		r.Timestamp = v.timestamp(d.timestamp)
	}
	r.Error = v.errorText(d.errorText, status)
	return r
}

func (v *validator) uuid(field string, raw []byte) uuid.UUID {
	s, ok := v.text(field, raw)
	if !ok {
		return uuid.Nil
	}
	id, err := uuid.Parse(s)
	if err != nil || len(s) != 36 {
		v.fail(field, "must be a UUID of 36 characters, such as 0192f0c1-7b1e-7cc3-9d2a-0123456789ab")
		return uuid.Nil
	}
	if id == uuid.Nil {
		v.fail(field, "must not be the nil UUID")
	}
	return id
}

func (v *validator) id(field string, raw []byte) string {
	if raw == nil {
		v.fail(field, "is required")
		return ""
	}
	s, ok := v.text(field, raw)
	if ok && (s == "" || len(s) > MaxIDBytes) {
		v.fail(field, "must have 1 to %d bytes of UTF-8, has %d", MaxIDBytes, len(s))
	}
	return s
}

func (v *validator) status(raw []byte) Status {
	if raw == nil {
		v.fail("status", "is required: success, failure or error")
		return ""
	}
	s, ok := v.text("status", raw)
	if !ok {
		return ""
	}
	switch Status(s) {
	case Success, Failure, Error:
		return Status(s)
	}
	v.fail("status", "must be success, failure or error")
	return ""
}

func (v *validator) payload(raw []byte, status Status) []byte {
	switch {
	case isNull(raw) && status == Success:
		v.fail("result", "is required for status success: a JSON object")
	case isNull(raw):
		return []byte("{}")
	case raw[0] != '{':
		v.fail("result", "must be a JSON object")
	}
	return raw
}

func (v *validator) timestamp(raw []byte) time.Time {
	s, ok := v.text("timestamp", raw)
	if !ok {
		return time.Time{}
	}
	var t time.Time
	err := t.UnmarshalText([]byte(s)) // strict, where time.Parse is not
	if err == nil {
		t = t.UTC()
		_, err = t.MarshalText() // an offset can carry year 9999 out of range
	}
	if err != nil || t.IsZero() {
		v.fail("timestamp", "must be an RFC 3339 time, such as 2026-01-02T03:04:05.678Z")
	}
	return t
}

func (v *validator) errorText(raw []byte, status Status) *string {
	if isNull(raw) {
		if status == Error {
			v.fail("error", "is required for status error: what broke")
		}
		return nil
	}
	s, ok := v.text("error", raw)
	switch {
	case ok && status == Success:
		v.fail("error", "must be null for status success")
	case ok && status == Error && s == "":
		v.fail("error", "must not be empty for status error")
	}
	return &s
}

// text decodes a JSON string. One that Go would have to alter, because an
// escape names half a surrogate pair, is refused.
func (v *validator) text(field string, raw []byte) (string, bool) {
	if raw[0] != '"' {
		v.fail(field, "must be a string")
		return "", false
	}
	s, exact := unquote(raw)
	if !exact {
		v.fail(field, `has an unpaired surrogate escape (\ud800 to \udfff)`)
	}
	return s, exact
}

func unquote(raw []byte) (s string, exact bool) {
	if bytes.IndexByte(raw, 0x5c) < 0 {
		return string(raw[1 : len(raw)-1]), true
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", false // cannot be: the document was checked as a whole
	}
	return s, !hasLoneSurrogate(raw)
}

// hasLoneSurrogate scans a valid JSON string literal.
func hasLoneSurrogate(raw []byte) bool {
	high := false
	for i := 0; i < len(raw); i++ {
		unit := uint64(0)
		if raw[i] == '\\' {
			if raw[i+1] == 'u' {
				unit = hex4(raw[i+2 : i+6])
				i += 4
			}
			i++
		}
		isLow := unit >= 0xdc00 && unit <= 0xdfff
		if high != isLow {
			return true
		}
		high = unit >= 0xd800 && unit <= 0xdbff
	}
	return high
}

func hex4(b []byte) (v uint64) {
	for _, c := range b {
		switch {
		case c <= '9':
			c -= '0'
		default:
			c = c&^0x20 - 'A' + 10
		}
		v = v<<4 | uint64(c)
	}
	return v
}

func isNull(raw []byte) bool { return raw == nil || raw[0] == 'n' }

func abbreviate(name string) string {
	const most = 64
	if len(name) <= most {
		return name
	}
	return strings.ToValidUTF8(name[:most], "") + "…"
}

// checkSyntax makes sure that data is one JSON object in UTF-8, not too deep.
func checkSyntax(data []byte) error {
	if !utf8.Valid(data) {
		return &SyntaxError{invalidUTF8At(data), "not valid UTF-8"}
	}
	if !json.Valid(data) {
		return syntaxErrorOf(data)
	}
	if i := skipSpace(data, 0); data[i] != '{' {
		return &SyntaxError{int64(i), "not a JSON object"}
	}
	return checkDepth(data)
}

func invalidUTF8At(data []byte) int64 {
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n == 1 {
			return int64(i)
		}
		i += n
	}
	return int64(len(data))
}

// syntaxErrorOf asks encoding/json where and why. Its texts name a character
// at most, so nothing of the payload leaks into logs.
func syntaxErrorOf(data []byte) error {
	var raw json.RawMessage
	err := json.Unmarshal(data, &raw)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return &SyntaxError{syntax.Offset, "not valid JSON: " + syntax.Error()}
	}
	return &SyntaxError{0, "not valid JSON"}
}

func checkDepth(data []byte) error {
	depth := 0
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '"':
			i = endOfString(data, i) - 1
		case '{', '[':
			if depth++; depth > MaxDepth {
				return &SyntaxError{int64(i), fmt.Sprintf("nested deeper than %d levels", MaxDepth)}
			}
		case '}', ']':
			depth--
		}
	}
	return nil
}

// splitObject calls member for each name and raw value of a valid JSON object.
func splitObject(data []byte, member func(name string, value []byte)) {
	i := skipSpace(data, skipSpace(data, 0)+1)
	for data[i] != '}' {
		end := endOfString(data, i)
		name, _ := unquote(data[i:end]) // an altered name is an unknown one
		i = skipSpace(data, skipSpace(data, end)+1)
		end = endOfValue(data, i)
		member(name, data[i:end:end])
		i = skipSpace(data, end)
		if data[i] == ',' {
			i = skipSpace(data, i+1)
		}
	}
}

func skipSpace(data []byte, i int) int {
	for i < len(data) && (data[i] == ' ' || data[i] == '\n' || data[i] == '\t' || data[i] == '\r') {
		i++
	}
	return i
}

// endOfString returns the index behind the string that starts at i.
func endOfString(data []byte, i int) int {
	for i++; data[i] != '"'; i++ {
		if data[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// endOfValue returns the index behind the value that starts at i.
func endOfValue(data []byte, i int) int {
	depth := 0
	for {
		switch data[i] {
		case '"':
			i = endOfString(data, i)
			if depth == 0 {
				return i
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
			if depth < 0 {
				return i // the end of the object around a number or a literal
			}
		case ',', ' ', '\n', '\t', '\r':
			if depth == 0 {
				return i
			}
		}
		i++
	}
}

// digest covers the fields as supplied; each is preceded by its length, so that
// no two contents share an encoding.
func digest(r *Result, hasPayload bool) Digest {
	h := sha256.New()
	h.Write(r.CorrelationID[:])
	writeField(h, true, []byte(r.WorkflowID))
	writeField(h, true, []byte(r.WorkflowRunID))
	writeField(h, true, []byte(r.Status))
	if hasPayload {
		writeField(h, true, r.Payload)
	} else {
		writeField(h, false, nil)
	}
	if r.Error != nil {
		writeField(h, true, []byte(*r.Error))
	} else {
		writeField(h, false, nil)
	}
	var d Digest
	copy(d[:], h.Sum(nil))
	return d
}

func writeField(h hash.Hash, given bool, value []byte) {
	var head [9]byte
	if given {
		head[0] = 1
	}
	binary.BigEndian.PutUint64(head[1:], uint64(len(value)))
	h.Write(head[:])
	h.Write(value)
}
