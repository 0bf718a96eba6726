package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/pflag"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kprom"
	"github.com/twmb/franz-go/plugin/kslog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"workflow-results-sidecar/internal/admin"
	"workflow-results-sidecar/internal/ipc"
	"workflow-results-sidecar/internal/metrics"
	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/publisher"
	"workflow-results-sidecar/internal/tracing"
)

type outboxFlags struct {
	MaxRows     int64
	MaxBytes    int64
	History     time.Duration
	DedupWindow time.Duration
	DedupRows   int64
}

func (f *outboxFlags) bind(flags *pflag.FlagSet) {
	flags.Int64Var(&f.MaxRows, "max-rows", 10000000, "Results held at most, published ones in their windows included")
	flags.Int64Var(&f.MaxBytes, "max-bytes", 8589934592, "Bytes of results held at most")
	flags.DurationVar(&f.History, "history", 24*time.Hour, "How long the payload of a published result is kept")
	flags.DurationVar(&f.DedupWindow, "dedup-window", 168*time.Hour, "How long a published event ID is recognised")
	flags.Int64Var(&f.DedupRows, "dedup-rows", 5000000, "Published results kept at most")
}

type deliveryFlag struct {
	Delivery string
	CESource string
}

func (f *deliveryFlag) bind(flags *pflag.FlagSet) {
	enumVar(flags, &f.Delivery, "delivery", "exactly-once", "exactly-once (Kafka transactions) or at-least-once", "exactly-once", "at-least-once")
	flags.StringVar(&f.CESource, "ce-source", "/workflow-results-sidecar", "The ce_source header of the records, a `URI`")
}

type runCmd struct {
	socketFlag
	dataFlags
	outboxFlags
	kafkaFlags
	topicFlags
	deliveryFlag
	logFlags
	tracingFlag
	parentFlag

	SocketMode     string
	SocketGID      int
	AllowUID       []uint32
	AllowGID       []uint32
	OperatorUID    []uint32
	MaxConnections int
	ShowPayload    bool

	AdminAddr    string
	AdminHost    []string
	AdminResults bool

	Linger          time.Duration
	ShutdownTimeout time.Duration

	EmbeddedBroker bool
}

func (c *runCmd) bind(flags *pflag.FlagSet) {
	c.socketFlag.bind(flags)
	c.dataFlags.bind(flags)
	c.outboxFlags.bind(flags)
	c.kafkaFlags.bind(flags)
	c.topicFlags.bind(flags)
	c.deliveryFlag.bind(flags)
	c.logFlags.bind(flags)
	c.tracingFlag.bind(flags)
	c.parentFlag.bind(flags)
	flags.StringVar(&c.SocketMode, "socket-mode", "0660", "`MODE` of the socket")
	flags.IntVar(&c.SocketGID, "socket-gid", -1, "`GID` of the socket; -1 is the process's own")
	idsVar(flags, &c.AllowUID, "allow-uid", "Only these `UID`s may connect (and the GIDs of --allow-gid)")
	idsVar(flags, &c.AllowGID, "allow-gid", "Only peers with one of these `GID`s among their groups may connect (and the UIDs of --allow-uid)")
	idsVar(flags, &c.OperatorUID, "operator-uid", "`UID`s that may retry and purge parked results; default: root and the sidecar's own")
	flags.IntVar(&c.MaxConnections, "max-connections", 1024, "Connections at most; more wait")
	flags.BoolVar(&c.ShowPayload, "show-payload", false, "Answer GET /v1/results/{event_id}?payload=true with the payload")
	flags.StringVar(&c.AdminAddr, "admin-addr", "", "TCP address of probes, metrics, status and a page for people, `HOST:PORT` such as 127.0.0.1:9464; off unless given")
	flags.StringSliceVar(&c.AdminHost, "admin-host", nil, "`NAME`s that a Host header may carry, beside IP addresses and localhost")
	flags.BoolVar(&c.AdminResults, "admin-results", false, "Show results and search on the page of --admin-addr: IDs, states, reasons; payloads need --show-payload as well")
	flags.DurationVar(&c.Linger, "linger", time.Second, "On SIGTERM: end when no client has been connected for so long and nothing is pending")
	flags.DurationVar(&c.ShutdownTimeout, "shutdown-timeout", 25*time.Second, "On SIGTERM: end at the latest after this")
	flags.BoolVar(&c.EmbeddedBroker, "embedded-broker", false, "Start an in-process broker at the address of --brokers: for a first try, keeps nothing")
}

