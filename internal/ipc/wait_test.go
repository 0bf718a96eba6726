package ipc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// pageOf writes a page as its seqs and next_after.
func pageOf(t *testing.T, text string) string {
	t.Helper()
	var page listing
	if err := json.Unmarshal([]byte(text), &page); err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, v := range page.Results {
		words = append(words, fmt.Sprint(v.Seq))
	}
	next := "null"
	if page.NextAfter != nil {
		next = fmt.Sprint(*page.NextAfter)
	}
	return strings.Join(append(words, next), " ")
}

// postWaiting posts in the background, and returns once the result is held.
func (h *harness) postWaiting(body, timeout string) <-chan answer {
	h.t.Helper()
	before := h.lastSeq()
	got := make(chan answer, 1)
	go func() {
		a, err := h.try(h.t.Context(), http.MethodPost, "/v1/results?wait=published&timeout="+timeout, "application/json", strings.NewReader(body))
		if err != nil {
			h.t.Error(err)
		}
		got <- a
	}()
	for h.lastSeq() == before {
		select {
		case a := <-got:
			h.t.Fatalf("answered without storing: %+v", a)
		case <-time.After(time.Millisecond): // looks again
		}
	}
	return got
}

func (h *harness) lastSeq() int64 {
	h.t.Helper()
	st, err := h.store.Stats(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return st.LastSeq
}

func TestWaitUntilPublished(t *testing.T) {
	h := start(t)
	id := uuid.New()
	got := h.postWaiting(event(id, `{"n":1}`), "1m")
	h.publish()
	a := <-got
	a.want(t, 201, "")
	if a.State != "published" || a.Topic == nil || *a.Topic != "results" || a.Offset == nil || *a.Offset != 100 {
		t.Errorf("%s", a.text)
	}
	again := h.call(http.MethodPost, "/v1/results?wait=published", "application/json", strings.NewReader(event(id, `{"n":1}`)))
	again.want(t, 200, "")
	if !again.Duplicate || again.State != "published" || again.Offset == nil {
		t.Errorf("%s", again.text)
	}
}

func TestWaitEndsWhenParked(t *testing.T) {
	h := start(t)
	got := h.postWaiting(oneEvent(), "1m")
	h.park()
	a := <-got
	a.want(t, 200, "")
	if a.State != "parked" || a.Reason == nil || *a.Reason == "" {
		t.Errorf("%s", a.text)
	}
}

func TestWaitRunsOut(t *testing.T) {
	h := start(t)
	a := h.call(http.MethodPost, "/v1/results?wait=published&timeout=1ms", "application/json", strings.NewReader(oneEvent()))
	a.want(t, 202, "")
	if a.State != "pending" || a.Seq != 1 {
		t.Errorf("%s", a.text)
	}
}

// A wait does not fall to the server's time-outs for a whole request.
func TestWaitOutlastsTheTimeouts(t *testing.T) {
	h := start(t, func(s *settings) { s.ReadTimeout, s.WriteTimeout = 50*time.Millisecond, 50*time.Millisecond })
	a := h.call(http.MethodPost, "/v1/results?wait=published&timeout=500ms", "application/json", strings.NewReader(oneEvent()))
	a.want(t, 202, "")
}

func TestWaitQueries(t *testing.T) {
	h := start(t)
	for _, query := range []string{"wait=never", "wait=published&timeout=soon", "wait=published&timeout=0s", "wait=published&timeout=-1s",
		"wait=published&timeout=11m", "wait=published&timeout=", "timeout=1s", "wait=published&wait=published", "why=1",
		"wait=published;timeout=1s", "wait=pub%zzlished", "nonsense=%zz"} {
		h.call(http.MethodPost, "/v1/results?"+query, "application/json", strings.NewReader(oneEvent())).want(t, 400, "bad-query")
		h.call(http.MethodPost, "/v1/results:batch?"+query, "application/x-ndjson", strings.NewReader(oneEvent())).want(t, 400, "bad-query")
	}
	if h.lastSeq() != 0 {
		t.Error("something was stored")
	}
}

// TestWaitEndsWithTheServer: whoever waits is told at once how things stand.
func TestWaitEndsWithTheServer(t *testing.T) {
	h := start(t)
	single := h.postWaiting(oneEvent(), "1m")
	batch := make(chan answer, 1)
	go func() {
		a, err := h.try(context.Background(), http.MethodPost, "/v1/results:batch?wait=published&timeout=1m", "application/x-ndjson", strings.NewReader(oneEvent()))
		if err != nil {
			t.Error(err)
		}
		batch <- a
	}()
	for h.lastSeq() < 2 {
		time.Sleep(time.Millisecond)
	}
	h.stop()
	a := <-single
	a.want(t, 202, "")
	if b := <-batch; b.status != 200 || !strings.Contains(b.text, `"status":202`) {
		t.Errorf("%s", b.text)
	}
}

func TestWaitersAreBounded(t *testing.T) {
	h := start(t, func(s *settings) { s.MaxWaiters = 1 })
	got := h.postWaiting(oneEvent(), "1m")
	for target, mediaType := range map[string]string{"/v1/results": "application/json", "/v1/results:batch": "application/x-ndjson"} {
		h.call(http.MethodPost, target+"?wait=published", mediaType, strings.NewReader(oneEvent())).want(t, 429, "too-many-waiters")
	}
	if h.lastSeq() != 1 {
		t.Error("a refused one was stored")
	}
	h.publish()
	(<-got).want(t, 201, "")
	h.call(http.MethodPost, "/v1/results?wait=published&timeout=1ms", "application/json", strings.NewReader(oneEvent())).want(t, 202, "")
}

// A client that gives up gives its place back.
func TestAWaiterThatGoesAway(t *testing.T) {
	h := start(t, func(s *settings) { s.MaxWaiters = 1 })
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := h.try(ctx, http.MethodPost, "/v1/results?wait=published&timeout=1m", "application/json", strings.NewReader(oneEvent()))
		gone <- err
	}()
	for h.lastSeq() == 0 {
		time.Sleep(time.Millisecond)
	}
	leave()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for {
		a := h.call(http.MethodPost, "/v1/results?wait=published&timeout=1ms", "application/json", strings.NewReader(oneEvent()))
		if a.status == 202 {
			return
		}
		a.want(t, 429, "too-many-waiters") // until the server has noticed
	}
}
