package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"workflow-results-sidecar/internal/ipc"
	"workflow-results-sidecar/internal/metrics"
	"workflow-results-sidecar/internal/outbox"
)

// storeFlags lead to an outbox: through the socket of a running sidecar, else
// to its files.
type storeFlags struct {
	socketFlag
	dataFlags
}

func (c *storeFlags) bind(flags *pflag.FlagSet) {
	c.socketFlag.bind(flags)
	c.dataFlags.bind(flags)
}

// store is what the commands need; ipc.Client and outbox.Outbox have it.
type store interface {
	Get(ctx context.Context, id uuid.UUID) (outbox.Entry, error)
	List(ctx context.Context, f outbox.Filter) ([]outbox.Entry, error)
	Retry(ctx context.Context, id uuid.UUID) (outbox.Entry, error)
	Purge(ctx context.Context, id uuid.UUID) error
}

// with calls f with the outbox, by whichever way is open.
func (c *storeFlags) with(e *env, f func(store) error) error {
	cl := ipc.NewClient(c.Socket)
	defer cl.Close()
	if _, err := cl.Status(e.ctx); err == nil {
		return f(cl)
	} else if !errors.Is(err, ipc.ErrNotRunning) {
		return err
	}
	err := c.withFiles(e, func(o *outbox.Outbox) error {
		fmt.Fprintf(e.stderr, "no sidecar answers at %s: these are the files in %s\n", c.Socket, c.DataDir)
		return f(o)
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no sidecar answers at %s (--socket), and there is %w", c.Socket, err)
	case errors.Is(err, outbox.ErrLocked):
		return fmt.Errorf("no sidecar answers at %s, yet a process has %s open: give its --socket, or wait until it has ended: %w", c.Socket, c.DataDir, err)
	}
	return err
}

// reach is the flags by which with found a store, as they are typed.
func (c *storeFlags) reach(s store) string {
	flags := " --socket " + quoteShell(c.Socket)
	if _, files := s.(*outbox.Outbox); files {
		flags += " --data-dir " + quoteShell(c.DataDir)
	}
	return flags
}

// withFiles opens the outbox itself, for as long as f takes.
func (c *dataFlags) withFiles(e *env, f func(*outbox.Outbox) error) (err error) {
	log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if err := outbox.Exists(c.DataDir); err != nil {
		return err
	}
	opts := outbox.DefaultOptions()
	opts.Dir, opts.AllowNetworkFS, opts.KeepAll = c.DataDir, c.AllowNetworkFS, true
	opts.Log, opts.Metrics = log, metrics.New(prometheus.NewRegistry())
	o, err := outbox.Open(e.ctx, opts)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(e.ctx))
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	err = f(o)
	stop()
	return errors.Join(err, <-done, o.Close())
}

type outboxListCmd struct {
	storeFlags
	State         string
	CorrelationID string
	After         int64
	Limit         int
	JSON          bool
}

func (c *outboxListCmd) bind(flags *pflag.FlagSet) {
	c.storeFlags.bind(flags)
	enumVar(flags, &c.State, "state", "", "pending, published or parked", "pending", "published", "parked")
	flags.StringVar(&c.CorrelationID, "correlation-id", "", "Only those of one trigger: its `UUID`")
	flags.Int64Var(&c.After, "after", 0, "Only those with a greater seq")
	flags.IntVar(&c.Limit, "limit", 50, "How many at most, 1 to 1000")
	flags.BoolVar(&c.JSON, "json", false, "Print JSON")
}

// Help is shown by --help.
func (outboxListCmd) Help() string {
	return "Example:\n  sidecar outbox list --state parked\n\nA published result tells where it is, as topic/partition@offset: workflow-results/2@0 is the first record of partition 2."
}

// Run lists entries in seq order.
func (c *outboxListCmd) Run(e *env) error {
	f := outbox.Filter{State: outbox.State(c.State), After: c.After, Limit: c.Limit}
	if c.Limit < 1 || c.Limit > outbox.MaxListLimit || c.After < 0 {
		return usage("--limit must be 1 to %d and --after 0 or more", outbox.MaxListLimit)
	}
	if c.CorrelationID != "" {
		id, err := parseID("--correlation-id", c.CorrelationID)
		if err != nil {
			return err
		}
		f.CorrelationID = &id
	}
	return c.with(e, func(s store) error {
		entries, err := s.List(e.ctx, f)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(e.stdout, ipc.Views(entries))
		}
		return printEntries(e.stdout, entries, c.Limit)
	})
}

func printEntries(w io.Writer, entries []outbox.Entry, limit int) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SEQ\tSTATE\tSTATUS\tACCEPTED\tEVENT ID\tCORRELATION ID\tWHERE")
	for _, en := range entries {
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", en.Seq, en.State, en.Status, en.AcceptedAt.Format(time.DateTime), en.EventID, en.CorrelationID, where(en))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	var err error
	switch {
	case len(entries) == 0:
		_, err = fmt.Fprintln(w, "(none)")
	case len(entries) == limit:
		_, err = fmt.Fprintf(w, "(there may be more: --after %d)\n", entries[limit-1].Seq)
	}
	return err
}

