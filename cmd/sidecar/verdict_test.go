package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"workflow-results-sidecar/internal/testkit"
)

func TestVerdicts(t *testing.T) {
	page, err := os.ReadFile("../../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		line  string
		level level
		spoil func(*statusReport)
	}{
		{"WELL: everything is published", levelWell, func(*statusReport) {}},
		{"PUBLISHING", levelBusy, func(r *statusReport) { r.Outbox.PendingRows = 3 }},
		{"PUBLISHING, with parked results: Kafka refuses 1 for good: sidecar outbox list --state parked", levelAttention, func(r *statusReport) { r.Outbox.ParkedRows = 1 }},
		{"WAITING FOR KAFKA: results are accepted and kept", levelAttention, func(r *statusReport) { r.Publisher.State = "retrying" }},
		{"WAITING FOR KAFKA: results are accepted and kept", levelAttention, func(r *statusReport) { r.Publisher.State, r.Outbox.ParkedRows = "connecting", 1 }},
		{"NOT PUBLISHING: another copy", levelTrouble, func(r *statusReport) { r.Publisher.State, r.Publisher.LastError = "stopped", "another copy" }},
		{"FULL: results are refused (507) until some are published or purged", levelTrouble, func(r *statusReport) { r.Outbox.Full, r.Outbox.ParkedRows, r.Publisher.State = true, 2, "stopped" }},
		{"FULL: results are refused (507) until some are published or purged", levelTrouble, func(r *statusReport) { r.Outbox.Full = true }},
		{"ENDING: 4 results are still pending", levelBusy, func(r *statusReport) { r.Ending, r.Outbox.PendingRows, r.Outbox.Full = true, 4, true }},
		{"STOPPED: malformed", levelTrouble, func(r *statusReport) { r.Ending, r.Outbox.Trouble = true, "malformed" }},
	} {
		t.Run(tt.line, func(t *testing.T) {
			r := statusReport{Socket: "/run/my sock", DataDir: "/d'a", Brokers: []string{"a:1", "b:2"}}
			r.Publisher.State = "publishing"
			tt.spoil(&r)
			v := r.verdict()
			if v.String() != tt.line || v.Level != tt.level {
				t.Errorf("%+v", v)
			}
			if !strings.Contains(string(page), "`"+v.Word+"`") {
				t.Errorf("docs/OPERATIONS.md does not tell what to do about %s", v.Word)
			}
			if (v.Level == levelWell) != (len(v.Do) == 0) {
				t.Errorf("what to do: %+v", v.Do)
			}
			for _, s := range v.Do {
				if strings.HasPrefix(s.Command, "sidecar status") {
					t.Errorf("%s: that is what its reader has in front of him", s.Command)
				}
				if s.Command != "" {
					parses(t, s.Command)
				}
			}
		})
	}
}

// parses has a command's line read as a shell and then the program would read it.
func parses(t *testing.T, line string) {
	t.Helper()
	var words []string
	for _, m := range regexp.MustCompile(`((?:'[^']*'|\\'|[^' \\])+)`).FindAllString(line, -1) {
		m = strings.ReplaceAll(strings.ReplaceAll(m, `'\''`, "\x00"), "'", "")
		words = append(words, strings.ReplaceAll(m, "\x00", "'"))
	}
	if words[0] != "sidecar" {
		t.Errorf("%s", line)
	}
	called, _, err := parse(words[1:], io.Discard)
	if err != nil {
		t.Errorf("%s: %v", line, err)
	}
	var socket string
	switch c := called.(type) {
	case *statusCmd:
		socket = c.Socket
	case *outboxListCmd:
		socket = c.Socket
	}
	if strings.Contains(line, "--socket") && socket != "/run/my sock" && socket != "" && !strings.HasPrefix(socket, "/run/workflow") {
		t.Errorf("%s: socket %q", line, socket)
	}
}

