package page

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/testkit"
)

// TestStates: what the page says of a sidecar in each state, and that it can be
// used in each.
func TestStates(t *testing.T) {
	browser := startBrowser(t)
	for _, state := range []struct {
		name string
		test func(*testing.T, chromium)
	}{
		{"fresh", fresh}, {"under load", underLoad}, {"broker away", brokerAway}, {"parked", parkedResults}, {"full", full},
		{"ending", ending}, {"damaged", damaged}, {"results off", resultsOff}, {"gone and back", goneAndBack}, {"hostile", hostile},
	} {
		t.Run(state.name, func(t *testing.T) { state.test(t, browser) })
	}
}

func fresh(t *testing.T, browser chromium) {
	w := newWorld(t, "", "--admin-results")
	w.start()
	tb := open(t, browser, w.url())
	tb.verdict("WELL", "well")
	tb.says("#verdict", "everything is published")
	tb.says("#parked-table", "None")
	tb.says("#newest-table", "None yet")
	tb.says("#outbox-lead", "nothing pending")
	tb.says("#topic", "as asked for", "workflow-results-watermarks")
	if !eval[bool](tb, `document.getElementById("reason").hidden`) {
		t.Errorf("something is to be done: %s", tb.text("#reason"))
	}
	tb.examine()
}

func underLoad(t *testing.T, browser chromium) {
	w := newWorld(t, "", "--admin-results")
	w.start()
	ctx, cancel := context.WithCancel(t.Context())
	load := testkit.StartLoad(ctx, t, testkit.LoadConfig{Socket: w.socket, Conns: 4, Rate: 200})
	tb := open(t, browser, w.url())
	tb.wait(`document.querySelectorAll("#newest-table tbody tr").length === 20`)
	tb.wait(`document.querySelector("#rates .plot .edge")?.getAttribute("d").split("L").length > 3`)
	tb.wait(`/accepted [1-9]\d*.*published [1-9]/.test(document.querySelector("#rates .at").textContent)`)
	tb.wait(`/partition \d, offset \d/.test(document.getElementById("newest-table").textContent)`)
	eval[any](tb, `(() => { document.getElementById("figures").open = true; return null })()`)
	tb.wait(`/UTC.*\d\/s/s.test(document.getElementById("figures-table").textContent)`)
	before := eval[int](tb, `document.querySelectorAll("*").length`)
	for range 4 {
		tb.looked()
	}
	if after := eval[int](tb, `document.querySelectorAll("*").length`); after > before+50 {
		t.Errorf("the document grows: %d elements, then %d", before, after)
	}

	// Who is in a table is not pulled away from under.
	eval[any](tb, `(() => { document.querySelector("#newest-table a").focus(); return null })()`)
	tb.wait(`document.getElementById("newest-hint").textContent.includes("Held still")`)
	key := eval[string](tb, `document.querySelector("#newest-table tbody tr").dataset.key`)
	tb.looked()
	tb.looked()
	if got := eval[string](tb, `document.querySelector("#newest-table tbody tr").dataset.key`); got != key {
		t.Error("the rows move while the focus is among them")
	}
	eval[any](tb, `(() => { document.activeElement.blur(); return null })()`)
	tb.wait(fmt.Sprintf(`document.querySelector("#newest-table tbody tr").dataset.key !== %q`, key))

	// Another that is opened now has the past at once.
	other := open(t, browser, w.url())
	if n := eval[int](other, `document.querySelector("#rates .plot .edge").getAttribute("d").split("L").length`); n < 4 {
		t.Errorf("a page that was just opened shows %d points", n)
	}
	tb.examine()
	cancel()
	_ = load.Wait() // it was told to end
	tb.verdict("WELL", "well")
}

func brokerAway(t *testing.T, browser chromium) {
	w := newWorld(t, testkit.FreeAddr(t), "--admin-results")
	w.start()
	e := newEvent(`{}`)
	w.post("", e)
	tb := open(t, browser, w.url())
	tb.verdict("WAITING FOR KAFKA", "attention")
	tb.wait(`document.getElementById("why").textContent.includes("refused")`)
	tb.says("#since", "Since 2", "UTC")
	tb.says("#do", "Repair what this names: the broker")
	tb.says("#broker-lead", "does not take results")
	tb.says("#topic", "not known until a broker answers")
	tb.says("#outbox-lead", "1 pending, the oldest for")
	tb.says("#newest-table", "pending", e.EventID)
	tb.wait(`/[1-9].* s, 1 pending/.test(document.querySelector("#ages .at").textContent)`)
	tb.examine()
}