// Help is shown by --help.
func (runCmd) Help() string {
	return `Example:
  sidecar run --socket /tmp/results.sock --data-dir ./data --brokers kafka-1:9092,kafka-2:9092

On SIGTERM it goes on until nothing is pending and no client is connected (--linger), at the latest
for --shutdown-timeout. A second SIGTERM ends it at once. What is pending then stays in the data
directory, is told by number in the last line of the log, and goes out with the next start; the exit
status is 0 all the same.`
}

// Validate refuses values that cannot be meant.
func (c *runCmd) Validate() error {
	mode, err := strconv.ParseUint(c.SocketMode, 8, 32)
	if err != nil || mode > 0o777 || mode&0o600 != 0o600 {
		return fmt.Errorf("--socket-mode %q must be octal and let the owner read and write, such as 0660", c.SocketMode)
	}
	if c.AdminAddr != "" {
		if err := hostPort("--admin-addr", c.AdminAddr, 0); err != nil {
			return err
		}
	} else if c.AdminResults {
		return errors.New("--admin-results needs --admin-addr, the address on which results are to be shown")
	}
	return errors.Join(
		atLeast("--max-rows", c.MaxRows, 1),
		atLeast("--max-bytes", c.MaxBytes, minOutboxBytes),
		atLeast("--dedup-rows", c.DedupRows, 1),
		atLeast("--max-connections", c.MaxConnections, 1),
		atLeast("--history", c.History, 0),
		atLeast("--dedup-window", c.DedupWindow, c.History),
		atLeast("--socket-gid", c.SocketGID, -1),
		atLeast("--linger", c.Linger, 0),
		atLeast("--shutdown-timeout", c.ShutdownTimeout, 0),
		c.kafkaFlags.check(), c.topicFlags.check(), c.tracingFlag.check())
}

// minOutboxBytes holds a result of Kafka's default limit.
const minOutboxBytes = 2 << 20

// Run runs the sidecar until it is told to end.
func (c *runCmd) Run(e *env) error {
	log := c.logger(e.stderr)
	err := c.runWatched(e, log)
	if err == nil || c.LogFormat == "text" {
		return err
	}
	log.Error("ended with an error", "error", err) // whoever reads JSON reads nothing else
	code := exitFailed
	if exit := new(exitError); errors.As(err, &exit) {
		code = exit.code
	}
	return &exitError{code: code}
}

func (c *runCmd) runWatched(e *env, log *slog.Logger) error {
	warnOfUnknownVariables(log)
	e, done, err := c.watch(e, log)
	if err != nil {
		return err
	}
	defer done()
	s, err := newSidecar(e.ctx, c, log)
	switch {
	case err == nil:
		return s.run(e.ctx, e.signals)
	case e.ctx.Err() != nil && errors.Is(err, context.Canceled):
		log.Info("asked to end before it had begun")
		return nil
	}
	return err
}

// sidecar is the running program: its parts, in the order in which they start.
type sidecar struct {
	cmd       *runCmd
	log       *slog.Logger
	started   time.Time
	stopFake  func()
	outbox    *outbox.Outbox
	publisher *publisher.Publisher
	socket    *ipc.Server
	admin     *admin.Server // nil where off
	metrics   *metrics.Metrics
	traces    *tracing.Exporter // nil where off
	history   history
	ending    atomic.Bool // asked to end, draining
}

// newSidecar opens outbox, publisher and socket, in this order: nobody is let in
// before the store is ready.
func newSidecar(ctx context.Context, c *runCmd, log *slog.Logger) (s *sidecar, err error) {
	s = &sidecar{cmd: c, log: log, started: time.Now().UTC(), stopFake: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if c.EmbeddedBroker {
		if s.stopFake, err = startEmbeddedBroker(c.Brokers); err != nil {
			return s, err
		}
	}
	client, err := c.config().Options()
	if err != nil {
		return s, &exitError{exitUsage, err}
	}
	if s.traces, err = c.startTraces(ctx, log); err != nil {
		return s, err
	}
	registry := prometheus.NewRegistry()
	m := metrics.New(registry)
	s.metrics = m
	if s.outbox, err = outbox.Open(ctx, c.outboxOptions(log, m)); err != nil {
		return s, err
	}
	publishing := c.publisherOptions(client, s.outbox, log, m, registry)
	if s.traces != nil {
		publishing.Hooks = append(publishing.Hooks, kgo.WithHooks(s.traces.PublishHook(c.Topic)))
	}
	s.publisher = publisher.New(publishing)
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collector{s.outbox, s.publisher})
	observe := admin.Observe(admin.Sources{Alive: s.outbox.Alive, Ready: s.outbox.Ready, Broker: s.brokerState, Status: s.status, History: func() any { return s.history.report() }, Metrics: registry})
	opts := c.socketOptions(log, m)
	opts.Store, opts.Observe, opts.MaxResultBytes = s.outbox, observe, s.publisher.MaxResultBytes
	if s.traces != nil {
		opts.Tracer = s.traces.Tracer()
	}
	if c.AdminAddr != "" {
		page := admin.Page(observe, nil)
		if c.AdminResults {
			page = admin.Page(observe, ipc.ReadResults(opts))
		}
		if s.admin, err = admin.Listen(c.AdminAddr, c.AdminHost, page, log); err != nil {
			return s, err
		}
	}
	s.socket, err = ipc.Listen(opts)
	return s, err
}

