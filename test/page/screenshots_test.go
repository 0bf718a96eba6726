package page

import (
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"

	"workflow-results-sidecar/internal/testkit"
)

var screenshots = flag.String("screenshots", "", "directory for the pictures of the page; empty: none are taken")

// TestScreenshots takes the pictures in docs/page, of a sidecar at work: some
// minutes, since the plots want a past.
func TestScreenshots(t *testing.T) {
	if *screenshots == "" {
		t.Skip("it makes pictures and tests nothing: make screenshots")
	}
	fake := testkit.StartFake(t)
	fake.CreateTopic(t, "workflow-results", 6, "max.message.bytes", "20000")
	w := newWorld(t, fake.Addr(), "--admin-results", "--topic-max-message-bytes", "20000")
	w.socket, w.data = "/tmp/results.sock", "/tmp/results-data" // as in README.md
	t.Cleanup(func() {
		if err := errors.Join(os.RemoveAll(w.data), os.Remove(w.socket), os.Remove(w.socket+".lock")); err != nil {
			t.Error(err)
		}
	})
	w.start()
	browser := startBrowser(t)
	tb := open(t, browser, w.url())

	var last event
	work := func(looks int, each func(i int) int) {
		for i := range looks {
			events := make([]event, each(i))
			for n := range events {
				events[n] = workflow(n)
			}
			if len(events) > 0 {
				w.post("", events...)
				last = events[0]
			}
			tb.looked()
		}
	}
	wave := func(i int) int { return 60 + 40*((i/9)%3) + rand.IntN(50) }
	work(*looks, wave)
	tb.wait(`document.getElementById("word").textContent === "WELL"`)
	shots := func(name string, width, height int64, scheme string) {
		tb.size(width, height)
		tb.media(scheme)
		eval[any](tb, `(() => { scrollTo(0, 0); document.activeElement.blur(); return null })()`)
		tb.shoot(filepath.Join(*screenshots, name+".png"))
	}
	shots("light", 1280, 1400, "light")
	shots("dark", 1280, 1400, "dark")
	shots("narrow", 400, 1500, "light")

	tb.size(1280, 1400)
	tb.search(last.EventID)
	tb.wait(`document.querySelector("#found article")`)
	eval[any](tb, `(() => { document.getElementById("find").scrollIntoView(); return null })()`)
	tb.size(1280, 560)
	eval[any](tb, `(() => { document.getElementById("find").scrollIntoView(); return null })()`)
	tb.shoot(filepath.Join(*screenshots, "search.png"))

	// Two results that Kafka can never take, then the broker goes.
	smaller := "2000"
	if _, err := kadm.NewClient(fake.Client(t)).AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &smaller}}, "workflow-results"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		e := workflow(1)
		e.Result = []byte(`{"report":"` + incompressible(9000) + `"}`)
		w.post("", e)
	}
	tb.verdict("PUBLISHING, with parked results", "attention")
	tb = open(t, browser, w.url())
	shots("parked", 1280, 1400, "light")
	fake.Close()
	work(*looks/4, wave)
	tb.verdict("WAITING FOR KAFKA", "attention")
	shots("trouble", 1280, 1000, "light")
	shots("trouble-narrow", 400, 1500, "dark")
}

var looks = flag.Int("looks", 140, "how many looks the past of the pictures is long")

func workflow(n int) event {
	kinds := []string{"invoice-review", "claim-triage", "contract-summary", "order-review", "support-answer"}
	e := newEvent(`{"answer":"approved","confidence":0.93,"steps":7}`)
	e.EventID, e.CorrelationID = uuid.Must(uuid.NewV7()).String(), uuid.Must(uuid.NewV7()).String()
	e.WorkflowID = kinds[rand.IntN(len(kinds))]
	e.RunID = time.Now().UTC().Format("2006-01-02T15:04") + "-" + e.EventID[24:30]
	if n%7 == 6 {
		e.Status = "failure"
	}
	return e
}
