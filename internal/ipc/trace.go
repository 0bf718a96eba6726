package ipc

import (
	"net/http"
	"regexp"
)

// traceParent is the form of W3C Trace Context, section 3.2; a version other
// than ff may carry more behind the flags.
var traceParent = regexp.MustCompile(`^(?:00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}|(?:0[1-9a-f]|[1-9a-e][0-9a-f]|f[0-9a-e])-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(?:-.{0,200})?)$`)

const maxTraceState = 512

// traceContext returns the request's trace, or nothing where it is malformed:
// the specification says to carry on as if there were none.
func traceContext(h http.Header) (parent, state string) {
	parent = h.Get("Traceparent")
	if parent == "" || !traceParent.MatchString(parent) {
		return "", ""
	}
	if state = h.Get("Tracestate"); len(state) > maxTraceState {
		state = ""
	}
	return parent, state
}