// close lets go of what newSidecar took, where run never ran.
func (s *sidecar) close() error {
	var errs []error
	if s.socket != nil {
		errs = append(errs, s.socket.Close())
	}
	if s.outbox != nil {
		errs = append(errs, s.outbox.Close())
	}
	s.stopFake()
	return errors.Join(errs...)
}

func (c *runCmd) outboxOptions(log *slog.Logger, m *metrics.Metrics) outbox.Options {
	o := outbox.DefaultOptions()
	o.Dir, o.AllowNetworkFS = c.DataDir, c.AllowNetworkFS
	o.MaxRows, o.MaxBytes, o.History, o.DedupWindow, o.DedupRows = c.MaxRows, c.MaxBytes, c.History, c.DedupWindow, c.DedupRows
	o.Log, o.Metrics = log, m
	return o
}

func (c *runCmd) publisherOptions(client []kgo.Opt, src publisher.Source, log *slog.Logger, m *metrics.Metrics, reg *prometheus.Registry) publisher.Options {
	o := publisher.DefaultOptions()
	o.Client, o.Source, o.Log, o.Metrics = client, src, log, m
	o.Hooks = []kgo.Opt{kgo.WithHooks(kprom.NewMetrics("workflow_results_kafka", kprom.Registry(reg)))}
	if log.Enabled(context.Background(), slog.LevelDebug) {
		o.Hooks = append(o.Hooks, kgo.WithLogger(kslog.New(log)))
	}
	o.Topic, o.Watermarks = c.specs()
	o.Delivery, o.CESource = publisher.Delivery(c.Delivery), c.CESource
	return o
}

func (c *runCmd) socketOptions(log *slog.Logger, m *metrics.Metrics) ipc.Options {
	o := ipc.DefaultOptions()
	mode, _ := strconv.ParseUint(c.SocketMode, 8, 32) // Validate has seen it
	o.Path, o.Mode, o.GID = c.Socket, fs.FileMode(mode), c.SocketGID
	o.Access = ipc.Access{UIDs: c.AllowUID, GIDs: c.AllowGID, Operators: c.OperatorUID}
	if len(c.OperatorUID) == 0 {
		o.Access.Operators = []uint32{0, uint32(os.Getuid())}
	}
	o.MaxConnections, o.ShowPayload = c.MaxConnections, c.ShowPayload
	o.Log, o.Metrics = log, m
	return o
}

// startIsOver is when what a start needs is garbage, Kafka's answers included. An idle
// process allocates too little to find it: it is collected, and given back.
const startIsOver = 2 * time.Second