func TestQuoteShell(t *testing.T) {
	for text, want := range map[string]string{"/run/a-b_c.sock": "/run/a-b_c.sock", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$(x)": "'$(x)'", "h:1,g:2": "h:1,g:2"} {
		if got := quoteShell(text); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestHistory(t *testing.T) {
	var h history
	if r := h.report(); len(r.Accepted) != 0 || r.Accepted == nil || r.Points != historyPoints {
		t.Errorf("%+v", r)
	}
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range historyPoints + 10 {
		h.add(moment{at: begin.Add(time.Duration(i) * historyStep), accepted: float64(20 * i), published: float64(10 * i), oldest: float64(i), pending: int64(i)})
	}
	r := h.report()
	last := historyPoints + 9
	if len(r.Accepted) != historyPoints || r.Accepted[0] != 10 || r.Published[historyPoints-1] != 5 || r.OldestSeconds[historyPoints-1] != float64(last) ||
		r.Pending[0] != 10 || !r.NewestAt.Equal(begin.Add(time.Duration(last)*historyStep)) {
		t.Errorf("%+v", r)
	}
	first := *h.see("WELL", begin)
	if got := *h.see("WELL", begin.Add(time.Hour)); got != first {
		t.Errorf("since %s", got)
	}
	if got := *h.see("FULL", begin.Add(time.Hour)); !got.Equal(begin.Add(time.Hour)) {
		t.Errorf("since %s", got)
	}
}

var pageURL = regexp.MustCompile(`url=(http://\S+/)`)

// url is the admin address of a sidecar that was told --admin-addr 127.0.0.1:0.
func (r *running) url() string {
	r.t.Helper()
	r.log.await(r.t, "msg=ready")
	return pageURL.FindStringSubmatch(r.log.String())[1]
}

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// TestPageAndTerminalSayTheSame of a sidecar whose broker is away.
func TestPageAndTerminalSayTheSame(t *testing.T) {
	r := newPlace(t, testkit.FreeAddr(t)).run("--admin-addr", "127.0.0.1:0", "--shutdown-timeout", "100ms")
	r.post(`{}`, "success")
	_, body := fetch(t, r.url()+"v1/status")
	v := decode[statusReport](t, body).Verdict
	line, _, _ := strings.Cut(succeed(t, "status", "--socket", r.socket()), "\n")
	if v.String() != line || v.Since == nil || v.Why == "" {
		t.Errorf("%+v, and the terminal says %q", v, line)
	}
	if status, body := fetch(t, r.url()); status != 200 || !strings.Contains(body, "<!doctype html>") {
		t.Errorf("%d %.100s", status, body)
	}
}

// TestResultsShowOnlyWhereAsked: the admin address has no login.
func TestResultsShowOnlyWhereAsked(t *testing.T) {
	broker := testkit.StartFake(t).Addr()
	for _, tt := range []struct {
		flags         []string
		list, payload int
	}{
		{nil, 404, 404},
		{[]string{"--show-payload"}, 404, 404},
		{[]string{"--admin-results"}, 200, 403},
		{[]string{"--admin-results", "--show-payload"}, 200, 200},
	} {
		t.Run(fmt.Sprint(tt.flags), func(t *testing.T) {
			r := newPlace(t, broker).run(append([]string{"--admin-addr", "127.0.0.1:0"}, tt.flags...)...)
			s := r.post(`{"secret":1}`, "success")
			r.settle(s)
			url := r.url() + "v1/results"
			list, lists := fetch(t, url+"?newest=true")
			payload, one := fetch(t, url+"/"+s.event.String()+"?payload=true")
			if list != tt.list || payload != tt.payload || strings.Contains(lists, s.event.String()) != (list == 200) || strings.Contains(one, "secret") != (payload == 200) {
				t.Errorf("%d %s; %d %s", list, lists, payload, one)
			}
			_, body := fetch(t, r.url()+"v1/status")
			if diff := cmp.Diff(shows{Results: list == 200, Payloads: len(tt.flags) > 0 && tt.flags[len(tt.flags)-1] == "--show-payload"}, decode[statusReport](t, body).Shows); diff != "" {
				t.Error(diff)
			}
			req, err := http.NewRequestWithContext(t.Context(), "DELETE", url+"/"+s.event.String(), nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode < 400 {
				t.Errorf("DELETE answers %d", resp.StatusCode)
			}
		})
	}
}
