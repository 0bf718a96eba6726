package ipc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/result"
)

func TestPostIsHeldOnce(t *testing.T) {
	h := start(t)
	id := uuid.New()
	first := h.post(event(id, `{"n":1}`))
	first.want(t, 201, "")
	if first.EventID != id || first.Seq != 1 || first.State != "pending" || first.Duplicate {
		t.Errorf("%+v", first)
	}
	again := h.post(event(id, `{"n":1}`))
	again.want(t, 200, "")
	if again.Seq != 1 || !again.Duplicate {
		t.Errorf("%+v", again)
	}
	other := h.post(event(id, `{"n":2}`))
	other.want(t, 409, "conflict")
	if other.Held == nil || other.Held.EventID != id || other.Held.Seq != 1 {
		t.Errorf("held: %s", other.text)
	}
}

func TestPostRefusals(t *testing.T) {
	h := start(t)
	for name, c := range map[string]struct {
		body    string
		status  int
		problem string
	}{
		"no JSON":         {`{"a":`, 400, "not-json"},
		"empty":           {``, 400, "not-json"},
		"an array":        {`[]`, 400, "not-json"},
		"a second value":  {oneEvent() + `{}`, 400, "not-json"},
		"invalid UTF-8":   {strings.Replace(oneEvent(), `"w"`, "\"\xff\"", 1), 400, "not-json"},
		"too deep":        {event(uuid.New(), strings.Repeat(`{"a":`, 200)+`1`+strings.Repeat(`}`, 200)), 400, "not-json"},
		"a wrong status":  {strings.Replace(oneEvent(), "success", "done", 1), 422, "invalid"},
		"an unknown name": {strings.Replace(oneEvent(), `"workflow_id"`, `"workflow"`, 1), 422, "invalid"},
		"too large":       {event(uuid.New(), `{"x":"`+strings.Repeat("x", 70<<10)+`"}`), 413, "too-large"},
	} {
		t.Run(name, func(t *testing.T) {
			a := h.post(c.body)
			a.want(t, c.status, c.problem)
			if c.status == 413 && (a.Limit != 64<<10 || a.Size != int64(len(c.body))) {
				t.Errorf("sizes: %s", a.text)
			}
		})
	}
	if st, err := h.store.Stats(t.Context()); err != nil || st.HeldRows != 0 {
		t.Errorf("%d results were stored (%v)", st.HeldRows, err)
	}
}

func TestEveryWrongFieldIsNamed(t *testing.T) {
	a := start(t).post(`{"event_id":"x","status":"error","result":[],"extra":1}`)
	a.want(t, 422, "invalid")
	var fields []string
	for _, e := range a.Errors {
		fields = append(fields, e.Field)
	}
	for _, want := range []string{"event_id", "correlation_id", "workflow_id", "workflow_run_id", "result", "error", "extra"} {
		if !strings.Contains(" "+strings.Join(fields, " ")+" ", " "+want+" ") {
			t.Errorf("%s is not among %v", want, fields)
		}
	}
}

func TestLengthThatIsNotTold(t *testing.T) {
	h := start(t)
	chunked := func(body string) answer {
		return h.call(http.MethodPost, "/v1/results", "application/json", struct{ *strings.Reader }{strings.NewReader(body)})
	}
	chunked(oneEvent()).want(t, 201, "")
	a := chunked(event(uuid.New(), `{"x":"`+strings.Repeat("x", 70<<10)+`"}`))
	a.want(t, 413, "too-large")
	if a.Limit != 64<<10 || a.Size != 0 {
		t.Errorf("sizes: %s", a.text)
	}
}

func TestMediaTypes(t *testing.T) {
	h := start(t)
	for mediaType, status := range map[string]int{
		"application/json":                    201,
		"application/json; charset=utf-8":     201,
		"application/json;charset=UTF-8":      201,
		"application/json; charset=utf-16":    415,
		"text/plain":                          415,
		"":                                    415,
		"application/x-ndjson":                415,
		"application/json; charset=\"utf-8\"": 201,
	} {
		a := h.call(http.MethodPost, "/v1/results", mediaType, strings.NewReader(oneEvent()))
		if a.status != status {
			t.Errorf("%q: %d, want %d", mediaType, a.status, status)
		}
	}
	h.call(http.MethodPost, "/v1/results:batch", "application/json", strings.NewReader(oneEvent())).want(t, 415, "media-type")
}

