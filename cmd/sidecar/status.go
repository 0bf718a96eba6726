package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"workflow-results-sidecar/internal/ipc"
)

type healthcheckCmd struct {
	socketFlag
	Ready bool `help:"Ask whether it can accept results, not only whether it is alive."`
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
	JSON bool `help:"Print JSON." name:"json"`
}

// Help is shown by --help.
func (statusCmd) Help() string {
	return "Example:\n  sidecar status --socket /run/workflow-results/sidecar.sock\n\nWithout a running sidecar: sidecar outbox list --data-dir DIR"
}

// Run asks a running sidecar.
func (c *statusCmd) Run(e *env) error {
	cl := ipc.NewClient(c.Socket)
	defer cl.Close()
	raw, err := cl.Status(e.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		_, err = fmt.Fprintf(e.stdout, "%s\n", raw)
		return err
	}
	var r statusReport
	if err := json.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("decode the status: %w", err)
	}
	return r.print(e.stdout)
}

// print says the most important first, in words.
func (r statusReport) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	fmt.Fprintln(t, r.verdict()) // ours, not the answer's: it may come from an older sidecar
	line("publisher", "%s, %s%s", r.Publisher.State, r.Publisher.Delivery, ago(r.Publisher.LastPublishedAt, ", last result "))
	if r.Publisher.State != "publishing" && r.Publisher.LastError != "" {
		line("last error", "%s%s", r.Publisher.LastError, ago(r.Publisher.LastErrorAt, " — "))
	}
	o := r.Outbox
	line("pending", "%d (%s), the oldest for %s", o.PendingRows, bytesText(o.PendingBytes), time.Duration(o.OldestPendingSecs*float64(time.Second)).Round(time.Millisecond))
	line("parked", "%d (%s)", o.ParkedRows, bytesText(o.ParkedBytes))
	line("held", "%d of %d, %s of %s; file %s, WAL %s", o.HeldRows, o.MaxRows, bytesText(o.HeldBytes), bytesText(o.MaxBytes), bytesText(o.FileBytes), bytesText(o.WALBytes))
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

func ago(t *time.Time, before string) string {
	if t == nil {
		return ""
	}
	return fmt.Sprintf("%s%s ago", before, time.Since(*t).Round(time.Second))
}
