package result

import (
	"slices"
	"strings"
)

// field is a top-level field of the event, in the order of the schema, which is
// also the order of the record and of an InvalidError.
type field int

const (
	fieldEventType field = iota
	fieldEventID
	fieldCorrelationID
	fieldWorkflowID
	fieldWorkflowRunID
	fieldResult
	fieldStatus
	fieldTimestamp
	fieldError
	fieldCount
)

var fieldNames = [fieldCount]string{
	"event_type", "event_id", "correlation_id", "workflow_id", "workflow_run_id",
	"result", "status", "timestamp", "error",
}

func (f field) String() string { return fieldNames[f] }

// fieldNamed is false for a name that is none of ours. Names are case-sensitive.
func fieldNamed(name []byte) (field, bool) {
	for f, known := range fieldNames {
		if string(name) == known {
			return field(f), true
		}
	}
	return 0, false
}

// An unknown field is named up to these limits: an error is not to be larger
// than the document that it is about.
const (
	maxUnknownNamed = 16
	maxNameBytes    = 64
)

// document is the event's object, split into its members. Values are parts of
// the input, without the white space around them; nil was left out.
type document struct {
	values      [fieldCount][]byte
	repeated    [fieldCount]bool
	unknown     []string // abbreviated, each once
	moreUnknown int      // members not named in unknown
}

// readDocument splits data, which checkSyntax has passed.
func readDocument(data []byte) document {
	var d document
	for rawName, value := range members(data) {
		name, _ := unquote(rawName) // a name that Go had to alter is none of ours
		f, known := fieldNamed(name)
		switch {
		case !known:
			d.addUnknown(string(name))
		case d.values[f] != nil:
			d.repeated[f] = true
		default:
			d.values[f] = value
		}
	}
	return d
}

func (d *document) addUnknown(name string) {
	if len(name) > maxNameBytes {
		name = strings.ToValidUTF8(name[:maxNameBytes], "") + "…"
	}
	switch {
	case slices.Contains(d.unknown, name):
	case len(d.unknown) < maxUnknownNamed:
		d.unknown = append(d.unknown, name)
	default:
		d.moreUnknown++
	}
}

// isNull says whether a field was left out or given as JSON null.
func isNull(raw []byte) bool { return raw == nil || raw[0] == 'n' }
