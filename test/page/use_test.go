package page

import (
	"fmt"
	"strings"
	"testing"

	cdpbrowser "github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp/kb"
)

// TestUse: what a person does with the page.
func TestUse(t *testing.T) {
	browser := startBrowser(t)
	for _, use := range []struct {
		name string
		test func(*testing.T, chromium)
	}{
		{"search", search}, {"payloads", payloads}, {"keyboard alone", keyboardAlone}, {"copying", copying}, {"pause", pause}, {"plots", readPlots},
	} {
		t.Run(use.name, func(t *testing.T) { use.test(t, browser) })
	}
}

func search(t *testing.T, browser chromium) {
	w := newWorld(t, "", "--admin-results")
	w.start()
	twin, other := newEvent(`{}`), newEvent(`{}`)
	other.CorrelationID = twin.CorrelationID
	w.post("?wait=published", twin, other)
	tb := open(t, browser, w.url())
	for _, id := range []string{twin.EventID, " " + strings.ToUpper(twin.EventID) + " "} {
		tb.search(id)
		tb.wait(`document.querySelectorAll("#found article").length === 1`)
		tb.says("#found", "1 result with this event ID", "Accepted and synced to disk", "Committed as seq 1", "Published to workflow-results, partition", "offset", "later", twin.CorrelationID)
		tb.wait(`document.getElementById("announcement").textContent.startsWith("1 result")`)
	}
	tb.search(twin.CorrelationID)
	tb.wait(`document.querySelectorAll("#found article").length === 2`)
	tb.says("#found", "2 results with this correlation ID", twin.EventID, other.EventID)
	if got := eval[string](tb, `location.hash`); got != "#id="+twin.CorrelationID {
		t.Errorf("the address is %q: it cannot be handed on", got)
	}
	tb.examine()

	// An answer that comes after the next search has begun is not shown.
	eval[any](tb, `(() => { const plain = fetch; window.held = []; window.fetch = async (...a) => {
		if (a[0].includes("correlation_id=")) await new Promise((go) => held.push(go));
		return plain(...a);
	}; window.plain = plain; return null })()`)
	nobody := newEvent(`{}`).EventID
	tb.search(other.CorrelationID)
	tb.wait(`held.length === 1`)
	tb.search(nobody)
	tb.wait(`held.length === 2`)
	eval[any](tb, `(() => { window.fetch = window.plain; held[0](); return null })()`)
	tb.looked()
	eval[any](tb, `(() => { held[1](); return null })()`)
	tb.wait(`document.getElementById("found").textContent.includes("No result with this ID")`)
	tb.says("#found code", "sidecar await --brokers "+w.broker+" --topic workflow-results --since 168h", "--correlation-id "+nobody)
	tb.search("  ")
	tb.wait(`document.getElementById("found").textContent.includes("Type or paste")`)

	// An address that somebody was sent shows the result at once.
	sent := open(t, browser, w.url()+"#id="+other.EventID)
	sent.wait(`document.querySelectorAll("#found article").length === 1`)
	sent.says("#found", other.EventID)
}

func payloads(t *testing.T, browser chromium) {
	w := newWorld(t, "", "--admin-results")
	p := w.start()
	e := newEvent(`{"secret":"p4yl04d"}`)
	w.post("?wait=published", e)
	tb := open(t, browser, w.url()+"#id="+e.EventID)
	tb.wait(`document.querySelector("#found article")`)
	tb.says("#found", "that needs --show-payload")
	p.Term(t)
	p.Wait(t)
	tb.verdict("NO ANSWER", "lost")
	w.start("--show-payload")
	tb.verdict("WELL", "well")
	tb.search(e.CorrelationID)
	tb.wait(`document.querySelector("#found .payload button")`)
	if strings.Contains(eval[string](tb, `document.documentElement.outerHTML`), "p4yl04d") {
		t.Error("the payload is there before somebody asks for it")
	}
	eval[any](tb, `(() => { document.querySelector("#found .payload button").click(); return null })()`)
	tb.wait(`document.querySelector("#found pre")?.textContent.includes("p4yl04d")`)
}

// focused names what has the focus, and whether that shows.
const focused = `(() => { const e = document.activeElement; const o = getComputedStyle(e); return [e.id || e.getAttribute("aria-label") || e.textContent.slice(0, 60), o.outlineStyle !== "none" && parseFloat(o.outlineWidth) >= 2, e.tagName] })()`