// runs types what the page says is to be typed, and expects text of it.
func (w *world) runs(tb *tab, selector, text string) {
	w.t.Helper()
	// A person types what the element holds; the prompt before it is only drawn.
	line := eval[string](tb, fmt.Sprintf(`document.querySelector(%q).textContent`, selector))
	shell := exec.Command("sh", "-c", line)
	shell.Env = append(os.Environ(), "PATH="+filepath.Dir(w.bin)+":"+os.Getenv("PATH"))
	out, err := shell.CombinedOutput()
	if err != nil || !strings.Contains(string(out), text) {
		w.t.Errorf("%s: %v\n%s", line, err, out)
	}
}

func parkedResults(t *testing.T, browser chromium) {
	fake := testkit.StartFake(t)
	fake.CreateTopic(t, "workflow-results", 6, "max.message.bytes", "2000")
	w := newWorld(t, fake.Addr(), "--admin-results")
	w.start("--topic-compression", "uncompressed")
	e := newEvent(`{"n":"` + incompressible(5000) + `"}`)
	w.post("", e)
	w.post("", someEvents(3)...)
	tb := open(t, browser, w.url())
	tb.verdict("PUBLISHING, with parked results", "attention")
	tb.says("#sentence", "Kafka refuses 1 for good")
	w.runs(tb, "#do code", e.EventID)
	tb.says("#topic", "differ", "max.message.bytes is 2000")
	tb.says("#parked-table", e.EventID, e.CorrelationID, "Kafka refuses the record")
	eval[any](tb, `(() => { document.querySelector("#parked-table a").click(); return null })()`)
	tb.wait(`document.querySelector("#found .steps")`)
	tb.says("#found", "Accepted", "Committed as seq 1", "Parked", "MESSAGE_TOO_LARGE")
	tb.examine()

	w.runs(tb, "#found .type code", "") // retry: it is parked again, behind the others
	tb.wait(`document.getElementById("found").textContent.includes("Committed as seq 5") && document.querySelector("#found .stop")`)
	w.runs(tb, "#found .type + .type code", "") // purge
	tb.verdict("WELL", "well")
	tb.wait(`document.getElementById("parked-table").textContent.includes("None")`)
}

func incompressible(n int) string {
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(uuid.NewString())
	}
	return b.String()[:n]
}

func full(t *testing.T, browser chromium) {
	w := newWorld(t, testkit.FreeAddr(t), "--admin-results", "--max-rows", "3", "--dedup-rows", "3")
	w.start()
	w.post("", someEvents(3)...)
	tb := open(t, browser, w.url())
	tb.verdict("FULL", "trouble")
	tb.says("#sentence", "results are refused (507)")
	tb.says("#why", "3 results", "the limits are 3")
	tb.says("#do", "--max-rows")
	tb.says("#outbox", "3 of 3, 100 %")
	tb.examine()
}