func TestUnknownPathsAndMethods(t *testing.T) {
	h := start(t)
	id := uuid.NewString()
	for _, c := range []struct {
		method, target string
		status         int
		allow          string
	}{
		{"GET", "/", 404, ""},
		{"GET", "/v1/result", 404, ""},
		{"GET", "/v1/results/", 404, ""},
		{"GET", "/v1/results/not-a-uuid", 404, ""},
		{"GET", "/v1/results/" + strings.ReplaceAll(id, "-", ""), 404, ""},
		{"POST", "/v1/results/" + id + ":purge", 404, ""},
		{"PUT", "/v1/results", 405, "GET, HEAD, POST"},
		{"HEAD", "/v1/results", 200, ""},
		{"HEAD", "/v1/results/" + id, 404, ""},
		{"HEAD", "/v1/results:batch", 405, "POST"},
		{"GET", "/v1/results:batch", 405, "POST"},
		{"POST", "/v1/results/" + id, 405, "DELETE, GET, HEAD"},
		{"GET", "/v1/results/" + id + ":retry", 405, "POST"},
		{"POST", "/v1/status", 405, "GET, HEAD"},
		{"HEAD", "/v1/status", 200, ""},
		{"HEAD", "/healthz", 200, ""},
		{"HEAD", "/metrics", 200, ""},
		{"DELETE", "/metrics", 405, "GET, HEAD"},
	} {
		a := h.call(c.method, c.target, "", nil)
		if a.status != c.status {
			t.Errorf("%s %s: %d, want %d", c.method, c.target, a.status, c.status)
		}
		if got := strings.Join(a.header.Values("Allow"), ", "); got != c.allow {
			t.Errorf("%s %s: Allow %q, want %q", c.method, c.target, got, c.allow)
		}
	}
}

func TestStatesOfAResult(t *testing.T) {
	h := start(t)
	id := uuid.New()
	h.get("/v1/results/"+id.String()).want(t, 404, "not-found")
	h.post(event(id, `{"n":1}`))
	if a := h.get("/v1/results/" + id.String()); a.status != 200 || a.State != "pending" || a.Topic != nil {
		t.Errorf("%s", a.text)
	}
	h.publish()
	if a := h.get("/v1/results/" + id.String()); a.State != "published" || a.Topic == nil || *a.Topic != "results" || *a.Offset != 100 {
		t.Errorf("%s", a.text)
	}
	parked := uuid.New()
	h.post(event(parked, `{"n":2}`))
	h.park()
	if a := h.get("/v1/results/" + parked.String()); a.State != "parked" || a.Reason == nil || *a.Reason != "Kafka refuses the record" {
		t.Errorf("%s", a.text)
	}
}

func TestPayloadOnlyWhereAllowed(t *testing.T) {
	id := uuid.New()
	hidden := start(t)
	hidden.post(event(id, `{"secret":1}`))
	if a := hidden.get("/v1/results/" + id.String()); strings.Contains(a.text, "secret") {
		t.Errorf("%s", a.text)
	}
	hidden.get("/v1/results/"+id.String()+"?payload=true").want(t, 403, "payload-hidden")
	hidden.get("/v1/results/"+id.String()+"?payload=maybe").want(t, 400, "bad-query")
	hidden.get("/v1/results/"+id.String()+"?payload=").want(t, 400, "bad-query")
	hidden.get("/v1/results/"+id.String()+"?pay=true").want(t, 400, "bad-query")
	shown := start(t, func(s *settings) { s.ShowPayload = true })
	shown.post(event(id, `{"n": 1.50}`))
	if a := shown.get("/v1/results/" + id.String() + "?payload=true"); string(a.Result) != `{"n": 1.50}` {
		t.Errorf("%s", a.text)
	}
}

func TestListPages(t *testing.T) {
	h := start(t)
	for range 5 {
		h.post(oneEvent())
	}
	h.publish()
	h.post(oneEvent())
	h.park()
	h.post(oneEvent())
	for query, want := range map[string]string{
		"":                                    "1 2 3 4 5 6 7 null",
		"?limit=3":                            "1 2 3 3",
		"?limit=3&after=3":                    "4 5 6 6",
		"?state=published&after=1":            "2 3 4 5 null",
		"?state=parked":                       "6 null",
		"?state=pending":                      "7 null",
		"?correlation_id=" + correlation:      "1 2 3 4 5 6 7 null",
		"?correlation_id=" + uuid.NewString(): "null",
		"?newest=true&limit=3":                "7 6 5 null",
		"?newest=true&state=published":        "5 4 3 2 1 null",
		"?newest=false&limit=1":               "1 1",
	} {
		a := h.get("/v1/results" + query)
		a.want(t, 200, "")
		if got := pageOf(t, a.text); got != want {
			t.Errorf("%q: %s, want %s", query, got, want)
		}
	}
	for _, query := range []string{"?limit=0", "?limit=1001", "?limit=x", "?after=-1", "?state=gone", "?correlation_id=x", "?correlation_id=%zz", "?limit=1&limit=2", "?newest=yes", "?who=me"} {
		h.get("/v1/results"+query).want(t, 400, "bad-query")
	}
}