// keyboardAlone walks the page by Tab from its beginning to its end and out of it,
// and uses what it meets.
func keyboardAlone(t *testing.T, browser chromium) {
	w := newWorld(t, "", "--admin-results")
	w.start()
	events := someEvents(3)
	w.post("?wait=published", events...)
	tb := open(t, browser, w.url())
	tb.wait(`document.querySelectorAll("#newest-table tbody tr").length === 3`)
	var walk []string
	for range 80 {
		tb.press(kb.Tab)
		at := eval[[]any](tb, focused)
		if at[2] == "BODY" {
			break
		}
		if at[1] != true {
			t.Errorf("the focus does not show on %v", at[0])
		}
		walk = append(walk, fmt.Sprint(at[0]))
	}
	way := strings.Join(walk, " | ")
	rest := way
	for _, stop := range []string{"Skip to the state", "Skip to the search", "pause", "Accepted and published per second", "Age of the oldest", "The same in figures", "id", "Find", "Copy the correlation ID", "Copy the event ID", "/metrics"} {
		_, after, found := strings.Cut(rest, stop)
		if !found {
			t.Fatalf("Tab does not come to %q in its order: %s", stop, way)
		}
		rest = after
	}
	if len(walk) >= 80 {
		t.Error("there is no way out")
	}

	// The skip link, then the search with Enter, then a link in the table.
	eval[any](tb, `(() => { scrollTo(0, 0); document.activeElement.blur(); document.querySelector(".skip a").focus(); return null })()`)
	tb.press(kb.Tab, kb.Enter)
	tb.wait(`location.hash === "#find"`)
	tb.press(kb.Tab)
	if at := eval[[]any](tb, focused); at[0] != "id" {
		t.Fatalf("behind the skip link is %v", at)
	}
	tb.press(events[1].EventID, kb.Enter)
	tb.wait(`document.querySelector("#found article")`)
	tb.says("#found", events[1].EventID)
	eval[any](tb, `(() => { document.querySelector("#newest-table a").focus(); return null })()`)
	tb.press(kb.Enter)
	tb.wait(fmt.Sprintf(`document.activeElement.id === "found" && document.getElementById("found").textContent.includes(%q)`, events[2].EventID))
}

func copying(t *testing.T, browser chromium) {
	w := newWorld(t, "", "--admin-results")
	w.start()
	e := newEvent(`{}`)
	w.post("?wait=published", e)
	tb := open(t, browser, w.url())
	for _, permission := range []string{"clipboard-read", "clipboard-write"} {
		call(tb, cdpbrowser.SetPermission, cdpbrowser.SetPermissionParams{Permission: &cdpbrowser.PermissionDescriptor{Name: permission}, Setting: cdpbrowser.PermissionSettingGranted})
	}
	tb.wait(`document.querySelector("#newest-table .copy")`)
	eval[any](tb, `(() => { document.querySelector("#newest-table .copy").focus(); return null })()`)
	tb.press(kb.Enter)
	tb.wait(`document.querySelector("#newest-table .copy").dataset.done === "copied"`)
	if got := eval[string](tb, `navigator.clipboard.readText()`); got != e.CorrelationID {
		t.Errorf("%q was copied", got)
	}
	tb.wait(`document.getElementById("announcement").textContent === "Copied the correlation ID"`)

	// By plain HTTP from another machine a browser gives a page no clipboard.
	eval[any](tb, `(() => { Object.defineProperty(Navigator.prototype, "clipboard", { get() {} }); document.querySelectorAll("#newest-table .copy")[1].click(); return null })()`)
	tb.wait(`document.querySelectorAll("#newest-table .copy")[1].dataset.done`)
	if got := eval[string](tb, `getSelection().toString()`); got != e.EventID {
		t.Errorf("%q is selected", got)
	}
}

// pause: nothing is asked while somebody wants it still, or cannot see it.
func pause(t *testing.T, browser chromium) {
	w := newWorld(t, "", "--admin-results")
	w.start()
	tb := open(t, browser, w.url())
	still := func(begin, end string) {
		t.Helper()
		tb.looked()
		eval[any](tb, begin)
		// Longer than between two looks, by the page's own clock.
		before := tb.asked()
		eval[any](tb, `new Promise((done) => setTimeout(() => done(null), 5000))`)
		if n := tb.asked() - before; n > 4 { // those of one look may have been under way
			t.Errorf("%d requests", n)
		}
		eval[any](tb, end)
		tb.looked()
	}
	const press = `(() => { document.getElementById("pause").click(); return null })()`
	still(press, press)
	const hide = `(() => { Object.defineProperty(document, "hidden", { value: %v, configurable: true }); document.dispatchEvent(new Event("visibilitychange")); return null })()`
	still(fmt.Sprintf(hide, true), fmt.Sprintf(hide, false))
}

// readPlots by the arrow keys, as a screen reader's user would.
func readPlots(t *testing.T, browser chromium) {
	w := newWorld(t, "")
	w.start()
	tb := open(t, browser, w.url())
	tb.wait(`document.querySelector("#rates .plot .edge")?.getAttribute("d").split("L").length > 3`)
	eval[any](tb, `(() => { document.querySelector("#rates .plot").focus(); return null })()`)
	if text := eval[string](tb, `document.querySelector("#rates .plot").getAttribute("aria-valuetext")`); !strings.HasPrefix(text, "now: accepted") {
		t.Errorf("%q", text)
	}
	tb.press(kb.ArrowLeft)
	tb.wait(`/^\d\d:\d\d:\d\d UTC: accepted .*\/s, published/.test(document.querySelector("#rates .plot").getAttribute("aria-valuetext"))`)
	one := eval[string](tb, `document.querySelector("#rates .at").textContent.slice(0, 8)`)
	tb.looked()
	if got := eval[string](tb, `document.querySelector("#rates .at").textContent.slice(0, 8)`); got != one {
		t.Errorf("the point moves from %s to %s while it is read", one, got)
	}
	tb.press(kb.Home)
	tb.wait(`document.querySelector("#rates .plot").getAttribute("aria-valuenow") === "0" && document.querySelector("#rates .dot")`)
	tb.press(kb.Escape)
	tb.wait(`document.querySelector("#rates .at").textContent.startsWith("now")`)
}
