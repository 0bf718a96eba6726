package admin

import (
	"context"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// lists stands for the handler of results.
var lists = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	write(w, "application/json", http.StatusOK, []byte(`{"asked":"`+r.URL.Path+`"}`))
})

func TestPageAnswers(t *testing.T) {
	const id = "/v1/results/0192f0c1-7b1e-7cc3-9d2a-0123456789ab"
	for _, tt := range []struct {
		name    string
		results http.Handler
		method  string
		path    string
		status  int
		body    string // contained in the answer
	}{
		{"the page", nil, "GET", "/", 200, "<!doctype html>"},
		{"its style", nil, "GET", "/page.css", 200, ":root"},
		{"its script", nil, "GET", "/page.js", 200, "cycle()"},
		{"its icon", nil, "GET", "/icon.svg", 200, "<svg"},
		{"no other file", nil, "GET", "/index.html", 404, "/healthz"},
		{"no way out", nil, "GET", "/../page.go", 404, ""},
		{"takes nothing", nil, "POST", "/", 405, "GET and HEAD only"},
		{"HEAD", nil, "HEAD", "/page.css", 200, ""},
		{"HEAD of the status", nil, "HEAD", "/v1/status", 200, ""},
		{"probes as before", nil, "GET", "/healthz", 200, `{"ok":true}`},
		{"metrics as before", nil, "GET", "/metrics", 200, ""},
		{"status", nil, "GET", "/v1/status", 200, `"pending":3`},
		{"history", nil, "GET", "/v1/history", 200, `"points":300`},
		{"no results unless asked for", nil, "GET", "/v1/results", 404, "--admin-results"},
		{"none are taken either", nil, "POST", "/v1/results", 404, "--admin-results"},
		{"nor one of them", nil, "GET", id, 404, "--admin-results"},
		{"results", lists, "GET", "/v1/results", 200, `"asked":"/v1/results"`},
		{"one of them", lists, "GET", id, 200, `"asked":"` + id + `"`},
		{"takes no results", lists, "POST", "/v1/results", 405, "GET and HEAD only"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, header, body := request(t, Page(Observe(sources()), tt.results), tt.method, tt.path)
			if status != tt.status || !strings.Contains(body, tt.body) {
				t.Errorf("%d %.200s, want %d with %s", status, body, tt.status, tt.body)
			}
			for name, want := range map[string]string{
				"Content-Security-Policy": "default-src 'none'", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
				"Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-",
			} {
				if !strings.Contains(header.Get(name), want) {
					t.Errorf("%s: %q lacks %q", name, header.Get(name), want)
				}
			}
		})
	}
}

// TestPolicyIsStrict: what it lets through is named here, one by one.
func TestPolicyIsStrict(t *testing.T) {
	want := map[string]string{
		"default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "img-src": "'self'", "connect-src": "'self'",
		"base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'", "require-trusted-types-for": "'script'", "trusted-types": "'none'",
	}
	got := map[string]string{}
	for part := range strings.SplitSeq(pagePolicy, "; ") {
		name, value, _ := strings.Cut(part, " ")
		got[name] = value
	}
	if !maps.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// TestPageAsksForNothingElse: no other host, nothing inline, no file that is not there.
func TestPageAsksForNothingElse(t *testing.T) {
	files, err := fs.Glob(pageFiles, "page/*")
	if err != nil || len(files) != len(pagePaths) {
		t.Fatalf("%v %v", files, err)
	}
	for _, file := range files {
		data, err := pageFiles.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(data), "http://www.w3.org/2000/svg", "")
		for _, bad := range []string{"http:", "https:", "//cdn", "@import", "url(", "style=", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "<style", "javascript:"} {
			if strings.Contains(text, bad) {
				t.Errorf("%s has %q", file, bad)
			}
		}
		if on := regexp.MustCompile(`\son[a-z]+=`).FindString(text); on != "" {
			t.Errorf("%s has%s", file, on)
		}
	}
	page, err := pageFiles.ReadFile("page/index.html")
	if err != nil {
		t.Fatal(err)
	}
	known := slices.Concat(slices.Collect(maps.Keys(pagePaths)), []string{"/v1/status", "/v1/history", "/metrics"})
	for _, ref := range regexp.MustCompile(`(?:href|src)="([^"#]+)"`).FindAllStringSubmatch(string(page), -1) {
		if !slices.Contains(known, "/"+ref[1]) {
			t.Errorf("index.html refers to %s", ref[1])
		}
	}
}