// run runs the parts until the first SIGTERM and a drain after it, or until one
// fails, and stops them in reverse. What is left is told by number.
func (s *sidecar) run(term context.Context, signals <-chan os.Signal) error {
	hard, kill := context.WithCancel(context.Background())
	defer kill()
	intake, stopIntake := context.WithCancel(hard)
	defer stopIntake()
	publishing, stopPublishing := context.WithCancel(hard)
	defer stopPublishing()
	store, stopStore := context.WithCancel(context.Background())
	defer stopStore()

	var g, front, back errgroup.Group
	// The first part to fail ends all: nothing lives on half.
	part := func(of *errgroup.Group, name string, f func() error) {
		of.Go(func() error {
			err := f()
			if err != nil {
				kill()
				err = fmt.Errorf("%s: %w", name, err)
			}
			return err
		})
	}
	part(&g, "outbox", func() error { return orKill(kill, s.outbox.Run(store)) })
	part(&back, "publisher", func() error { return s.publisher.Run(publishing, hard) })
	part(&front, "socket", func() error { return s.socket.Run(intake, hard) })
	if s.admin != nil {
		s.log.Info("probes, metrics and a page for people", "url", "http://"+s.admin.Addr()+"/", "results", s.cmd.AdminResults)
		part(&back, "admin", func() error { return s.admin.Run(publishing) })
		part(&back, "history", func() error { return s.remember(publishing) })
	}
	go s.tellSystemd(store)
	s.warnOfFewDescriptors()
	s.log.Info("ready", "socket", s.cmd.Socket, "data_dir", s.cmd.DataDir, "brokers", s.cmd.Brokers, "delivery", s.cmd.Delivery, "outbox_id", s.outbox.ID(), "version", version())

	time.AfterFunc(startIsOver, debug.FreeOSMemory)

	s.waitForEnd(term, hard, kill, signals)
	stopIntake()
	err := front.Wait()
	stopPublishing()
	err = errors.Join(err, back.Wait())
	stopStore()
	err = errors.Join(err, g.Wait())
	if s.traces != nil {
		s.traces.Stop()
	}
	s.tellWhatIsLeft()
	err = errors.Join(err, s.outbox.Close())
	s.stopFake()
	return err
}

// ownDescriptors is what is open beside the clients' connections: the outbox's
// files, the 64 connections of the admin address, and some for each of a few dozen brokers.
const ownDescriptors = 128

// warnOfFewDescriptors: without one left no client is let in, and no broker reached.
func (s *sidecar) warnOfFewDescriptors() {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur >= uint64(s.cmd.MaxConnections)+ownDescriptors {
		return
	}
	s.log.Warn("fewer descriptors are allowed than --max-connections may need: raise the limit (ulimit -n) or lower the flag",
		"limit", limit.Cur, "max_connections", s.cmd.MaxConnections, "needed_beside", ownDescriptors)
}

// orKill ends everything when the store ends early.
func orKill(kill func(), err error) error {
	if err != nil {
		kill()
	}
	return err
}

// waitForEnd returns when it is time to stop: a part failed, a second signal
// came, or after the first one nothing is left to do or the time is over.
func (s *sidecar) waitForEnd(term, hard context.Context, kill func(), signals <-chan os.Signal) {
	select {
	case <-hard.Done():
		return
	case <-term.Done():
	}
	<-signals // the first
	s.ending.Store(true)
	s.log.Info("asked to end: draining", "linger", s.cmd.Linger.String(), "at_most", s.cmd.ShutdownTimeout.String())
	time.AfterFunc(s.cmd.ShutdownTimeout, kill) // whatever still hangs then: the process is about to end
	deadline := time.NewTimer(s.cmd.ShutdownTimeout - min(finishTime, s.cmd.ShutdownTimeout/4))
	defer deadline.Stop()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for !s.drained() {
		select {
		case <-hard.Done():
			return
		case <-signals:
			s.log.Warn("asked to end a second time: ending at once")
			kill()
			return
		case <-deadline.C:
			return
		case <-look.C:
		}
	}
}

// finishTime is what is left of --shutdown-timeout, at most, for requests and a
// publication under way.
const finishTime = 2 * time.Second

// drained reports that nobody is connected and nothing is left to do, or that
// nothing will be done: another copy publishes, or the file is damaged.
func (s *sidecar) drained() bool {
	idle, none := s.socket.IdleSince()
	if !none || time.Since(idle) < s.cmd.Linger {
		return false
	}
	st, err := s.outbox.Stats(context.Background())
	stuck := st.Damage != "" || s.publisher.Status().State == "stopped"
	return err == nil && st.QueuedRows == 0 && (st.PendingRows == 0 || stuck)
}

func (s *sidecar) tellWhatIsLeft() {
	st, err := s.outbox.Stats(context.Background())
	if err != nil {
		s.log.Error("ended; what is left could not be counted", "error", err)
		return
	}
	msg := "ended; everything is published"
	if st.PendingRows > 0 {
		msg = "ended; pending results stay in the data directory: start the sidecar again, or run `sidecar outbox drain --exit-when-empty --data-dir " +
			quoteShell(s.cmd.DataDir) + " --brokers " + quoteShell(strings.Join(s.cmd.Brokers, ",")) + "` with its --topic and --kafka flags"
	}
	s.log.Info(msg, "pending", st.PendingRows, "parked", st.ParkedRows)
}
