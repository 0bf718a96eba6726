package ipc

import (
	"context"
	"net/http"
	"regexp"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"workflow-results-sidecar/internal/outbox"
)

// traceParent is the form of W3C Trace Context, section 3.2; a version other
// than ff may carry more behind the flags.
var traceParent = regexp.MustCompile(`^(?:00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}|(?:0[1-9a-f]|[1-9a-e][0-9a-f]|f[0-9a-e])-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(?:-.{0,200})?)$`)

const maxTraceState = 512

// traceContext returns the trace that a result is stored with: that of the request's
// span where there is one, else what the request carries. What is malformed is left
// out: the specification says to carry on as if there were none.
func traceContext(r *http.Request) (parent, state string) {
	h := r.Header
	if trace.SpanFromContext(r.Context()).IsRecording() {
		h = make(http.Header, 2)
		propagation.TraceContext{}.Inject(r.Context(), propagation.HeaderCarrier(h))
	}
	parent = h.Get("Traceparent")
	if parent == "" || !traceParent.MatchString(parent) {
		return "", ""
	}
	if state = h.Get("Tracestate"); len(state) > maxTraceState {
		state = ""
	}
	return parent, state
}

// accepts answers a request to store results by f, or by f's error. Where traces are
// wanted it makes a span of it.
func (s *Server) accepts(f func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	if s.opts.Tracer == nil {
		return func(w http.ResponseWriter, r *http.Request) {
			if err := f(w, r); err != nil {
				s.refuse(w, err)
			}
		}
	}
	return func(w http.ResponseWriter, r *http.Request) {
		ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := s.opts.Tracer.Start(ctx, "POST "+r.URL.Path, trace.WithSpanKind(trace.SpanKindServer),
			trace.WithAttributes(semconv.HTTPRequestMethodPost, semconv.HTTPRoute(r.URL.Path)))
		defer span.End()
		err := f(w, r.WithContext(ctx))
		if err == nil {
			return
		}
		s.refuse(w, err)
		p := problemOf(err)
		span.SetAttributes(semconv.HTTPResponseStatusCode(p.Status), semconv.ErrorTypeKey.String(p.name))
		if p.Status >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, p.Title) // not err: it may quote the result
		}
	}
}

// traceOutcomes tells the span of a request what has been stored.
func traceOutcomes(ctx context.Context, outs []outbox.Outcome) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	stored := 0
	for _, out := range outs {
		if out.Err == nil && !out.Duplicate {
			stored++
		}
	}
	span.AddEvent("committed", trace.WithAttributes(attribute.Int("workflow_results.results", len(outs)), attribute.Int("workflow_results.stored", stored)))
	if len(outs) == 1 && outs[0].Err == nil {
		e := outs[0].Entry
		span.SetAttributes(attribute.String("workflow_results.event_id", e.EventID.String()), attribute.String("workflow_results.correlation_id", e.CorrelationID.String()),
			attribute.Int64("workflow_results.seq", e.Seq), attribute.Bool("workflow_results.duplicate", outs[0].Duplicate))
	}
}
