package admin

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// maxRemembered bounds the answers that are in memory, by query.
const maxRemembered = 16

// remembered gives an answer again to whoever asks the same within d. One request
// of a kind is answered at a time, so that a crowd costs no more than one; it is
// finished even where that one has hung up.
func remembered(d time.Duration, next http.Handler) http.Handler {
	m := &memory{next: next, fresh: d, answers: make(map[string]*remembering)}
	return http.HandlerFunc(m.serve)
}

type memory struct {
	next  http.Handler
	fresh time.Duration

	mu      sync.Mutex
	answers map[string]*remembering // by path and query
}

// remembering is an answer; done is closed when it is there.
type remembering struct {
	done   chan struct{}
	at     time.Time // when it was there; zero: not yet
	status int       // 0: none was given, something went wrong
	header http.Header
	body   []byte
}

func (m *memory) serve(w http.ResponseWriter, r *http.Request) {
	a, ours := m.find(r.URL.RequestURI())
	switch {
	case a == nil: // too many different ones: it costs what it costs
		m.next.ServeHTTP(w, r)
		return
	case ours:
		m.fill(a, r)
	}
	select {
	case <-a.done:
	case <-r.Context().Done():
		return
	}
	if a.status == 0 {
		writeProblem(w, http.StatusInternalServerError, "the answer did not come; the sidecar's log names the cause")
		return
	}
	for name, values := range a.header {
		w.Header()[name] = values
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // a client that is gone is no error of ours
}

// find returns the answer to a request; ours says that the caller must fill it.
func (m *memory) find(key string) (a *remembering, ours bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, a := range m.answers {
		if !a.at.IsZero() && time.Since(a.at) >= m.fresh {
			delete(m.answers, k)
		}
	}
	if a := m.answers[key]; a != nil {
		return a, false
	}
	if len(m.answers) >= maxRemembered {
		return nil, false
	}
	a = &remembering{done: make(chan struct{}), header: make(http.Header)}
	m.answers[key] = a
	return a, true
}

func (m *memory) fill(a *remembering, r *http.Request) {
	defer func() { // also where it panics: others wait
		m.mu.Lock()
		a.at = time.Now()
		m.mu.Unlock()
		close(a.done)
	}()
	m.next.ServeHTTP(a, r.WithContext(context.WithoutCancel(r.Context())))
}

func (a *remembering) Header() http.Header { return a.header }

func (a *remembering) WriteHeader(status int) { a.status = status }

func (a *remembering) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	a.body = append(a.body, p...)
	return len(p), nil
}