func where(en outbox.Entry) string {
	switch {
	case en.State == outbox.Parked:
		return printable(en.Reason)
	case en.Location != nil:
		return fmt.Sprintf("%s/%d@%d", en.Location.Topic, en.Location.Partition, en.Location.Offset)
	case en.State == outbox.Published:
		return "(the watermark says so)"
	default:
		return "-"
	}
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

type oneResult struct {
	storeFlags
	EventID string
}

// on calls f with the outbox and the event ID.
func (c *oneResult) on(e *env, f func(store, uuid.UUID) error) error {
	id, err := parseID("the event ID", c.EventID)
	if err != nil {
		return err
	}
	return c.with(e, func(s store) error { return f(s, id) })
}

type outboxShowCmd struct {
	storeFlags
	ID   string
	JSON bool
}

func (c *outboxShowCmd) bind(flags *pflag.FlagSet) {
	c.storeFlags.bind(flags)
	flags.BoolVar(&c.JSON, "json", false, "Print JSON, an array for a correlation ID")
}

// Help is shown by --help.
func (outboxShowCmd) Help() string {
	return "Example:\n  sidecar outbox show 0192f0c1-7b1e-7cc3-9d2a-0123456789ab"
}

// Run shows where one result is, or those of one trigger.
func (c *outboxShowCmd) Run(e *env) error {
	id, err := parseID("the ID", c.ID)
	if err != nil {
		return err
	}
	return c.with(e, func(s store) error {
		en, err := s.Get(e.ctx, id)
		if errors.Is(err, outbox.ErrNotFound) {
			return c.showAll(e, s, id)
		}
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(e.stdout, ipc.Views([]outbox.Entry{en})[0])
		}
		return printEntry(e.stdout, en, c.reach(s))
	})
}

func (c *outboxShowCmd) showAll(e *env, s store, correlation uuid.UUID) error {
	entries, err := s.List(e.ctx, outbox.Filter{CorrelationID: &correlation})
	switch {
	case err != nil:
		return err
	case len(entries) == 0:
		return fmt.Errorf("%w: neither an event ID nor a correlation ID %s: it was never accepted here, or its deduplication window is over", outbox.ErrNotFound, correlation)
	case c.JSON:
		return printJSON(e.stdout, ipc.Views(entries))
	}
	for i, en := range entries {
		if i > 0 {
			if _, err := fmt.Fprintln(e.stdout); err != nil {
				return fmt.Errorf("print: %w", err)
			}
		}
		if err := printEntry(e.stdout, en, c.reach(s)); err != nil {
			return err
		}
	}
	return nil
}

// sentence says in words where a result is, and what to type if it will not get
// further by itself; reach is the flags that lead to it.
func sentence(en outbox.Entry, now time.Time, reach string) string {
	switch {
	case en.State == outbox.Parked:
		return "PARKED: Kafka will never take it as it is. Remove the cause, then retry it; or remove it for good"
	case en.State == outbox.Pending:
		return fmt.Sprintf("PENDING for %s: on disk, not in Kafka yet; `sidecar status%s` says why", now.Sub(en.AcceptedAt).Round(time.Second), reach)
	case en.Location == nil:
		return "PUBLISHED: the watermark in Kafka says so; where, nobody heard"
	default:
		return fmt.Sprintf("PUBLISHED: in %s, partition %d, offset %d, %s after it was accepted", en.Location.Topic, en.Location.Partition, en.Location.Offset,
			en.PublishedAt.Sub(en.AcceptedAt).Round(time.Millisecond))
	}
}

func printEntry(w io.Writer, en outbox.Entry, reach string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name string, v any) { fmt.Fprintf(t, "%s\t%v\n", name, v) }
	fmt.Fprintln(t, sentence(en, time.Now(), reach))
	if en.State == outbox.Parked {
		line("reason", printable(en.Reason))
		line("to retry", "sidecar outbox retry"+reach+" "+en.EventID.String())
		line("to remove", "sidecar outbox purge --yes"+reach+" "+en.EventID.String())
	}
	line("status", en.Status)
	line("event ID", en.EventID)
	line("correlation ID", en.CorrelationID)
	line("workflow", printable(en.WorkflowID)+", run "+printable(en.WorkflowRunID))
	line("accepted", en.AcceptedAt.Format(time.RFC3339Nano))
	if en.PublishedAt != nil {
		line("published", en.PublishedAt.Format(time.RFC3339Nano))
	}
	if en.ParkedAt != nil {
		line("parked", en.ParkedAt.Format(time.RFC3339Nano))
	}
	line("seq", en.Seq)
	line("size", outbox.BytesText(en.Bytes))
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// printable shows what a terminal obeys, and what has no glyph or turns the text
// around it, by its number, as the page does: names come from a workflow. U+200C and
// U+200D stay: scripts and emoji are made with them.
func printable(text string) string {
	var b strings.Builder
	for _, c := range text {
		if c != 0x200c && c != 0x200d && unicode.In(c, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			fmt.Fprintf(&b, "⟨U+%04X⟩", c)
		} else {
			b.WriteRune(c)
		}
	}
	return b.String()
}

