package ipc

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// TestReadResultsReads what the socket tells, in its words, and does nothing.
func TestReadResultsReads(t *testing.T) {
	h := start(t)
	id := uuid.New()
	h.post(event(id, `{"n":1}`))
	h.park()
	reader := ReadResults(h.srv.opts)
	ask := func(method, target string) (int, http.Header, string) {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), method, target, nil)
		reader.ServeHTTP(w, r)
		resp := w.Result()
		defer resp.Body.Close()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://sidecar"+target, nil)
		if err != nil {
			t.Fatal(err)
		}
		if method == http.MethodGet { // of the others the document's description speaks
			if err := api.check(req, nil, resp, w.Body.Bytes()); err != nil {
				t.Error(err)
			}
		}
		return w.Code, w.Header(), w.Body.String()
	}
	one := "/v1/results/" + id.String()
	for _, target := range []string{"/v1/results", "/v1/results?state=parked&newest=true", "/v1/results?state=gone", one, "/v1/results/" + uuid.NewString(), one + "?payload=true"} {
		status, _, body := ask("GET", target)
		if a := h.get(target); a.status != status || a.text != body {
			t.Errorf("%s: %d %s; the socket says %d %s", target, status, body, a.status, a.text)
		}
	}
	if status, _, _ := ask("HEAD", one); status != http.StatusOK {
		t.Errorf("HEAD: %d", status)
	}
	for _, c := range []struct {
		method, target string
		want           int
	}{
		{"DELETE", one, 405}, {"POST", "/v1/results", 405}, {"POST", one + ":retry", 404}, {"GET", "/v1/results/x", 404}, {"POST", "/v1/results:batch", 404},
	} {
		if status, header, body := ask(c.method, c.target); status != c.want || (status == 405) != (slices.Equal(header.Values("Allow"), []string{"GET", "HEAD"})) || !strings.Contains(header.Get("Content-Type"), "problem") {
			t.Errorf("%s %s: %d %v %s", c.method, c.target, status, header, body)
		}
	}
	if st, err := h.store.Stats(t.Context()); err != nil || st.ParkedRows != 1 {
		t.Errorf("%+v %v", st, err)
	}
}

func TestReadResultsHidesPayloads(t *testing.T) {
	h := start(t, func(s *settings) { s.ShowPayload = true })
	id := uuid.New()
	h.post(event(id, `{"n": 1.50}`))
	for show, want := range map[bool]int{true: 200, false: 403} {
		opts := h.srv.opts
		opts.ShowPayload = show
		w := httptest.NewRecorder()
		ReadResults(opts).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/v1/results/"+id.String()+"?payload=true", nil))
		if w.Code != want || strings.Contains(w.Body.String(), `"result":{"n": 1.50}`) != show {
			t.Errorf("%v: %d %s", show, w.Code, w.Body)
		}
	}
}
