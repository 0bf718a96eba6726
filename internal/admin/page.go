package admin

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed page
var pageFiles embed.FS

// pagePaths are the files of the page by the path that serves each.
var pagePaths = map[string]string{"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}

var pageTypes = map[string]string{
	".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
}

// pagePolicy lets the page load its own files and ask its own address, and
// nothing else. Trusted types make the browser refuse text that is to become HTML.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

const (
	pageFresh  = time.Second     // an answer is given again for so long
	maxLooks   = 2               // results are looked up at one time: the outbox has four readers, and publishing needs one
	lookUpWait = 5 * time.Second // for a turn
)

// Page serves what observe does and, at /, a page for people. results, if not
// nil, serves GET /v1/results and GET /v1/results/{event_id}. What many open
// pages ask again and again is answered from memory for a second.
func Page(observe, results http.Handler) http.Handler {
	routes := map[string]http.Handler{"/v1/status": remembered(pageFresh, observe), "/v1/history": remembered(pageFresh, observe)}
	for at, name := range pagePaths {
		routes[at] = pageFile(name)
	}
	look := http.HandlerFunc(resultsAreOff)
	if results != nil {
		look = oneOf(maxLooks, lookUpWait, results).ServeHTTP
	}
	routes["/v1/results"] = remembered(pageFresh, look)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", pagePolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		route, known := routes[r.URL.Path]
		switch {
		case strings.HasPrefix(r.URL.Path, "/v1/results/"), results == nil && r.URL.Path == "/v1/results":
			look(w, r)
		case !known:
			observe.ServeHTTP(w, r)
		case !reads(r):
			refuseMethod(w, r)
		default:
			route.ServeHTTP(w, r)
		}
	})
}

func resultsAreOff(w http.ResponseWriter, _ *http.Request) {
	writeProblem(w, http.StatusNotFound, "results are not shown here: start the sidecar with --admin-results; they are taken by the socket alone")
}

// pageFile serves an embedded file; a browser that has it asks by its tag.
func pageFile(name string) http.Handler {
	data, err := pageFiles.ReadFile("page/" + name)
	if err != nil { // go:embed has seen to it
		panic(err)
	}
	sum := sha256.Sum256(data)
	tag := `"` + hex.EncodeToString(sum[:16]) + `"`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", pageTypes[path.Ext(name)])
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", tag)
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write(data) // a client that is gone is no error of ours
	})
}

// oneOf lets n requests through at a time; more wait for their turn.
func oneOf(n int, wait time.Duration, next http.Handler) http.Handler {
	turns := make(chan struct{}, n)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limit := time.NewTimer(wait)
		defer limit.Stop()
		select {
		case turns <- struct{}{}:
			defer func() { <-turns }()
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		case <-limit.C:
			w.Header().Set("Retry-After", "1")
			writeProblem(w, http.StatusServiceUnavailable, "too many look results up: try again")
		}
	})
}