type outboxRetryCmd struct{ oneResult }

// Help is shown by --help.
func (outboxRetryCmd) Help() string {
	return "Example:\n  sidecar outbox retry 0192f0c1-7b1e-7cc3-9d2a-0123456789ab\n\nIt goes to the end of the line: results of its key that came after it have been published."
}

// Run makes a parked result pending again.
func (c *outboxRetryCmd) Run(e *env) error {
	return c.on(e, func(s store, id uuid.UUID) error {
		en, err := s.Retry(e.ctx, id)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(e.stdout, "%s is pending again, seq %d\n", id, en.Seq)
		return err
	})
}

type outboxPurgeCmd struct {
	oneResult
	Yes bool
}

func (c *outboxPurgeCmd) bind(flags *pflag.FlagSet) {
	c.oneResult.bind(flags)
	flags.BoolVar(&c.Yes, noVariable, false, "Really remove it")
}

// Help is shown by --help.
func (outboxPurgeCmd) Help() string {
	return "Example:\n  sidecar outbox purge --yes 0192f0c1-7b1e-7cc3-9d2a-0123456789ab\n\nThe result is gone: whoever waits for it runs into the time-out."
}

// Validate refuses to remove what was not asked for.
func (c *outboxPurgeCmd) Validate() error {
	if !c.Yes {
		return errors.New("--yes is missing: the result would be gone for good")
	}
	return nil
}

// Run removes a parked result.
func (c *outboxPurgeCmd) Run(e *env) error {
	return c.on(e, func(s store, id uuid.UUID) error {
		if err := s.Purge(e.ctx, id); err != nil {
			return err
		}
		_, err := fmt.Fprintf(e.stdout, "%s is removed\n", id)
		return err
	})
}

type outboxCheckCmd struct{ dataFlags }

// Help is shown by --help.
func (outboxCheckCmd) Help() string {
	return "Example:\n  sidecar outbox check --data-dir /var/lib/workflow-results\n\nReads every page (SQLite's integrity_check) and compares the counters with the rows."
}

// Run checks the file.
func (c *outboxCheckCmd) Run(e *env) error {
	return c.withFiles(e, func(o *outbox.Outbox) error {
		problems, err := o.Check(e.ctx)
		if err != nil {
			return err
		}
		for _, p := range problems {
			fmt.Fprintln(e.stdout, p)
		}
		if len(problems) > 0 {
			return fmt.Errorf("the outbox is damaged (%d problems): %s", len(problems), outbox.DamageHelp(c.DataDir))
		}
		st, err := o.Stats(e.ctx)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(e.stdout, "sound: %d results held, %d pending, %d parked\n", st.HeldRows, st.PendingRows, st.ParkedRows)
		return err
	})
}

type outboxRecoverCmd struct {
	dataFlags
	To string
}

func (c *outboxRecoverCmd) bind(flags *pflag.FlagSet) {
	c.dataFlags.bind(flags)
	flags.StringVar(&c.To, "to", "", "`DIR` for the new outbox")
}

// Help is shown by --help.
func (outboxRecoverCmd) Help() string {
	return `Example:
  sidecar outbox recover --data-dir /var/lib/workflow-results --to /var/lib/workflow-results-2

The new outbox has a new ID. Results whose publication can no longer be told are pending in it:
readers may see them twice, each with the same ce_id. Of the damaged directory outbox.db is only read.
Exit status 1 where damage hides results: how many at most is told.`
}

// Validate refuses to have no place to copy to.
func (c *outboxRecoverCmd) Validate() error {
	if c.To == "" {
		return errors.New("--to is missing: the new data directory")
	}
	return nil
}

// Run copies what can be read.
func (c *outboxRecoverCmd) Run(e *env) error {
	rep, err := outbox.Recover(e.ctx, c.DataDir, c.To, c.AllowNetworkFS)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "copied %d results to %s: %d pending, %d parked\n", rep.Copied, c.To, rep.Pending, rep.Parked)
	fmt.Fprintf(e.stdout, "of the seqs up to %d, %d have no row: pruned, purged or retried before\n", rep.LastSeq, rep.Missing)
	if rep.Uncertain > 0 {
		fmt.Fprintf(e.stdout, "%d of the parked are there because the list of parked results is damaged: whether Kafka has them is not known; retry or purge each\n", rep.Uncertain)
	}
	if rep.Unreadable > 0 {
		return fmt.Errorf("damage hides up to %d results: they are lost, unless they were published; keep %s until you have compared", rep.Unreadable, c.DataDir)
	}
	return nil
}
