package page

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// patience bounds every wait for the page; nothing is measured by it.
const patience = time.Minute

// chromium is a browser that runs.
type chromium struct{ context.Context }

// startBrowser starts a headless Chromium with a profile of its own that ends with the test.
func startBrowser(t *testing.T) chromium {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("missing: chromium. Install it (Debian, Ubuntu): apt-get install chromium")
	}
	profile, err := os.MkdirTemp("", "browser-")
	if err != nil {
		t.Fatal(err)
	}
	allocator, end := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(path), chromedp.UserDataDir(profile), chromedp.NoFirstRun, chromedp.NoSandbox, chromedp.Headless, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("hide-scrollbars", true), chromedp.Flag("force-color-profile", "srgb"))
	browser, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		cancel() // waits until it has ended
		end()
		if err := os.RemoveAll(profile); err != nil {
			t.Error(err)
		}
	})
	if _, err := chromedp.Targets(browser); err != nil {
		t.Fatalf("start Chromium: %v", err)
	}
	return chromium{browser}
}

// tab is one open page, whose console and policy are watched.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	wrong    []string
	requests []string
}

// watchPolicy makes a violation of the policy an error on the console.
const watchPolicy = `addEventListener("securitypolicyviolation", (e) => console.error("policy violated:", e.violatedDirective, e.blockedURI, e.sample))`

// open opens url in a tab of its own and waits until the page has looked once. At
// the end of the test the console must have had no error.
func open(t *testing.T, browser chromium, url string) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser.Context)
	tb := &tab{t: t, ctx: ctx}
	t.Cleanup(func() {
		cancel()
		for _, text := range tb.wrong {
			t.Errorf("the console says: %s", text)
		}
	})
	if err := chromedp.Listen(ctx, tb.hear); err != nil {
		t.Fatal(err)
	}
	call(tb, cdplog.Enable, cdp.Empty{})
	call(tb, network.Enable, network.EnableParams{})
	call(tb, cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{Source: watchPolicy})
	tb.size(1280, 900)
	tb.do(chromedp.Navigate(url))
	tb.looked()
	return tb
}

// call makes one call of the protocol.
func call[P, R any](tb *tab, command cdp.Command[P, R], params P) R {
	tb.t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	r, err := chromedp.Call(ctx, command, params)
	if err != nil {
		tb.t.Fatal(err)
	}
	return r
}

func (tb *tab) hear(event any) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		if e.Type == "error" || e.Type == "warning" {
			for _, arg := range e.Args {
				tb.wrong = append(tb.wrong, fmt.Sprint(arg.Value, " ", arg.Description))
			}
		}
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			text += " " + e.ExceptionDetails.Exception.Description
		}
		tb.wrong = append(tb.wrong, text)
	case *cdplog.EventEntryAdded: // that a sidecar is gone, or knows no such ID, is no error of the page
		if e.Entry.Source != "network" && (e.Entry.Level == "error" || e.Entry.Level == "warning") {
			tb.wrong = append(tb.wrong, e.Entry.Text)
		}
	case *network.EventRequestWillBeSent:
		tb.requests = append(tb.requests, e.Request.URL)
	}
}

// asked is how many requests the page has made.
func (tb *tab) asked() int {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	return len(tb.requests)
}

func (tb *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	tb.t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		tb.t.Fatal(err)
	}
}

// eval returns the value of an expression, which may be a promise, as if a person
// had clicked for it.
func eval[T any](tb *tab, expression string) T {
	tb.t.Helper()
	byHand := func(p *runtime.EvaluateParams) { yes := true; p.AwaitPromise, p.UserGesture = &yes, &yes }
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, byHand))
	if err != nil {
		tb.t.Fatalf("%s: %v\nthe page says:\n%s", expression, err, tb.dump())
	}
	return v
}

// dump is the page's text, for the message of a test that failed.
func (tb *tab) dump() (text string) {
	ctx, cancel := context.WithTimeout(tb.ctx, 5*time.Second)
	defer cancel()
	text, _ = chromedp.Run(ctx, chromedp.Evaluate[string](`document.body.innerText`)) // then there is nothing to say
	return text
}

// wait waits until a condition holds; every change of the document may bring it.
func (tb *tab) wait(condition string) {
	tb.t.Helper()
	eval[bool](tb, `new Promise((done) => {
		const holds = () => Boolean(`+condition+`);
		if (holds()) return done(true);
		const observer = new MutationObserver(() => { if (holds()) { observer.disconnect(); done(true); } });
		observer.observe(document, { subtree: true, childList: true, characterData: true, attributes: true });
	})`)
}

// looked waits until one more look of the page has ended.
func (tb *tab) looked() {
	tb.t.Helper()
	tb.wait(`document.documentElement.dataset.looks > ` + fmt.Sprint(eval[int](tb, `Number(document.documentElement.dataset.looks ?? 0)`)))
}

// verdict waits for a verdict and checks that all places say it.
func (tb *tab) verdict(word, level string) {
	tb.t.Helper()
	tb.wait(fmt.Sprintf(`document.getElementById("word").textContent === %q && document.documentElement.dataset.level === %q`, word, level))
	if title := eval[string](tb, `document.title`); !strings.HasPrefix(title, word) {
		tb.t.Errorf("the title is %q", title)
	}
	if said := tb.text("#announcement"); !strings.HasPrefix(said, word) {
		tb.t.Errorf("a screen reader hears %q, not %s", said, word)
	}
	if eval[string](tb, `document.getElementById("mark").getAttribute("d")`) == "" {
		tb.t.Error("the verdict has no mark: colour alone tells it")
	}
}

