package ipc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/result"
)

// postResult takes one event: 201 after its commit is on disk.
func (s *Server) postResult(w http.ResponseWriter, r *http.Request) error {
	wait, release, err := s.admit(r)
	if err != nil {
		return err
	}
	defer release()
	out, err := s.take(w, r)
	if err != nil {
		return err
	}
	return s.answer(w, r, out, wait)
}

// take reads one event and appends it. The body's memory is given back before any
// wait for publication.
func (s *Server) take(w http.ResponseWriter, r *http.Request) (outbox.Outcome, error) {
	body, err := s.readBody(w, r, "application/json", "result", s.opts.MaxResultBytes())
	if err != nil {
		return outbox.Outcome{}, err
	}
	defer s.done(body)
	res, err := result.Decode(body.Bytes(), s.opts.Now())
	if err != nil {
		return outbox.Outcome{}, err
	}
	res.TraceParent, res.TraceState = traceContext(r)
	outs, err := s.append(r.Context(), []result.Result{res})
	if err != nil {
		return outbox.Outcome{}, err
	}
	return outs[0], outs[0].Err
}

// append stores results, whether or not the client stays to hear of it: the
// commit happens all the same, and until then the body is in use.
func (s *Server) append(ctx context.Context, rs []result.Result) ([]outbox.Outcome, error) {
	outs, err := s.opts.Store.Append(context.WithoutCancel(ctx), rs)
	for _, out := range outs {
		s.count(out)
	}
	traceOutcomes(ctx, outs)
	return outs, err
}

func (s *Server) count(out outbox.Outcome) {
	switch {
	case out.Err != nil:
	case out.Duplicate:
		s.opts.Metrics.Duplicates.Inc()
	default:
		s.opts.Metrics.Accepted.Inc()
	}
}

// answer tells what became of an appended event, after waiting if asked to.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, out outbox.Outcome, wait time.Duration) error {
	status := http.StatusCreated
	if out.Duplicate {
		status = http.StatusOK
	}
	if wait == 0 {
		writeReceipt(w, status, receiptOf(out.Entry, out.Duplicate))
		return nil
	}
	s.extendDeadline(w, wait)
	e, err := s.waitPublished(r.Context(), out.Entry, wait)
	switch {
	case err != nil:
		return err
	case e.State == outbox.Pending:
		status = http.StatusAccepted
	case e.State == outbox.Parked:
		status = http.StatusOK
	}
	writeReceipt(w, status, receiptOf(e, out.Duplicate))
	return nil
}

// extendDeadline keeps the answer from falling to the write time-out.
func (s *Server) extendDeadline(w http.ResponseWriter, wait time.Duration) {
	rc := http.NewResponseController(w)
	deadline := time.Now().Add(wait + s.opts.WriteTimeout)
	_ = errors.Join(rc.SetReadDeadline(deadline), rc.SetWriteDeadline(deadline)) // net/http supports both on every connection of ours
}

// waitPublished returns the entry once it is published or parked, or as pending
// when the time is over, the client has hung up, or the server ends.
func (s *Server) waitPublished(ctx context.Context, e outbox.Entry, wait time.Duration) (outbox.Entry, error) {
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	got, err := s.opts.Store.WaitPublished(waiting, e.EventID)
	if err != nil && waiting.Err() != nil {
		return e, nil // held, and not known to be published
	}
	return got, err
}

func writeReceipt(w http.ResponseWriter, status int, rc receipt) {
	if !rc.plain() {
		writeJSON(w, status, rc)
		return
	}
	b := append(rc.appendMembers(append(make([]byte, 0, 128), '{')), "}\n"...)
	w.Header()["Content-Type"] = jsonType
	w.WriteHeader(status)
	_, _ = w.Write(b) // a client that is gone is no error of ours
}

var jsonType = []string{"application/json"}

// body is a request body in memory; bytes of the in-flight bound are its.
type body struct {
	bytes.Buffer
	part   io.LimitedReader // what is being read
	weight int64
}

var bodies = sync.Pool{New: func() any { return new(body) }}

// bodyStep is how much of a body is counted against the in-flight bound before the
// first byte has come. Most results fit in it.
const bodyStep = 64 << 10

