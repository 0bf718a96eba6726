package ipc

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// batchLine is an answer line as a client sees it.
type batchLine struct {
	Line   int `json:"line"`
	Status int `json:"status"`
	receipt
	Problem *problem `json:"problem"`
}

func (h *harness) batch(query string, lines ...string) []batchLine {
	h.t.Helper()
	return h.batchText(query, strings.Join(lines, "\n"))
}

func (h *harness) batchText(query, body string) []batchLine {
	h.t.Helper()
	a := h.call(http.MethodPost, "/v1/results:batch"+query, "application/x-ndjson", strings.NewReader(body))
	a.want(h.t, 200, "")
	return linesOf(h.t, a.text)
}

func linesOf(t testing.TB, text string) []batchLine {
	t.Helper()
	var lines []batchLine
	sc := bufio.NewScanner(strings.NewReader(text))
	for sc.Scan() {
		var l batchLine
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			t.Fatalf("%v: %s", err, sc.Text())
		}
		lines = append(lines, l)
	}
	return lines
}

// told writes an answer as its line numbers, statuses and problems.
func told(lines []batchLine) string {
	var words []string
	for _, l := range lines {
		word := fmt.Sprintf("%d:%d", l.Line, l.Status)
		if l.Problem != nil {
			word += strings.TrimPrefix(l.Problem.Type, problemType)
		} else if l.Duplicate {
			word += "duplicate"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

func TestBatchAnswersEachLineInOrder(t *testing.T) {
	h := start(t)
	id := uuid.New()
	lines := h.batch("", oneEvent(), `{"a":`, event(id, `{"n":1}`), `{}`, event(id, `{"n":1}`), event(id, `{"n":2}`),
		event(uuid.New(), `{"x":"`+strings.Repeat("x", 70<<10)+`"}`), oneEvent())
	const want = "1:201 2:400not-json 3:201 4:422invalid 5:200duplicate 6:409conflict 7:413too-large 8:201"
	if got := told(lines); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if lines[0].Seq != 1 || lines[2].Seq != 2 || lines[4].Seq != 2 || lines[7].Seq != 3 {
		t.Errorf("%+v", lines)
	}
	if h.lastSeq() != 3 {
		t.Errorf("%d results are held", h.lastSeq())
	}
}

func TestBatchLineEnds(t *testing.T) {
	h := start(t)
	for body, want := range map[string]string{
		"":                                      "",
		"\n\n \n":                               "",
		oneEvent() + "\r\n\r\n" + oneEvent():    "1:201 3:201",
		"\n" + oneEvent() + "\n":                "2:201",
		oneEvent() + " " + oneEvent() + "\n":    "1:400not-json",
		"  " + oneEvent() + "\t\n" + oneEvent(): "1:201 2:201",
	} {
		if got := told(h.batchText("", body)); got != want {
			t.Errorf("%q: %s, want %s", body, got, want)
		}
	}
}

func TestBatchBounds(t *testing.T) {
	h := start(t, func(s *settings) { s.MaxBatchBytes = 2 << 20 })
	many := strings.Repeat("{}\n", maxBatchLines)
	if got := h.batchText("", many); len(got) != maxBatchLines {
		t.Errorf("%d lines", len(got))
	}
	h.call(http.MethodPost, "/v1/results:batch", "application/x-ndjson", strings.NewReader(many+"{}\n")).want(t, 413, "too-many-lines")
	a := h.call(http.MethodPost, "/v1/results:batch", "application/x-ndjson", strings.NewReader(strings.Repeat(" ", 2<<20+1)))
	a.want(t, 413, "too-large")
	if a.Limit != 2<<20 || a.Size != 2<<20+1 {
		t.Errorf("%s", a.text)
	}
}

func TestBatchFillsWhatIsLeft(t *testing.T) {
	h := start(t, func(s *settings) { s.outbox.MaxRows = 2 })
	if got := told(h.batch("", oneEvent(), oneEvent(), oneEvent())); got != "1:201 2:201 3:507full" {
		t.Errorf("%s", got)
	}
}

func TestBatchWaits(t *testing.T) {
	h := start(t)
	got := make(chan []batchLine, 1)
	go func() {
		a, err := h.try(t.Context(), http.MethodPost, "/v1/results:batch?wait=published&timeout=1m", "application/x-ndjson",
			strings.NewReader(oneEvent()+"\n{}\n"+oneEvent()))
		if err != nil || a.status != 200 {
			t.Errorf("%+v %v", a, err)
		}
		got <- linesOf(t, a.text)
	}()
	for h.lastSeq() < 2 {
		select {
		case lines := <-got:
			t.Fatalf("did not wait: %s", told(lines))
		default:
		}
	}
	h.park()
	h.publish()
	lines := <-got
	if told(lines) != "1:200 2:422invalid 3:201" || lines[0].State != "parked" || lines[2].State != "published" || lines[2].Offset == nil {
		t.Errorf("%s %+v", told(lines), lines)
	}
	if got := told(h.batch("?wait=published&timeout=1ms", oneEvent())); got != "1:202" {
		t.Errorf("%s", got)
	}
}