func TestPageIsSentOnce(t *testing.T) {
	h := Page(Observe(sources()), nil)
	for at := range pagePaths {
		_, header, _ := request(t, h, "GET", at)
		r := httptest.NewRequestWithContext(t.Context(), "GET", at, nil)
		r.Header.Set("If-None-Match", header.Get("ETag"))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusNotModified || w.Body.Len() != 0 || header.Get("Cache-Control") != "no-cache" {
			t.Errorf("%s: %d, %d bytes, %v", at, w.Code, w.Body.Len(), header)
		}
	}
}

func TestPageChecksTheHost(t *testing.T) {
	addr := start(t, nil, Page(Observe(sources()), lists))
	for _, path := range []string{"/", "/page.js", "/v1/history", "/v1/results"} {
		if status, body := raw(t, addr, "GET "+path+" HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"); status != 403 {
			t.Errorf("%s: %d %s", path, status, body)
		}
		if status, body := raw(t, addr, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); status != 200 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

// TestACrowdCostsOneAnswer: a hundred open pages ask at once.
func TestACrowdCostsOneAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		release := make(chan struct{})
		h := remembered(time.Second, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			<-release
			writeJSON(w, http.StatusTeapot, r.URL.RawQuery)
		}))
		var crowd sync.WaitGroup
		for range 100 {
			crowd.Go(func() {
				if status, header, body := request(t, h, "GET", "/x?a"); status != http.StatusTeapot || body != "\"a\"\n" || header.Get("Content-Type") != "application/json" {
					t.Errorf("%d %v %s", status, header, body)
				}
			})
		}
		synctest.Wait()
		close(release)
		crowd.Wait()
		if n := calls.Load(); n != 1 {
			t.Errorf("%d calls for a crowd", n)
		}
		request(t, h, "GET", "/x?b") // something else
		time.Sleep(time.Second)
		request(t, h, "GET", "/x?a") // it is old
		if n := calls.Load(); n != 3 {
			t.Errorf("%d calls, want 3", n)
		}
	})
}

// TestWhoHangsUpSpoilsNothing for those that wait for the same answer.
func TestWhoHangsUpSpoilsNothing(t *testing.T) {
	h := remembered(time.Minute, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.Context().Err(); err != nil {
			t.Errorf("the answer is asked for in vain: %v", err)
		}
		writeJSON(w, http.StatusOK, 1)
	}))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(gone, "GET", "/x", nil))
	if status, _, body := request(t, h, "GET", "/x"); status != 200 || body != "1\n" {
		t.Errorf("%d %q", status, body)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	m := &memory{next: lists, fresh: time.Hour, answers: make(map[string]*remembering)}
	for i := range 10 * maxRemembered {
		if status, _, _ := request(t, http.HandlerFunc(m.serve), "GET", "/x?"+strings.Repeat("y", i)); status != 200 {
			t.Errorf("%d", status)
		}
	}
	if len(m.answers) != maxRemembered {
		t.Errorf("%d answers are kept", len(m.answers))
	}
}

func TestFewLookUpAtOneTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at, most atomic.Int32
		release := make(chan struct{})
		h := oneOf(2, 5*time.Second, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if n := at.Add(1); n > most.Load() {
				most.Store(n)
			}
			<-release
			at.Add(-1)
			writeJSON(w, http.StatusOK, 1)
		}))
		var crowd sync.WaitGroup
		var refused atomic.Int32
		for range 10 {
			crowd.Go(func() {
				if status, header, _ := request(t, h, "GET", "/"); status == 503 && header.Get("Retry-After") == "1" {
					refused.Add(1)
				}
			})
		}
		time.Sleep(6 * time.Second)
		close(release)
		crowd.Wait()
		if most.Load() != 2 || refused.Load() != 8 {
			t.Errorf("%d at a time, %d refused", most.Load(), refused.Load())
		}
	})
}