// readBody reads the whole body, within the limit of one request and of all. One
// request never gets more than half of what all may have.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request, mediaType, what string, limit int64) (*body, error) {
	if err := checkMediaType(r, mediaType); err != nil {
		return nil, err
	}
	if most := s.opts.MaxInFlightBytes / 2; limit > most {
		what, limit = "body", most
	}
	if r.ContentLength > limit {
		return nil, tooLarge(what, r.ContentLength, limit)
	}
	b := bodies.Get().(*body)
	b.Reset()
	from := io.Reader(r.Body)
	if r.ContentLength < 0 { // else it ends with its length
		from = http.MaxBytesReader(w, r.Body, limit)
	}
	if err := s.fill(b, from, r.ContentLength); err != nil {
		s.done(b)
		return nil, err
	}
	return b, nil
}

// fill reads a body of length bytes, or of unknown length where that is negative.
// What has not come yet is counted a step ahead and no further: an announcement
// alone holds nobody back.
func (s *Server) fill(b *body, from io.Reader, length int64) error {
	b.part = io.LimitedReader{R: from}
	for step := int64(bodyStep); ; step = b.weight {
		if length >= 0 {
			step = min(step, length-b.weight)
		}
		if !s.bodies.TryAcquire(step) {
			return newProblem(http.StatusServiceUnavailable, "busy", "busy", "too many bytes of requests are in memory: send it again with the same event_id").after(1)
		}
		b.weight += step
		b.Grow(int(step) + bytes.MinRead) // which ReadFrom wants to see free at the end
		b.part.N = step
		n, err := b.ReadFrom(&b.part)
		switch {
		case err == nil && (n < step || b.weight == length):
			s.bodies.Release(b.weight - int64(b.Len()))
			b.weight = int64(b.Len())
			return nil
		case err != nil:
			return readError(err)
		}
	}
}

func readError(err error) error {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return newProblem(http.StatusRequestTimeout, "slow", "the body did not arrive", "the body was not complete in time; nothing was stored: send it again")
	}
	return newProblem(http.StatusBadRequest, "incomplete", "incomplete body", "the body ended before its announced length, or its chunks are malformed; nothing was stored")
}

// done gives a body back; nobody may use it any more.
func (s *Server) done(b *body) {
	s.bodies.Release(b.weight)
	b.weight, b.part.R = 0, nil
	const keep = 64 << 10 // large ones are rare and would stay for ever
	if b.Cap() <= 2*keep {
		bodies.Put(b)
	}
}

func checkMediaType(r *http.Request, want string) error {
	got := r.Header.Get("Content-Type")
	if got == want {
		return nil
	}
	t, params, err := mime.ParseMediaType(got)
	charset := params["charset"]
	if err == nil && t == want && (charset == "" || charset == "utf-8" || charset == "UTF-8") {
		return nil
	}
	return newProblem(http.StatusUnsupportedMediaType, "media-type", "unsupported media type", "Content-Type must be "+want)
}

// queryOf reads the query strictly: what is malformed or repeated must not pass
// for something that was not asked for.
func queryOf(r *http.Request) (url.Values, error) {
	if r.URL.RawQuery == "" {
		return nil, nil
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badQuery("the query is malformed: %s", err)
	}
	for name, values := range q {
		if len(values) > 1 {
			return nil, badQuery("%q is given %d times", name, len(values))
		}
	}
	return q, nil
}

// waitOf reads ?wait=published&timeout=10s; 0 is no wait.
func (s *Server) waitOf(q url.Values) (time.Duration, error) {
	if len(q) == 0 {
		return 0, nil
	}
	for name := range q {
		if name != "wait" && name != "timeout" {
			return 0, badQuery("only wait=published and timeout= are known here; got %q", name)
		}
	}
	if q.Get("wait") != "published" {
		return 0, badQuery("wait must be published")
	}
	wait := 10 * time.Second
	if q.Has("timeout") {
		var err error
		if wait, err = time.ParseDuration(q.Get("timeout")); err != nil || wait <= 0 || wait > s.opts.MaxWait {
			return 0, badQuery("timeout must be a duration such as 10s, above 0 and up to %s", s.opts.MaxWait)
		}
	}
	return wait, nil
}

// admit reads how long a request wants to wait for publication, and bounds how
// many do. It comes before the commit, so that a refusal means "not stored".
func (s *Server) admit(r *http.Request) (wait time.Duration, release func(), err error) {
	q, err := queryOf(r)
	if err == nil {
		wait, err = s.waitOf(q)
	}
	if err != nil || wait == 0 {
		return 0, func() {}, err
	}
	if !s.waiters.TryAcquire(1) {
		return 0, nil, newProblem(http.StatusTooManyRequests, "too-many-waiters", "too many requests wait for publication", "nothing was stored: send it again, or without wait=published").after(1)
	}
	return wait, func() { s.waiters.Release(1) }, nil
}

