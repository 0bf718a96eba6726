//go:build kafka

package bench

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	_ "github.com/mattn/go-sqlite3"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"

	"workflow-results-sidecar/internal/publisher"
	"workflow-results-sidecar/internal/testkit"
)

// BenchmarkLimitDisk is one page written and synced: nothing durable is faster.
func BenchmarkLimitDisk(b *testing.B) {
	for b.Loop() {
		syncPages(b).report(b, 1, "syncs/s")
	}
}

func syncPages(b *testing.B) measured {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "page"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, 4096)
	return repeat(b, 0, func() error {
		if _, err := f.WriteAt(page, 0); err != nil {
			return err
		}
		return unix.Fdatasync(int(f.Fd()))
	})
}

// repeat calls f for -for, with pauses that are not measured.
func repeat(b *testing.B, pause time.Duration, f func() error) measured {
	b.Helper()
	var m measured
	start := time.Now()
	for m.elapsed < *duration {
		if pause > 0 {
			time.Sleep(pause)
		}
		before := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		m.latencies = append(m.latencies, time.Since(before))
		m.elapsed = time.Since(start)
	}
	m.requests = len(m.latencies)
	slices.Sort(m.latencies)
	return m
}

// BenchmarkLimitSQLite is SQLite alone, by the same driver with the same
// durability: a table with one index, 1 KiB each.
func BenchmarkLimitSQLite(b *testing.B) {
	for _, rows := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			for b.Loop() {
				commitRows(b, rows, 0).report(b, rows, "rows/s")
			}
		})
	}
	b.Run("rows=1/pause=100us", func(b *testing.B) {
		for b.Loop() {
			commitRows(b, 1, pauseOfOne).report(b, 1, "rows/s")
		}
	})
}

// pauseOfOne is how long one client leaves the disk idle between two of its
// requests. A disk or a processor that was idle is slower: the fair measure for
// one connection.
const pauseOfOne = 100 * time.Microsecond

func commitRows(b *testing.B, rows int, pause time.Duration) measured {
	b.Helper()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(b.TempDir(), "db")+"?_journal_mode=WAL&_synchronous=FULL&_txlock=immediate")
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.Exec(`CREATE TABLE results (seq INTEGER PRIMARY KEY AUTOINCREMENT, event_id BLOB NOT NULL UNIQUE, result BLOB)`); err != nil {
		b.Fatal(err)
	}
	insert, err := db.Prepare(`INSERT INTO results (event_id, result) VALUES (?, ?)`)
	if err != nil {
		b.Fatal(err)
	}
	body := []byte(testkit.Event())
	return repeat(b, pause, func() error {
		tx, err := db.Begin()
		if err != nil {
			return err
		}
		in := tx.Stmt(insert)
		for range rows {
			id := uuid.New()
			if _, err := in.Exec(id[:], body); err != nil {
				return err
			}
		}
		return tx.Commit()
	})
}

// BenchmarkLimitHTTP is an empty net/http handler on a Unix socket, with the
// same load.
func BenchmarkLimitHTTP(b *testing.B) {
	for _, conns := range []int{1, 64} {
		b.Run(fmt.Sprintf("conns=%d", conns), func(b *testing.B) {
			for b.Loop() {
				dir, err := os.MkdirTemp("", "wrb")
				if err != nil {
					b.Fatal(err)
				}
				defer os.RemoveAll(dir)
				socket := filepath.Join(dir, "s")
				plainServer(b, socket, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					w.WriteHeader(http.StatusCreated)
				}))
				runLoad(b, socket, conns, *duration, http.StatusCreated, testkit.SingleRequest).report(b, 1, "answers/s")
			}
		})
	}
}

// BenchmarkLimitTransaction is a bare Kafka transaction with one record, by the
// same client with the same settings.
func BenchmarkLimitTransaction(b *testing.B) {
	kafka := testkit.SharedKafka(b)
	for _, pause := range []time.Duration{0, pauseOfTransactions} {
		b.Run(fmt.Sprintf("pause=%s", pause), func(b *testing.B) {
			for b.Loop() {
				bareTransactions(b, kafka, 1, pause).report(b, 1, "transactions/s")
			}
		})
	}
}

// pauseOfTransactions lets the broker write the markers of the transaction
// before. Without it the next one finds it still ending, and what is measured is
// the client's backing off.
const pauseOfTransactions = 5 * time.Millisecond

// BenchmarkLimitProduce is the Kafka client without an outbox: as fast as it
// takes records, and in transactions as large as the sidecar's largest.
func BenchmarkLimitProduce(b *testing.B) {
	kafka := testkit.SharedKafka(b)
	b.Run("plain", func(b *testing.B) {
		for b.Loop() {
			m := produceAlone(b, kafka)
			perSecond(b, m.requests, m.elapsed, "records/s")
		}
	})
	b.Run("transactions", func(b *testing.B) {
		for b.Loop() {
			m := bareTransactions(b, kafka, largestTransaction, 0)
			perSecond(b, m.requests*largestTransaction, m.elapsed, "records/s")
		}
	})
}

