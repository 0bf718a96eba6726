package result

import (
	"time"

	"github.com/google/uuid"
)

// AppendJSON appends the event as JSON: the value of the Kafka record. All nine
// fields come in the order of the schema and the payload's bytes untouched;
// Decode gives the same event back.
func (r *Result) AppendJSON(dst []byte) []byte {
	dst = append(dst, `{"event_type":"`+EventType+`","event_id":"`...)
	dst = AppendUUID(dst, r.EventID)
	dst = append(dst, `","correlation_id":"`...)
	dst = AppendUUID(dst, r.CorrelationID)
	dst = append(dst, `","workflow_id":`...)
	dst = appendString(dst, r.WorkflowID)
	dst = append(dst, `,"workflow_run_id":`...)
	dst = appendString(dst, r.WorkflowRunID)
	dst = append(dst, `,"result":`...)
	dst = append(dst, r.Payload...)
	dst = append(dst, `,"status":"`...)
	dst = append(dst, r.Status...)
	dst = append(dst, `","timestamp":"`...)
	dst = r.Timestamp.UTC().AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, `","error":`...)
	if r.Error == nil {
		return append(dst, `null}`...)
	}
	return append(appendString(dst, *r.Error), '}')
}

// AppendUUID appends the text form of RFC 9562, in lower case.
func AppendUUID(dst []byte, id uuid.UUID) []byte {
	for i, b := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			dst = append(dst, '-')
		}
		dst = append(dst, hexDigits[b>>4], hexDigits[b&15])
	}
	return dst
}

const hexDigits = "0123456789abcdef"

// appendString escapes what RFC 8259 (section 7) demands and no more, as short as
// it can be: a record is then not longer than what it was decoded from. s is valid
// UTF-8, as Decode has made sure.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[start:i]...)
		start = i + 1
		if short := shortEscape(c); short != 0 {
			dst = append(dst, '\\', short)
		} else {
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

// shortEscape is what stands behind the backslash, 0 where there is no short form.
func shortEscape(c byte) byte {
	switch c {
	case '"', '\\':
		return c
	case '\b':
		return 'b'
	case '\t':
		return 't'
	case '\n':
		return 'n'
	case '\f':
		return 'f'
	case '\r':
		return 'r'
	}
	return 0
}