func TestRetryAndPurge(t *testing.T) {
	h := start(t)
	id := uuid.New()
	target := "/v1/results/" + id.String()
	for _, c := range []struct{ method, target string }{{"POST", target + ":retry"}, {"DELETE", target}} {
		h.call(c.method, c.target, "", nil).want(t, 404, "not-found")
	}
	h.post(event(id, `{"n":1}`))
	for _, c := range []struct{ method, target string }{{"POST", target + ":retry"}, {"DELETE", target}} {
		h.call(c.method, c.target, "", nil).want(t, 409, "not-parked")
	}
	h.park()
	for _, c := range []struct{ method, target string }{{"POST", target + ":retry?dry_run=true"}, {"DELETE", target + "?dry_run=true"}} {
		h.call(c.method, c.target, "", nil).want(t, 400, "bad-query") // nothing is done that was not asked for
	}
	if a := h.call("POST", target+":retry", "", nil); a.status != 200 || a.State != "pending" || a.Seq != 2 {
		t.Errorf("%s", a.text)
	}
	h.park()
	h.call("DELETE", target, "", nil).want(t, 204, "")
	h.get(target).want(t, 404, "not-found")
}

func TestWhatTheStoreSays(t *testing.T) {
	h := start(t)
	for err, c := range map[error]struct {
		status  int
		problem string
	}{
		outbox.ErrBusy:   {503, "busy"},
		outbox.ErrClosed: {503, "unavailable"},
		fmt.Errorf("x: %w", outbox.ErrUnavailable):    {503, "unavailable"},
		fmt.Errorf("disk: %w", outbox.ErrFull):        {507, "full"},
		context.Canceled:                              {503, "interrupted"},
		errors.New("something nobody has thought of"): {500, "internal"},
	} {
		h.faults.append = func(context.Context, []result.Result) ([]outbox.Outcome, error) { return nil, err }
		a := h.post(oneEvent())
		a.want(t, c.status, c.problem)
		if strings.Contains(a.text, "nobody has thought of") {
			t.Errorf("an inner error is shown to the client: %s", a.text)
		}
		h.call(http.MethodPost, "/v1/results:batch", "application/x-ndjson", strings.NewReader(oneEvent())).want(t, c.status, c.problem)
	}
	h.faults.get = fmt.Errorf("x: %w", outbox.ErrUnavailable)
	id := uuid.NewString()
	h.get("/v1/results/"+id).want(t, 503, "unavailable")
	h.get("/v1/results").want(t, 503, "unavailable")
	h.call("POST", "/v1/results/"+id+":retry", "", nil).want(t, 503, "unavailable")
	h.call("DELETE", "/v1/results/"+id, "", nil).want(t, 503, "unavailable")
}

func TestAFullOutbox(t *testing.T) {
	h := start(t, func(s *settings) { s.outbox.MaxRows = 2 })
	held := uuid.New()
	h.post(event(held, `{"n":1}`)).want(t, 201, "")
	h.post(oneEvent()).want(t, 201, "")
	h.get("/readyz").want(t, 503, "")
	h.post(oneEvent()).want(t, 507, "full")
	h.post(event(held, `{"n":1}`)).want(t, 200, "") // what is held is still told
	h.publish()
	h.post(oneEvent()).want(t, 201, "") // published ones give way
}

func TestTraceContextIsKept(t *testing.T) {
	h := start(t)
	const parent, state = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "vendor=1"
	for traceparent, want := range map[string]string{parent: parent, "00-zz-1-1": "", "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01": ""} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://sidecar/v1/results", strings.NewReader(oneEvent()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Traceparent", traceparent)
		req.Header.Set("Tracestate", state)
		a, err := h.send(req)
		if err != nil || a.status != 201 {
			t.Fatalf("%+v %v", a, err)
		}
		rows, err := h.store.Next(t.Context(), a.Seq-1, 1, 1<<20)
		if err != nil || rows[0].Result.TraceParent != want || (rows[0].Result.TraceState == state) != (want != "") {
			t.Errorf("%s: %+v %v", traceparent, rows[0].Result, err)
		}
	}
}

func TestProbesAndMetrics(t *testing.T) {
	h := start(t)
	for _, target := range []string{"/healthz", "/readyz", "/v1/status", "/v1/history", "/metrics"} {
		h.get(target).want(t, 200, "")
	}
	sick := start(t, func(s *settings) { s.alive, s.broken = errors.New("a loop hangs"), true })
	sick.get("/healthz").want(t, 503, "")
	sick.get("/metrics").want(t, 500, "")
}
