// Package tracing hands OpenTelemetry spans to a collector: one for each request
// that stores results, one for each record that is sent to Kafka. A result's trace
// goes through the outbox as the W3C Trace Context that is stored with it, so its
// record belongs to the trace of its request however much later it is sent, and
// after any restart.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kotel"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// Exporter sends spans to a collector by OTLP over HTTP. What it cannot send is
// dropped: tracing never holds a result back.
type Exporter struct{ provider *sdktrace.TracerProvider }

// logInterval lies between two lines about a collector that takes nothing.
const logInterval = 30 * time.Second

// Start makes the exporter. The path of endpoint is /v1/traces where it has none;
// the rest is set by the OTEL_* variables of the OpenTelemetry specification. It
// connects when there is something to send.
func Start(ctx context.Context, endpoint *url.URL, version string, log *slog.Logger) (*Exporter, error) {
	to := *endpoint
	if to.Path == "" || to.Path == "/" {
		to.Path = "/v1/traces"
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(to.String()))
	if err != nil {
		return nil, fmt.Errorf("make the exporter of traces: %w", err)
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(semconv.ServiceName("workflow-results-sidecar"), semconv.ServiceVersion(version)),
		resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	otel.SetLogger(logr.FromSlogHandler(log.Handler()))
	var last atomic.Int64
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		now, before := time.Now().UnixNano(), last.Load()
		if now-before >= int64(logInterval) && last.CompareAndSwap(before, now) {
			log.Warn("traces are lost: the collector does not take them", "url", to.Redacted(), "error", err)
		}
	}))
	return &Exporter{sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))}, nil
}

// Tracer makes the spans of requests.
func (e *Exporter) Tracer() trace.Tracer {
	return e.provider.Tracer("workflow-results-sidecar")
}

// stopTime bounds how long the end waits for a collector.
const stopTime = time.Second

// Stop sends the spans that are held, as far as the collector takes them at once.
func (e *Exporter) Stop() {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	if err := e.provider.Shutdown(ctx); err != nil {
		otel.Handle(err)
	}
}

// PublishHook makes a span of each record to topic, within the trace that the record
// carries, and puts the span in that one's place: who reads the record carries on from
// there. A record sent again has a span for each time.
func (e *Exporter) PublishHook(topic string) kgo.Hook {
	return &publishHook{topic, kotel.NewTracer(kotel.TracerProvider(e.provider), kotel.TracerPropagator(propagation.TraceContext{}))}
}

// publishHook leaves the watermarks out, whose spans would belong to nobody.
type publishHook struct {
	topic string
	kotel *kotel.Tracer
}

// OnProduceRecordBuffered begins the span.
func (h *publishHook) OnProduceRecordBuffered(r *kgo.Record) {
	if r.Topic != h.topic {
		return
	}
	r.Context = propagation.TraceContext{}.Extract(r.Context, kotel.NewRecordCarrier(r))
	request := trace.SpanContextFromContext(r.Context)
	h.kotel.OnProduceRecordBuffered(r)
	if request.IsValid() { // many a backend draws a child that comes hours later only by its link
		trace.SpanFromContext(r.Context).AddLink(trace.Link{SpanContext: request})
	}
}

// OnProduceRecordUnbuffered ends the span.
func (h *publishHook) OnProduceRecordUnbuffered(r *kgo.Record, err error) {
	if r.Topic == h.topic {
		h.kotel.OnProduceRecordUnbuffered(r, err)
	}
}