// text is what stands in an element.
func (tb *tab) text(selector string) string {
	tb.t.Helper()
	return eval[string](tb, fmt.Sprintf(`document.querySelector(%q)?.innerText ?? "(there is no such element)"`, selector))
}

// says fails unless an element's text has each of these.
func (tb *tab) says(selector string, texts ...string) {
	tb.t.Helper()
	got := eval[string](tb, fmt.Sprintf(`document.querySelector(%q)?.textContent ?? "(there is no such element)"`, selector))
	for _, text := range texts {
		if !strings.Contains(got, text) {
			tb.t.Errorf("%s does not say %q:\n%s", selector, text, got)
		}
	}
}

func (tb *tab) size(width, height int64) {
	tb.t.Helper()
	call(tb, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1})
}

func (tb *tab) media(scheme string) {
	tb.t.Helper()
	call(tb, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}})
}

func (tb *tab) press(keys ...string) {
	tb.t.Helper()
	for _, key := range keys {
		tb.do(chromedp.KeyEvent(key))
	}
}

// search types an ID into the search and sends it with Enter.
func (tb *tab) search(id string) {
	tb.t.Helper()
	eval[any](tb, `(() => { const i = document.getElementById("id"); i.focus(); i.select(); return null })()`)
	tb.press(id, kb.Enter)
}

// examine holds the page, as it stands, against what must be true of it in every
// state: at no width does anything lie outside, and axe finds no fault in
// light and in dark.
func (tb *tab) examine() {
	tb.t.Helper()
	for _, width := range []int64{1280, 800, 700, 400, 320} {
		tb.size(width, 900)
		for _, scheme := range []string{"light", "dark"} {
			tb.media(scheme)
			if got := eval[[]float64](tb, `[document.documentElement.scrollWidth, document.documentElement.clientWidth]`); got[0] > got[1] {
				tb.t.Errorf("at %d px the page is %v px wide: %s", width, got[0], eval[string](tb, outside))
			}
			if width == 1280 && scheme == "light" || width == 400 && scheme == "dark" { // both layouts, both sets of colours
				tb.axe(fmt.Sprintf("at %d px, %s", width, scheme))
			}
		}
	}
	tb.size(1280, 900)
	tb.media("light")
	if n := eval[int](tb, `document.getAnimations().length`); n > 0 {
		tb.t.Errorf("%d animations run where somebody asked for none", n)
	}
}

// outside names what reaches beyond the right edge.
const outside = `[...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
	.slice(0, 5).map((e) => e.tagName + "#" + e.id + "." + e.getAttribute("class") + " " + e.textContent.slice(0, 40)).join("\n")`

// axe runs axe-core, where make has fetched it (AXE names the file).
func (tb *tab) axe(when string) {
	tb.t.Helper()
	file := os.Getenv("AXE")
	if file == "" {
		return
	}
	source, err := os.ReadFile(file)
	if err != nil {
		tb.t.Fatal(err)
	}
	if !eval[bool](tb, `"axe" in window`) {
		r := call(tb, runtime.Evaluate, runtime.EvaluateParams{Expression: string(source)})
		if r.ExceptionDetails != nil {
			tb.t.Fatal(r.ExceptionDetails.Text)
		}
	}
	found := eval[string](tb, `axe.run(document, { resultTypes: ["violations"] }).then((r) => r.violations.map((v) => ({ id: v.id, help: v.help, nodes: v.nodes.map((n) => n.html.slice(0, 200) + " " + n.failureSummary).slice(0, 3) }))).then((v) => JSON.stringify(v, null, 1))`)
	if found != "[]" {
		tb.t.Errorf("axe, %s: %s", when, found)
	}
}

// shoot takes a picture of the page. A page has few colours: the most frequent
// ones do, and make the file a third as large.
func (tb *tab) shoot(file string) {
	tb.t.Helper()
	shot := call(tb, cdppage.CaptureScreenshot, cdppage.CaptureScreenshotParams{}).Data
	full, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		tb.t.Fatal(err)
	}
	seen := map[color.Color]int{}
	box := full.Bounds()
	for y := box.Min.Y; y < box.Max.Y; y++ {
		for x := box.Min.X; x < box.Max.X; x++ {
			seen[full.At(x, y)]++
		}
	}
	all := slices.SortedFunc(maps.Keys(seen), func(a, b color.Color) int { return seen[b] - seen[a] })
	few := image.NewPaletted(box, color.Palette(all[:min(len(all), 128)]))
	nearest := map[color.Color]uint8{}
	for y := box.Min.Y; y < box.Max.Y; y++ {
		for x := box.Min.X; x < box.Max.X; x++ {
			c := full.At(x, y)
			if _, known := nearest[c]; !known {
				nearest[c] = uint8(few.Palette.Index(c))
			}
			few.SetColorIndex(x, y, nearest[c])
		}
	}
	out, err := os.Create(file)
	if err != nil {
		tb.t.Fatal(err)
	}
	if err := errors.Join((&png.Encoder{CompressionLevel: png.BestCompression}).Encode(out, few), out.Close()); err != nil {
		tb.t.Fatal(err)
	}
}
