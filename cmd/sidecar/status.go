package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"workflow-results-sidecar/internal/ipc"
	"workflow-results-sidecar/internal/outbox"
)

type healthcheckCmd struct {
	socketFlag
	Ready bool
}

func (c *healthcheckCmd) bind(flags *pflag.FlagSet) {
	c.socketFlag.bind(flags)
	flags.BoolVar(&c.Ready, "ready", false, "Ask whether it can accept results, not only whether it is alive")
}

// Help is shown by --help.
func (healthcheckCmd) Help() string {
	return "Example:\n  sidecar healthcheck --ready --socket /run/workflow-results/sidecar.sock"
}

// Run asks the probe through the socket.
func (c *healthcheckCmd) Run(e *env) error {
	cl := ipc.NewClient(c.Socket)
	defer cl.Close()
	path := "/healthz"
	if c.Ready {
		path = "/readyz"
	}
	return cl.Probe(e.ctx, path)
}

type statusCmd struct {
	socketFlag
	JSON  bool
	Watch bool
	Every time.Duration
}

func (c *statusCmd) bind(flags *pflag.FlagSet) {
	c.socketFlag.bind(flags)
	flags.BoolVar(&c.JSON, "json", false, "Print JSON")
	flags.BoolVar(&c.Watch, "watch", false, "Show it again and again, with rates, until interrupted; a sidecar that is gone is waited for")
	flags.DurationVar(&c.Every, "every", 2*time.Second, "With --watch: how often")
}

// Help is shown by --help.
func (statusCmd) Help() string {
	return "Example:\n  sidecar status --watch --socket /run/workflow-results/sidecar.sock\n\nWithout a running sidecar: sidecar outbox list --data-dir DIR"
}

// Validate refuses values that cannot be meant.
func (c *statusCmd) Validate() error {
	if c.Watch && c.JSON {
		return errors.New("--watch and --json exclude each other")
	}
	return atLeast("--every", c.Every, 100*time.Millisecond)
}

// Run asks a running sidecar.
func (c *statusCmd) Run(e *env) error {
	cl := ipc.NewClient(c.Socket)
	defer cl.Close()
	if c.Watch {
		return c.watch(e, cl)
	}
	raw, err := cl.Status(e.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		_, err = fmt.Fprintf(e.stdout, "%s\n", raw)
		return err
	}
	r, err := decodeStatus(raw)
	if err != nil {
		return err
	}
	return r.print(e.stdout, nil)
}

func decodeStatus(raw []byte) (r statusReport, err error) {
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("decode the status: %w", err)
	}
	return r, nil
}

// watch shows the status until e.ctx ends, on a terminal always in the same place.
func (c *statusCmd) watch(e *env, cl *ipc.Client) error {
	const clearScreen = "\x1b[H\x1b[2J"
	before := "" // what separates two reports
	if isTerminal(e.stdout) {
		before = clearScreen
	}
	tick := time.NewTicker(c.Every)
	defer tick.Stop()
	var last *statusReport
	for {
		raw, err := cl.Status(e.ctx)
		if e.ctx.Err() != nil {
			return nil // interrupted: that is how it ends
		}
		// One write for each report, so that a terminal does not flicker.
		text := bytes.NewBufferString(before)
		if err != nil {
			fmt.Fprintln(text, "NO ANSWER:", err)
			last = nil
		} else {
			r, err := decodeStatus(raw)
			if err != nil {
				return err
			}
			if err := r.print(text, last); err != nil {
				return err
			}
			last = &r
		}
		if before == "" {
			before = "\n"
		}
		if _, err := e.stdout.Write(text.Bytes()); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		select {
		case <-e.ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// print says the most important first, in words: the verdict, why, and what to type.
// With an earlier report it tells the rates between the two.
func (r statusReport) print(w io.Writer, earlier *statusReport) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	v := r.verdict() // ours, not the answer's: it may come from an older sidecar
	if v.Word == r.Verdict.Word {
		v.Since = r.Verdict.Since
		v.Why = cmp.Or(v.Why, r.Verdict.Why) // why it is full only the sidecar knows
	}
	fmt.Fprintln(t, v)
	if v.Since != nil && v.Level != levelWell {
		line("since", "%s%s", v.Since.UTC().Format("2006-01-02 15:04:05 UTC"), ago(v.Since, ", "))
	}
	if v.Why != "" && v.Why != v.Sentence {
		line("why", "%s", v.Why)
	}
	for _, s := range v.Do {
		line("do", "%s", s.Text)
		if s.Command != "" {
			line("", "  %s", s.Command)
		}
	}
	if seconds := r.since(earlier).Seconds(); seconds > 0 {
		line("rate", "%.0f/s accepted, %.0f/s published", float64(r.Outbox.LastSeq-earlier.Outbox.LastSeq)/seconds,
			float64(r.Outbox.PublishedSeq-earlier.Outbox.PublishedSeq)/seconds)
	}
	line("publisher", "%s, %s%s", r.Publisher.State, r.Publisher.Delivery, ago(r.Publisher.LastPublishedAt, ", last result "))
	if r.Publisher.State != "publishing" && r.Publisher.LastError != "" && r.Publisher.LastError != v.Why {
		line("last error", "%s%s", r.Publisher.LastError, ago(r.Publisher.LastErrorAt, " — "))
	}
	o := r.Outbox
	line("pending", "%d (%s), the oldest for %s", o.PendingRows, outbox.BytesText(o.PendingBytes), time.Duration(o.OldestPendingSecs*float64(time.Second)).Round(time.Millisecond))
	line("parked", "%d (%s)", o.ParkedRows, outbox.BytesText(o.ParkedBytes))
	line("held", "%d of %d, %s of %s; file %s, WAL %s", o.HeldRows, o.MaxRows, outbox.BytesText(o.HeldBytes), outbox.BytesText(o.MaxBytes), outbox.BytesText(o.FileBytes), outbox.BytesText(o.WALBytes))
	for _, topic := range r.Publisher.Topics {
		line("topic", "%s, %d partitions", topic.Name, topic.Partitions)
		for _, d := range topic.Drift {
			line("", "differs: %s is %s, asked for %s", d.Setting, d.Got, d.Want)
		}
	}
	line("outbox", "%s in %s", o.ID, r.DataDir)
	line("sidecar", "%s, up %s", r.Version, time.Since(r.StartedAt).Round(time.Second))
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// since is the time between an earlier report of the same process and this one; 0
// where there is none.
func (r statusReport) since(earlier *statusReport) time.Duration {
	if earlier == nil || !earlier.StartedAt.Equal(r.StartedAt) {
		return 0
	}
	return r.Now.Sub(earlier.Now)
}

func ago(t *time.Time, before string) string {
	if t == nil {
		return ""
	}
	return fmt.Sprintf("%s%s ago", before, time.Since(*t).Round(time.Second))
}