// largestTransaction is how many results the publisher puts into one at most.
var largestTransaction = publisher.DefaultOptions().MaxRows

func bareTransactions(b *testing.B, kafka *testkit.Kafka, records int, pause time.Duration) measured {
	b.Helper()
	t := newTopic(b, kafka)
	cl := kafka.Client(b, kgo.TransactionalID(t.name), kgo.ProducerLinger(0), kgo.ConcurrentTransactionsBackoff(2*time.Millisecond),
		kgo.RetryBackoffFn(func(n int) time.Duration { return time.Millisecond << min(n, 10) }))
	body := []byte(testkit.Event())
	batch := make([]*kgo.Record, records)
	return repeat(b, pause, func() error {
		if err := cl.BeginTransaction(); err != nil {
			return err
		}
		for i := range batch {
			batch[i] = record(t.name, body)
		}
		if err := cl.ProduceSync(b.Context(), batch...).FirstErr(); err != nil {
			return err
		}
		return cl.EndTransaction(context.Background(), kgo.TryCommit)
	})
}

func record(topic string, body []byte) *kgo.Record {
	id := uuid.New()
	return &kgo.Record{Topic: topic, Key: id[:], Value: body}
}

// produceAlone hands the client records as fast as it takes them (idempotent,
// acks of all), until -for is over, and waits for the last one.
func produceAlone(b *testing.B, kafka *testkit.Kafka) measured {
	b.Helper()
	t := newTopic(b, kafka)
	cl := kafka.Client(b)
	body := []byte(testkit.Event())
	var failed atomic.Pointer[error]
	var m measured
	start := time.Now()
	for ; time.Since(start) < *duration; m.requests++ {
		cl.Produce(b.Context(), record(t.name, body), func(_ *kgo.Record, err error) {
			if err != nil {
				failed.Store(&err)
			}
		})
	}
	if err := cl.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	m.elapsed = time.Since(start)
	t.await(m.requests)
	if err := failed.Load(); err != nil {
		b.Fatal(*err)
	}
	return m
}

// limits is what BenchmarkPeers measures once a round: what bounds the sidecar,
// and the sidecar where a number of connections means nothing.
func limits(kafka *testkit.Kafka) []contender {
	own := func(name string, rows int, run func(*testing.B) measured) contender {
		return contender{name, func(b *testing.B, _ int) sample {
			cpu := cpuTime(b, os.Getpid())
			s := answers(run(b), rows)
			s.spend(cpuTime(b, os.Getpid()) - cpu)
			return s
		}}
	}
	list := []contender{
		own("fdatasync of a page", 1, syncPages),
		own("SQLite, 1 row, paused", 1, func(b *testing.B) measured { return commitRows(b, 1, pauseOfOne) }),
	}
	for _, rows := range []int{1, 64, 256} {
		list = append(list, own(fmt.Sprintf("SQLite, rows=%d", rows), rows, func(b *testing.B) measured { return commitRows(b, rows, 0) }))
	}
	list = append(list,
		contender{"sidecar, batches of 256", func(b *testing.B, _ int) sample { return runSidecar(b, kafka, "exactly-once", 1, 256) }},
		own("franz-go, transaction of 1", 1, func(b *testing.B) measured { return bareTransactions(b, kafka, 1, 0) }),
		own("franz-go, transaction of 1, paused", 1, func(b *testing.B) measured { return bareTransactions(b, kafka, 1, pauseOfTransactions) }),
	)
	for _, delivery := range []string{"exactly-once", "at-least-once"} {
		list = append(list, contender{"sidecar, POST to visible, " + delivery, func(b *testing.B, _ int) sample {
			m, _ := visible(b, kafka, delivery)
			return answers(m, 1)
		}})
	}
	list = append(list,
		own(fmt.Sprintf("franz-go, transactions of %d", largestTransaction), largestTransaction, func(b *testing.B) measured { return bareTransactions(b, kafka, largestTransaction, 0) }),
		own("franz-go, plain", 1, func(b *testing.B) measured { return produceAlone(b, kafka) }),
	)
	for _, delivery := range []string{"exactly-once", "at-least-once"} {
		list = append(list, contender{"sidecar, backlog, " + delivery, func(b *testing.B, _ int) sample {
			n, took := publishBacklog(b, kafka, delivery)
			return sample{Results: n, EndToEnd: float64(n) / took.Seconds()}
		}})
	}
	return list
}
