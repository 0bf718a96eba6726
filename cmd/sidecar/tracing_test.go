package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"workflow-results-sidecar/internal/testkit"
)

// traceCollector takes traces by OTLP over HTTP.
type traceCollector struct {
	*httptest.Server
	mu      sync.Mutex
	spans   map[string][]*tracepb.Span // by name
	service string
}

func startCollector(t *testing.T) *traceCollector {
	t.Helper()
	c := &traceCollector{spans: make(map[string][]*tracepb.Span)}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var req collectorpb.ExportTraceServiceRequest
		if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(body, &req) != nil {
			t.Errorf("%s: %v", r.URL, err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, rs := range req.ResourceSpans {
			for _, kv := range rs.Resource.Attributes {
				if kv.Key == "service.name" {
					c.service = kv.Value.GetStringValue()
				}
			}
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					c.spans[s.Name] = append(c.spans[s.Name], s)
				}
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(c.Close)
	return c
}

// take returns the spans of one name, n of them.
func (c *traceCollector) take(t *testing.T, name string, n int) []*tracepb.Span {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans[name]) != n {
		t.Fatalf("%d spans %q, want %d: %v", len(c.spans[name]), name, n, c.spans)
	}
	return c.spans[name]
}

func attributesOf(s *tracepb.Span) string {
	var b strings.Builder
	for _, kv := range s.Attributes {
		fmt.Fprintf(&b, "%s=%s%d ", kv.Key, kv.Value.GetStringValue(), kv.Value.GetIntValue())
	}
	return b.String()
}

const callersTrace = "4bf92f3577b34da6a3ce929d0e0e4736"

// postTraced hands over a body as the sampled caller whose span is 00f067aa0ba902b7.
func (p place) postTraced(path, mediaType, body, traceparent string) (status int, answer string) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, "http://sidecar"+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	req.Header.Set("Traceparent", traceparent)
	req.Header.Set("Tracestate", "vendor=value")
	req.Close = true // a client that stays connected is waited for
	resp, err := testkit.SocketClient(p.t, p.socket()).Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func someEvent() string {
	return fmt.Sprintf(`{"event_id":%q,"correlation_id":%q,"workflow_id":"w","workflow_run_id":"r","result":{},"status":"success","error":null}`, uuid.New(), uuid.New())
}

// TestATraceGoesThroughTheOutbox: the request's span is a child of the caller's, the
// record's one of the request's, and who reads the record goes on from there. Between
// the two the sidecar ends and starts anew.
func TestATraceGoesThroughTheOutbox(t *testing.T) {
	c := startCollector(t)
	p := newPlace(t, testkit.FreeAddr(t))
	r := p.run("--otlp-endpoint", c.URL, "--shutdown-timeout", "0s")
	status, answer := p.postTraced("/v1/results", "application/json", someEvent(), "00-"+callersTrace+"-00f067aa0ba902b7-01")
	if status != http.StatusCreated {
		t.Fatal(answer)
	}
	r.end()
	request := c.take(t, "POST /v1/results", 1)[0]
	if hex.EncodeToString(request.TraceId) != callersTrace || hex.EncodeToString(request.ParentSpanId) != "00f067aa0ba902b7" || request.Kind != tracepb.Span_SPAN_KIND_SERVER {
		t.Errorf("%v", request)
	}
	event := decode[struct {
		EventID string `json:"event_id"`
	}](t, answer).EventID
	if got := attributesOf(request); !strings.Contains(got, "event_id="+event) || len(request.Events) != 1 || request.Events[0].Name != "committed" {
		t.Errorf("%s %v", got, request.Events)
	}
	if c.service != "workflow-results-sidecar" {
		t.Errorf("the service is %q", c.service)
	}

	fake := testkit.StartFake(t)
	p.broker = fake.Addr()
	t.Setenv("OTEL_SERVICE_NAME", "results-of-ours")
	r = p.run("--otlp-endpoint", c.URL)
	r.end()
	publish := c.take(t, "workflow-results publish", 1)[0]
	parent := hex.EncodeToString(request.SpanId)
	if hex.EncodeToString(publish.TraceId) != callersTrace || hex.EncodeToString(publish.ParentSpanId) != parent || publish.Kind != tracepb.Span_SPAN_KIND_PRODUCER {
		t.Errorf("%v", publish)
	}
	if len(publish.Links) != 1 || hex.EncodeToString(publish.Links[0].SpanId) != parent {
		t.Errorf("links %v", publish.Links)
	}
	if len(c.spans) != 2 || c.service != "results-of-ours" { // no spans of watermarks
		t.Errorf("%v of %q", c.spans, c.service)
	}
	records := testkit.Consume(t, fake.Addr(), "workflow-results")
	if len(records) != 1 {
		t.Fatalf("%d records", len(records))
	}
	want := "00-" + callersTrace + "-" + hex.EncodeToString(publish.SpanId) + "-01"
	if got := testkit.Header(records[0], "traceparent"); got != want || testkit.Header(records[0], "tracestate") != "vendor=value" {
		t.Errorf("traceparent %s, want %s; tracestate %s", got, want, testkit.Header(records[0], "tracestate"))
	}
}

// TestSpansOfBatchesAndRefusals: the results of a batch have the one trace of their
// request; a caller that does not sample stays unseen; a refusal is named, without
// what was refused.
func TestSpansOfBatchesAndRefusals(t *testing.T) {
	c := startCollector(t)
	p := newPlace(t, testkit.StartFake(t).Addr())
	r := p.run("--otlp-endpoint", c.URL)
	p.postTraced("/v1/results:batch", "application/x-ndjson", someEvent()+"\n"+someEvent()+"\n{}\n", "00-"+callersTrace+"-00f067aa0ba902b7-01")
	p.postTraced("/v1/results", "application/json", someEvent(), "00-"+callersTrace+"-00f067aa0ba902b7-00")
	p.postTraced("/v1/results", "application/json", someEvent(), "rubbish")
	p.postTraced("/v1/results", "application/json", `{"status":"s3cr3t"}`, "00-"+callersTrace+"-00f067aa0ba902b7-01")
	r.end()
	requests := c.take(t, "POST /v1/results", 2) // the unsampled one is none of them
	for _, s := range c.take(t, "workflow-results publish", 3) {
		switch hex.EncodeToString(s.ParentSpanId) {
		case hex.EncodeToString(c.take(t, "POST /v1/results:batch", 1)[0].SpanId), hex.EncodeToString(requests[0].SpanId):
		default:
			t.Errorf("a record belongs to no request: %v", s)
		}
	}
	if len(requests[0].ParentSpanId) != 0 {
		t.Errorf("rubbish is a parent: %v", requests[0])
	}
	refused := requests[1]
	if got := attributesOf(refused); !strings.Contains(got, "error.type=invalid") || !strings.Contains(got, "http.response.status_code=422") || strings.Contains(refused.String(), "s3cr3t") {
		t.Errorf("%v", refused)
	}
}

// TestACollectorThatIsAway holds nothing back: one line of the log tells of it.
func TestACollectorThatIsAway(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
	p := newPlace(t, testkit.StartFake(t).Addr())
	r := p.run("--otlp-endpoint", "http://"+testkit.FreeAddr(t), "--log-format", "text")
	for range 20 {
		p.settle(p.post(`{}`, "success"))
	}
	if code := r.end(); code != 0 {
		t.Errorf("status %d", code)
	}
	if n := strings.Count(r.log.String(), "traces are lost"); n != 1 {
		t.Errorf("%d lines", n)
	}
}

// TestTracesAreOffUnlessAskedFor even where variables meant for the workflow are
// inherited; the trace of the request is the record's then.
func TestTracesAreOffUnlessAskedFor(t *testing.T) {
	c := startCollector(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.URL)
	fake := testkit.StartFake(t)
	p := newPlace(t, fake.Addr())
	r := p.run()
	parent := "00-" + callersTrace + "-00f067aa0ba902b7-01"
	p.postTraced("/v1/results", "application/json", someEvent(), parent)
	r.end()
	if got := testkit.Header(testkit.Consume(t, fake.Addr(), "workflow-results")[0], "traceparent"); got != parent || len(c.spans) != 0 {
		t.Errorf("%s, %v", got, c.spans)
	}
}