// getResult tells the state of one result.
func (s *Server) getResult(w http.ResponseWriter, r *http.Request, id uuid.UUID) {
	q, err := queryOf(r)
	if err != nil {
		s.refuse(w, err)
		return
	}
	withPayload, err := s.payloadWanted(q)
	if err != nil {
		s.refuse(w, err)
		return
	}
	e, err := s.opts.Store.Get(r.Context(), id)
	if err != nil {
		s.refuse(w, err)
		return
	}
	if !withPayload {
		writeJSON(w, http.StatusOK, viewOf(e))
		return
	}
	payload, err := s.opts.Store.Payload(r.Context(), id)
	if err != nil {
		s.refuse(w, err)
		return
	}
	writeWithPayload(w, viewOf(e), payload)
}

func (s *Server) payloadWanted(q url.Values) (bool, error) {
	for name := range q {
		if name != "payload" {
			return false, badQuery("only payload=true is known here; got %q", name)
		}
	}
	switch {
	case !q.Has("payload"), q.Get("payload") == "false":
		return false, nil
	case q.Get("payload") != "true":
		return false, badQuery("payload must be true or false")
	}
	if !s.opts.ShowPayload {
		return false, newProblem(http.StatusForbidden, "payload-hidden", "payloads are not shown", "the sidecar shows payloads only with --show-payload")
	}
	return true, nil
}

type listing struct {
	Results   []View `json:"results"`
	NextAfter *int64 `json:"next_after"` // null: these were the last, or the newest
}

// listResults lists results in seq order, a page at a time.
func (s *Server) listResults(w http.ResponseWriter, r *http.Request) {
	f, err := filterOf(r)
	if err != nil {
		s.refuse(w, err)
		return
	}
	entries, err := s.opts.Store.List(r.Context(), f)
	if err != nil {
		s.refuse(w, err)
		return
	}
	page := listing{Results: make([]View, 0, len(entries))}
	for _, e := range entries {
		page.Results = append(page.Results, viewOf(e))
	}
	if n := len(entries); n == f.Limit && !f.Newest {
		page.NextAfter = &entries[n-1].Seq
	}
	writeJSON(w, http.StatusOK, page)
}

func filterOf(r *http.Request) (outbox.Filter, error) {
	f := outbox.Filter{Limit: 100}
	q, err := queryOf(r)
	for name := range q {
		err = errors.Join(err, setFilter(&f, name, q.Get(name)))
	}
	return f, err
}

func setFilter(f *outbox.Filter, name, value string) error {
	switch name {
	case "correlation_id":
		id, err := uuid.Parse(value)
		if err != nil || len(value) != 36 {
			return badQuery("correlation_id must be a UUID of 36 characters")
		}
		f.CorrelationID = &id
	case "state":
		f.State = outbox.State(value)
		if f.State != outbox.Pending && f.State != outbox.Published && f.State != outbox.Parked {
			return badQuery("state must be pending, published or parked")
		}
	case "after":
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < 0 {
			return badQuery("after must be a seq, 0 or more")
		}
		f.After = n
	case "limit":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > outbox.MaxListLimit {
			return badQuery("limit must be 1 to %d", outbox.MaxListLimit)
		}
		f.Limit = n
	case "newest":
		if value != "true" && value != "false" {
			return badQuery("newest must be true or false")
		}
		f.Newest = value == "true"
	default:
		return badQuery("correlation_id, state, after, limit and newest are known here; got %q", name)
	}
	return nil
}

// plainly lets nothing be done under a query: a ?dry_run=true is not known here.
func (s *Server) plainly(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "" {
			s.refuse(w, badQuery("no parameter is known here; got %q", r.URL.RawQuery))
			return
		}
		h(w, r)
	}
}

func (s *Server) retryResult(w http.ResponseWriter, r *http.Request, id uuid.UUID) {
	e, err := s.opts.Store.Retry(r.Context(), id)
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.opts.Log.Info("a parked result is tried again", "event_id", id, "correlation_id", e.CorrelationID, "peer_uid", peerFrom(r.Context()).uid)
	writeJSON(w, http.StatusOK, viewOf(e))
}

func (s *Server) purgeResult(w http.ResponseWriter, r *http.Request, id uuid.UUID) {
	e, err := s.opts.Store.Get(r.Context(), id) // for the log: afterwards it is gone
	if err == nil {
		err = s.opts.Store.Purge(r.Context(), id)
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.opts.Log.Warn("a parked result was purged", "event_id", id, "correlation_id", e.CorrelationID, "peer_uid", peerFrom(r.Context()).uid)
	w.WriteHeader(http.StatusNoContent)
}