func ending(t *testing.T, browser chromium) {
	w := newWorld(t, testkit.FreeAddr(t), "--admin-results")
	p := w.start("--shutdown-timeout", "10m")
	w.post("", someEvents(2)...)
	tb := open(t, browser, w.url())
	tb.verdict("WAITING FOR KAFKA", "attention")
	p.Term(t)
	tb.verdict("ENDING", "busy")
	tb.says("#sentence", "2 results are still pending")
	tb.says("#do", "the rest")
	tb.examine()
	p.Term(t)
	tb.verdict("NO ANSWER", "lost")
	if code := p.Wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// damaged: bits have turned over in a payload, which shows when it is to be published.
func damaged(t *testing.T, browser chromium) {
	w := newWorld(t, testkit.FreeAddr(t), "--admin-results")
	p := w.start("--shutdown-timeout", "100ms")
	w.post("", newEvent(`{"n":"as it was sent"}`))
	p.Term(t)
	p.Wait(t) // so that all is in the file
	file := filepath.Join(w.data, "outbox.db")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.Replace(data, []byte("as it was sent"), []byte("as it was bent"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	w.listens(w.launch("--embedded-broker"))
	tb := open(t, browser, w.url())
	tb.verdict("STOPPED", "trouble")
	tb.says("#do", "sidecar outbox check --data-dir "+w.data, "sidecar outbox recover")
	tb.examine()
}

func resultsOff(t *testing.T, browser chromium) {
	w := newWorld(t, "", "--show-payload")
	w.start()
	e := newEvent(`{"secret":"p4yl04d"}`)
	w.post("?wait=published", e)
	tb := open(t, browser, w.url()+"#id="+e.EventID)
	tb.verdict("WELL", "well")
	tb.says("#off", "--admin-results", "SIDECAR_ADMIN_RESULTS", "search by correlation ID", "--show-payload", "sidecar outbox list --socket "+w.socket)
	tb.looked()
	if html := eval[string](tb, `document.documentElement.outerHTML`); strings.Contains(html, e.CorrelationID) || strings.Contains(html, "p4yl04d") {
		t.Error("a result shows")
	}
	for _, url := range tb.requests {
		if strings.Contains(url, "/v1/results") {
			t.Errorf("it asks for %s", url)
		}
	}
	if shown := eval[bool](tb, `["searching", "newest", "parked"].some((id) => !document.getElementById(id).hidden)`); shown {
		t.Error("there is a search, or a table")
	}
	tb.examine()
}

func goneAndBack(t *testing.T, browser chromium) {
	w := newWorld(t, "", "--admin-results")
	p := w.start()
	e := newEvent(`{}`)
	w.post("?wait=published", e)
	tb := open(t, browser, w.url())
	tb.verdict("WELL", "well")
	p.Kill(t)
	tb.verdict("NO ANSWER", "lost")
	tb.says("#sentence", "has not answered for")
	tb.says("#since", "UTC")
	tb.says("#why", "What stands below is of then")
	tb.says("#do", "recovers by itself", "sidecar status --socket "+w.socket)
	tb.says("#newest-table", e.EventID)
	tb.looked()
	tb.looked()
	tb.examine()
	w.start()
	tb.verdict("WELL", "well")
	tb.says("#newest-table", e.EventID)
	if text := tb.text("#pulse"); text != "live" {
		t.Errorf("the page says %q", text)
	}
}

// hostile: names that come from workflows are text, whatever they hold.
func hostile(t *testing.T, browser chromium) {
	w := newWorld(t, "", "--admin-results", "--show-payload")
	w.start()
	names := []string{
		`<script>globalThis.owned = 1</script>`, `<img src=x onerror="globalThis.owned=1">`, `"><svg onload=globalThis.owned=1>`, `javascript:globalThis.owned=1`,
		`'; DROP TABLE results; --`, "\u202egnp.exe\u2066", "a\x00b\x1b[31m\tc\r\n\u2028d", strings.Repeat("W", 256), strings.Repeat("👩‍👩‍👧‍👦", 10), "عربى עברית", "", "${globalThis.owned=1}", "&lt;b&gt;",
	}
	names[10] = "\u00ad\u200b\ufeff" // nothing that shows
	var events []event
	for _, name := range names {
		e := newEvent(`{"html":"</pre><script>globalThis.owned=1</script>","n":1.50, "big": 12345678901234567890}`)
		e.WorkflowID, e.RunID = name, name
		events = append(events, e)
	}
	w.post("?wait=published", events...)
	tb := open(t, browser, w.url())
	tb.wait(fmt.Sprintf(`document.querySelectorAll("#newest-table tbody tr").length === %d`, len(names)))
	tb.says("#newest-table", names[0], names[1], "⟨U+202E⟩gnp.exe⟨U+2066⟩", "a⟨U+0000⟩b⟨U+001B⟩[31m⟨U+0009⟩c⟨U+000D⟩⟨U+000A⟩⟨U+2028⟩d", names[7], names[8], names[9], "⟨U+00AD⟩⟨U+200B⟩⟨U+FEFF⟩", names[11], names[12])
	tb.examine()
	for _, e := range events[:3] {
		tb.search(e.EventID)
		tb.wait(fmt.Sprintf(`document.querySelector("#found article")?.getAttribute("aria-label").includes(%q)`, e.EventID))
		tb.says("#found", e.WorkflowID)
		eval[any](tb, `(() => { document.querySelector("#found .payload button").click(); return null })()`)
		tb.wait(`document.querySelector("#found pre")`)
		tb.says("#found pre", `"</pre><script>globalThis.owned=1</script>","n":1.50,"big":12345678901234567890`)
	}
	tb.examine()
	for _, id := range []string{`<img src=x onerror=globalThis.owned=1>`, `javascript:1`, strings.Repeat("9", 36)} {
		tb.search(id)
		tb.wait(`document.getElementById("found").textContent.includes("no UUID")`)
	}
	eval[any](tb, `(() => { location.hash = "id=%3Cimg%20src%3Dx%20onerror%3DglobalThis.owned%3D1%3E"; return null })()`)
	tb.wait(`document.getElementById("id").value.startsWith("<img")`)
	if eval[bool](tb, `"owned" in globalThis || document.querySelectorAll("main img, main script").length > 0`) {
		t.Error("a name became markup")
	}
}
