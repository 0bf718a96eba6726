package ipc

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/result"
)

// FuzzBatch sends bytes as the body of a batch to a server over a real outbox.
// Whatever they are:
//
//   - nothing panics, and no status is a 5xx, neither the answer's nor a line's;
//   - the answer is 200, or a 413 for the whole of it, and then nothing is stored;
//   - every line that is not blank gets exactly one answer, in order, under its
//     number, with the status that the line deserves by itself;
//   - a line answered 201 reads back with its fields and the same bytes of
//     `result`, one answered 200 likewise, and a conflict shows who is in the way;
//   - a line that is refused is not stored: seq grows by the number of 201, and
//     its event_id is not found unless another line brought it;
//   - the same body again stores only what came without an event_id;
//   - every answer is as api/openapi.yaml says.
func FuzzBatch(f *testing.F) {
	h := start(f, func(s *settings) {
		s.ShowPayload = true
		s.MaxBatchBytes = 1 << 20
		s.outbox.MaxRows, s.outbox.MaxBytes = 1<<40, 1<<50 // nothing gives way to anything
		s.Log, s.outbox.Log = slog.New(slog.DiscardHandler), slog.New(slog.DiscardHandler)
	})
	for _, seed := range batchSeeds(f) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		b := &fuzzed{t: t, h: h, body: body}
		first := b.post()
		again := b.post()
		if first != nil && again != nil {
			b.compare(first, again)
		}
	})
}

// batchSeeds are the vectors: each alone, all together, and between line ends of
// every kind.
func batchSeeds(f *testing.F) [][]byte {
	f.Helper()
	var seeds [][]byte
	for _, file := range []string{"valid", "invalid"} {
		text, err := os.ReadFile("../../api/vectors/" + file + ".json")
		if err != nil {
			f.Fatal(err)
		}
		var vectors []struct {
			Input  *string `json:"input"`
			Base64 []byte  `json:"input_base64"`
		}
		if err := json.Unmarshal(text, &vectors); err != nil || len(vectors) < 40 {
			f.Fatalf("%s: %d vectors, %v", file, len(vectors), err)
		}
		for _, v := range vectors {
			data := v.Base64
			if v.Input != nil {
				data = []byte(*v.Input)
			}
			seeds = append(seeds, data)
		}
	}
	one, raw := oneEvent(), event(uuid.New(), `{ "a" : "<&\u0061é\u2028" , "n" : 1.50e+0 }`)
	return append(seeds, bytes.Join(seeds, []byte("\n")), bytes.Join(seeds, []byte("\r\n \r\n")),
		[]byte(one+"\n\n"+one+"\r\n\t"+one), []byte("\n\r\n \n"), []byte(raw),
		[]byte(one+"\n\u00a0\n\v\n\u2028\n"+one), []byte(strings.Repeat("{}\n", maxBatchLines+1)))
}

// fuzzed is one body under test.
type fuzzed struct {
	t    *testing.T
	h    *harness
	body []byte
}

func (b *fuzzed) call(method, target, mediaType string, body []byte) (int, []byte) {
	b.t.Helper()
	req := httptest.NewRequest(method, "http://sidecar"+target, bytes.NewReader(body))
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	w := httptest.NewRecorder()
	b.h.srv.ServeHTTP(w, req)
	if err := api.check(req, body, w.Result(), w.Body.Bytes()); err != nil {
		b.t.Error(err)
	}
	return w.Code, w.Body.Bytes()
}

