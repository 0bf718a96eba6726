package ipc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/google/go-cmp/cmp"
)

// document checks every exchange of this package's tests against api/openapi.yaml,
// and remembers which of its answers were seen.
type document struct {
	doc    *openapi3.T
	router routers.Router

	mu   sync.Mutex
	seen map[string]bool // operationId and status
}

func loadDocument(path string) (*document, error) {
	doc, err := openapi3.NewLoader().LoadFromFile(path)
	if err != nil {
		return nil, err
	}
	if err := doc.Validate(context.Background()); err != nil {
		return nil, err
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		return nil, err
	}
	openapi3filter.RegisterBodyDecoder("application/x-ndjson", decodeLines)
	return &document{doc: doc, router: router, seen: make(map[string]bool)}, nil
}

// decodeLines makes an array of NDJSON, so that a schema can speak of its lines.
// A request's schema is a string: its lines are valid or not, one by one.
func decodeLines(body io.Reader, _ http.Header, schema *openapi3.SchemaRef, _ openapi3filter.EncodingFn) (any, error) {
	if schema.Value.Type.Is("string") {
		text, err := io.ReadAll(body)
		return string(text), err
	}
	lines := []any{}
	dec := json.NewDecoder(body)
	for {
		var v any
		if err := dec.Decode(&v); errors.Is(err, io.EOF) {
			return lines, nil
		} else if err != nil {
			return nil, err
		}
		lines = append(lines, v)
	}
}

// check validates one exchange: the answer always, the request where the server took it.
func (d *document) check(req *http.Request, reqBody []byte, resp *http.Response, body []byte) error {
	route, params, err := d.router.FindRoute(req)
	if err != nil {
		if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed || resp.StatusCode == http.StatusForbidden || req.Method == http.MethodHead {
			return nil // told once for all in the document's description
		}
		return fmt.Errorf("%s %s answered %d and is not in the document: %w", req.Method, req.URL, resp.StatusCode, err)
	}
	opts := &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true, AuthenticationFunc: openapi3filter.NoopAuthenticationFunc}
	in := &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route, Options: opts}
	if resp.StatusCode < 300 && reqBody != nil {
		req.Body = io.NopCloser(bytes.NewReader(reqBody))
		if err := openapi3filter.ValidateRequest(context.Background(), in); err != nil {
			return fmt.Errorf("the server took what the document refuses: %w", err)
		}
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: resp.StatusCode, Header: resp.Header, Options: opts}
	out.SetBodyBytes(body)
	if err := openapi3filter.ValidateResponse(context.Background(), out); err != nil {
		return fmt.Errorf("%s %s: %d is not as the document says: %w\n%s", req.Method, req.URL, resp.StatusCode, err, body)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen[key(route.Operation.OperationID, resp.StatusCode)] = true
	return nil
}

func key(operation string, status int) string { return operation + " " + strconv.Itoa(status) }

// unseen lists what the document promises and no test has seen.
func (d *document) unseen() []string {
	var missing []string
	for _, item := range d.doc.Paths.Map() {
		for _, op := range item.Operations() {
			for status := range op.Responses.Map() {
				if k := op.OperationID + " " + status; !d.seen[k] {
					missing = append(missing, k)
				}
			}
		}
	}
	slices.Sort(missing)
	return missing
}

// TestDocumentRefusesWhatIsWrong shows that the check of the exchanges can fail.
func TestDocumentRefusesWhatIsWrong(t *testing.T) {
	d, err := loadDocument("../../api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"unknown field": `{"event_id":"0192f0c1-7b1e-7cc3-9d2a-0123456789ab","seq":1,"state":"pending","duplicate":false,"extra":1}`,
		"missing field": `{"event_id":"0192f0c1-7b1e-7cc3-9d2a-0123456789ab","seq":1,"state":"pending"}`,
		"unknown state": `{"event_id":"0192f0c1-7b1e-7cc3-9d2a-0123456789ab","seq":1,"state":"lost","duplicate":false}`,
	} {
		req, err := http.NewRequest(http.MethodPost, "http://sidecar/v1/results", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp := &http.Response{StatusCode: http.StatusAccepted, Header: http.Header{"Content-Type": {"application/json"}}}
		sent := fmt.Appendf(nil, `{"correlation_id":"0192f0c1-7b1e-7cc3-9d2a-0123456789ab","workflow_id":"w","workflow_run_id":"r","status":"failure"}`)
		if err := d.check(req, sent, resp, []byte(body)); err == nil || !strings.Contains(err.Error(), "not as the document says") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// verifyDocument runs after all tests: it is the last word on the coverage.
func verifyDocument(d *document, ran bool) (code int) {
	if missing := d.unseen(); ran && len(missing) > 0 {
		fmt.Fprintln(os.Stderr, "api/openapi.yaml promises answers that no test has seen:", strings.Join(missing, ", "))
		return 1
	}
	return 0
}

func TestDocumentListsEveryProblem(t *testing.T) {
	var got []string
	for _, v := range api.doc.Components.Schemas["Problem"].Value.Properties["type"].Value.Enum {
		got = append(got, strings.TrimPrefix(v.(string), problemType))
	}
	if diff := cmp.Diff(problemNames, got); diff != "" {
		t.Errorf("(-code +document)\n%s", diff)
	}
}
