package ipc

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/result"
)

const maxBatchLines = 4096

// line is the answer to one line of a batch.
type line struct {
	Line   int `json:"line"` // of the request, from 1
	Status int `json:"status"`
	*receipt
	Problem *problem `json:"problem,omitempty"`
}

// batch is a parsed NDJSON body: the valid results, and an answer for each line.
type batch struct {
	lines   []line
	results []result.Result
	at      []int // results[i] answers lines[at[i]]
}

// postBatch takes NDJSON and answers a line for each, in order; the valid ones
// share one commit. The answer as a whole is 200, or a problem if none was stored.
func (s *Server) postBatch(w http.ResponseWriter, r *http.Request) error {
	wait, release, err := s.admit(r)
	if err != nil {
		return err
	}
	defer release()
	b, outs, err := s.takeBatch(w, r)
	if err != nil {
		return err
	}
	if wait > 0 {
		s.extendDeadline(w, wait)
		s.waitBatch(r.Context(), b, outs, wait)
	}
	b.write(w)
	return nil
}

// takeBatch reads a batch and appends what is valid. The body's memory is given
// back before any wait for publication.
func (s *Server) takeBatch(w http.ResponseWriter, r *http.Request) (*batch, []outbox.Outcome, error) {
	body, err := s.readBody(w, r, "application/x-ndjson", "batch", s.opts.MaxBatchBytes)
	if err != nil {
		return nil, nil, err
	}
	defer s.done(body)
	b, err := s.parseBatch(body.Bytes(), r)
	if err != nil {
		return nil, nil, err
	}
	outs, err := s.append(r.Context(), b.results)
	if err != nil {
		return nil, nil, err
	}
	for i, out := range outs {
		b.answer(i, out, s)
	}
	return b, outs, nil
}

func (s *Server) parseBatch(data []byte, r *http.Request) (*batch, error) {
	n := min(1+bytes.Count(data, []byte{'\n'}), maxBatchLines)
	b := batch{lines: make([]line, 0, n), results: make([]result.Result, 0, n), at: make([]int, 0, n)}
	parent, state := traceContext(r)
	number := 0
	for text := range bytes.Lines(data) {
		number++
		text = bytes.TrimRight(text, "\r\n")
		if len(bytes.Trim(text, " \t\r")) == 0 { // JSON's white space: what is more, is answered
			continue
		}
		if len(b.lines) == maxBatchLines {
			return nil, newProblem(http.StatusRequestEntityTooLarge, "too-many-lines", "too many lines", "a batch may have 4096 lines")
		}
		res, err := s.decodeLine(text)
		b.lines = append(b.lines, line{Line: number})
		if err != nil {
			b.fail(len(b.lines)-1, err, s)
			continue
		}
		res.TraceParent, res.TraceState = parent, state
		b.results = append(b.results, res)
		b.at = append(b.at, len(b.lines)-1)
	}
	return &b, nil
}

func (s *Server) decodeLine(text []byte) (result.Result, error) {
	if limit := s.opts.MaxResultBytes(); int64(len(text)) > limit {
		return result.Result{}, tooLarge("result", int64(len(text)), limit)
	}
	return result.Decode(text, s.opts.Now())
}

func (b *batch) fail(i int, err error, s *Server) {
	p := problemOf(err)
	b.lines[i].Status, b.lines[i].Problem = p.Status, p
	s.note(p, err)
}

func (b *batch) answer(i int, out outbox.Outcome, s *Server) {
	if out.Err != nil {
		b.fail(b.at[i], out.Err, s)
		return
	}
	l := &b.lines[b.at[i]]
	rc := receiptOf(out.Entry, out.Duplicate)
	l.Status, l.receipt = http.StatusCreated, &rc
	if out.Duplicate {
		l.Status = http.StatusOK
	}
}

// waitBatch waits for all accepted lines, within one time-out.
func (s *Server) waitBatch(ctx context.Context, b *batch, outs []outbox.Outcome, wait time.Duration) {
	deadline := time.Now().Add(wait)
	for i, out := range outs {
		if out.Err != nil {
			continue
		}
		e, err := s.waitPublished(ctx, out.Entry, max(time.Until(deadline), time.Millisecond))
		l := &b.lines[b.at[i]]
		if err != nil {
			l.receipt = nil
			b.fail(b.at[i], err, s)
			continue
		}
		rc := receiptOf(e, out.Duplicate)
		l.receipt = &rc
		switch e.State {
		case outbox.Pending:
			l.Status = http.StatusAccepted
		case outbox.Parked:
			l.Status = http.StatusOK
		}
	}
}

func (b *batch) write(w http.ResponseWriter) {
	out := make([]byte, 0, 160*len(b.lines))
	for i := range b.lines {
		out = append(b.lines[i].append(out), '\n')
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	_, _ = w.Write(out) // a client that is gone is no error of ours
}

func (l *line) append(b []byte) []byte {
	if l.Problem == nil && l.plain() {
		b = strconv.AppendInt(append(b, `{"line":`...), int64(l.Line), 10)
		b = strconv.AppendInt(append(b, `,"status":`...), int64(l.Status), 10)
		return append(l.appendMembers(append(b, ',')), '}')
	}
	text, _ := json.Marshal(l) // numbers and strings: cannot fail
	return append(b, text...)
}