func (b *fuzzed) lastSeq() int64 {
	b.t.Helper()
	st, err := b.h.store.Stats(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return st.LastSeq
}

// held tells which of the lines' event IDs are in the outbox.
func (b *fuzzed) held(lines [][]byte) map[uuid.UUID]bool {
	b.t.Helper()
	found := map[uuid.UUID]bool{}
	for _, text := range lines {
		id := suppliedID(text)
		if id == uuid.Nil {
			continue
		}
		_, err := b.h.store.Get(b.t.Context(), id)
		if err != nil && !errors.Is(err, outbox.ErrNotFound) {
			b.t.Fatal(err)
		}
		found[id] = err == nil
	}
	return found
}

// post sends the body and checks the answers; nil where it was refused as a whole.
func (b *fuzzed) post() []batchLine {
	b.t.Helper()
	lines, numbers := split(b.body)
	known, before := b.held(lines), b.lastSeq()
	status, text := b.call(http.MethodPost, batchPath, "application/x-ndjson", b.body)
	after := b.lastSeq()
	if status == http.StatusRequestEntityTooLarge && (len(b.body) > 1<<20 || len(lines) > maxBatchLines) {
		if after != before {
			b.t.Errorf("refused, and %d results were stored", after-before)
		}
		return nil
	}
	if status != http.StatusOK {
		b.t.Fatalf("%d %s", status, text)
	}
	answers := linesOf(b.t, string(text))
	if len(answers) != len(lines) {
		b.t.Fatalf("%d lines, %d answers", len(lines), len(answers))
	}
	for i, a := range answers {
		if a.Line != numbers[i] {
			b.t.Errorf("answer %d is for line %d, not %d", i, a.Line, numbers[i])
		}
		if a.Problem == nil {
			known[a.EventID] = true
		}
		if a.Status == http.StatusCreated {
			before++
			if a.Seq != before {
				b.t.Errorf("line %d got seq %d, not %d", a.Line, a.Seq, before)
			}
		}
	}
	if after != before {
		b.t.Errorf("seq is at %d, by the answers at %d", after, before)
	}
	for i, a := range answers {
		b.checkLine(lines[i], a, known)
	}
	return answers
}

// split is the reference: lines that hold more than JSON's white space.
func split(body []byte) (lines [][]byte, numbers []int) {
	for i, text := range bytes.Split(body, []byte("\n")) {
		if text = bytes.TrimRight(text, "\r"); len(bytes.Trim(text, " \t\r")) > 0 {
			lines, numbers = append(lines, text), append(numbers, i+1)
		}
	}
	return lines, numbers
}

// checkLine holds one answer against what the line deserves by itself.
func (b *fuzzed) checkLine(text []byte, a batchLine, known map[uuid.UUID]bool) {
	b.t.Helper()
	want, err := result.Decode(text, b.h.srv.opts.Now())
	var syntax *result.SyntaxError
	deserved := []int{http.StatusCreated, http.StatusOK, http.StatusConflict}
	switch {
	case int64(len(text)) > b.h.srv.opts.MaxResultBytes():
		deserved = []int{http.StatusRequestEntityTooLarge}
	case errors.As(err, &syntax):
		deserved = []int{http.StatusBadRequest}
	case err != nil:
		deserved = []int{http.StatusUnprocessableEntity}
	}
	if !slices.Contains(deserved, a.Status) || (a.Status >= 400) != (a.Problem != nil) || (a.Status == http.StatusOK) != a.Duplicate {
		b.t.Errorf("line %d (%q): %+v, deserved one of %v", a.Line, text, a, deserved)
		return
	}
	switch {
	case a.Problem == nil:
		if supplied := suppliedID(text); supplied != uuid.Nil && supplied != a.EventID {
			b.t.Errorf("line %d was sent as %s and is held as %s", a.Line, supplied, a.EventID)
		}
		b.readBack(want, a)
	case a.Status == http.StatusConflict:
		if a.Problem.Held == nil || a.Problem.Held.EventID != want.EventID {
			b.t.Errorf("line %d conflicts with %+v", a.Line, a.Problem.Held)
		}
	default:
		b.isNotFound(suppliedID(text), known)
	}
}

// suppliedID is the event_id of a line, valid or not; Nil where it has none.
func suppliedID(text []byte) uuid.UUID {
	var e struct {
		EventID string `json:"event_id"`
	}
	_ = json.Unmarshal(text, &e) // what it could read before an error is good enough
	id, err := uuid.Parse(e.EventID)
	if err != nil {
		return uuid.Nil
	}
	return id
}

func (b *fuzzed) readBack(want result.Result, a batchLine) {
	b.t.Helper()
	status, text := b.call(http.MethodGet, resultsPath+"/"+a.EventID.String()+"?payload=true", "", nil)
	var got View
	if err := json.Unmarshal(text, &got); err != nil || status != http.StatusOK {
		b.t.Fatalf("line %d was answered %d and reads back as %d %s (%v)", a.Line, a.Status, status, text, err)
	}
	if got.EventID != a.EventID || got.Seq != a.Seq || got.CorrelationID != want.CorrelationID || got.WorkflowID != want.WorkflowID ||
		got.WorkflowRunID != want.WorkflowRunID || got.Status != want.Status {
		b.t.Errorf("line %d reads back as %s", a.Line, text)
	}
	if !bytes.Equal(got.Result, want.Payload) {
		b.t.Errorf("line %d: result %q reads back as %q", a.Line, want.Payload, got.Result)
	}
}

// isNotFound expects a refused line's event_id not to be held, unless it was
// before, or an accepted line has brought it.
func (b *fuzzed) isNotFound(id uuid.UUID, known map[uuid.UUID]bool) {
	b.t.Helper()
	if id == uuid.Nil || known[id] {
		return
	}
	if status, text := b.call(http.MethodGet, resultsPath+"/"+id.String(), "", nil); status != http.StatusNotFound {
		b.t.Errorf("%s was refused and is held: %d %s", id, status, text)
	}
}

// compare expects of the second answer what a resend is promised.
func (b *fuzzed) compare(first, again []batchLine) {
	b.t.Helper()
	lines, _ := split(b.body)
	for i, a := range again {
		switch supplied := suppliedID(lines[i]) != uuid.Nil; {
		case supplied && first[i].Problem == nil && (a.Status != http.StatusOK || a.EventID != first[i].EventID || a.Seq != first[i].Seq),
			!supplied && first[i].Problem == nil && a.Status != http.StatusCreated,
			first[i].Problem != nil && a.Status != first[i].Status:
			b.t.Errorf("line %d was answered %+v, then %+v", a.Line, first[i], a)
		}
	}
}
