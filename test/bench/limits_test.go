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
	"testing"
	"time"

	"github.com/google/uuid"
	_ "github.com/mattn/go-sqlite3"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"

	"workflow-results-sidecar/internal/testkit"
)

// BenchmarkLimitDisk is one page written and synced: nothing durable is faster.
func BenchmarkLimitDisk(b *testing.B) {
	for b.Loop() {
		f, err := os.Create(filepath.Join(b.TempDir(), "page"))
		if err != nil {
			b.Fatal(err)
		}
		page := make([]byte, 4096)
		m := repeat(b, 0, func() error {
			if _, err := f.WriteAt(page, 0); err != nil {
				return err
			}
			return unix.Fdatasync(int(f.Fd()))
		})
		m.report(b, 1, "syncs/s")
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	}
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
				benchSQLite(b, rows, 0)
			}
		})
	}
	// One client leaves the disk idle between two of its requests, and a disk or
	// a processor that was idle is slower: the fair measure for one connection.
	b.Run("rows=1/pause=100us", func(b *testing.B) {
		for b.Loop() {
			benchSQLite(b, 1, 100*time.Microsecond)
		}
	})
}

func benchSQLite(b *testing.B, rows int, pause time.Duration) {
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
	body := []byte(event())
	m := repeat(b, pause, func() error {
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
	m.report(b, rows, "rows/s")
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
				runLoad(b, socket, conns, *duration, http.StatusCreated, single).report(b, 1, "answers/s")
			}
		})
	}
}

// BenchmarkLimitTransaction is a bare Kafka transaction with one record, by the
// same client with the same settings.
func BenchmarkLimitTransaction(b *testing.B) {
	kafka := testkit.SharedKafka(b)
	for b.Loop() {
		topic := fmt.Sprintf("bare-%d", time.Now().UnixNano())
		kafka.CreateTopic(b, topic, 6)
		cl := kafka.Client(b, kgo.TransactionalID(topic), kgo.ProducerLinger(0), kgo.ConcurrentTransactionsBackoff(2*time.Millisecond),
			kgo.RetryBackoffFn(func(n int) time.Duration { return time.Millisecond << min(n, 10) }))
		body := []byte(event())
		m := repeat(b, 0, func() error {
			if err := cl.BeginTransaction(); err != nil {
				return err
			}
			id := uuid.New()
			if err := cl.ProduceSync(b.Context(), &kgo.Record{Topic: topic, Key: id[:], Value: body}).FirstErr(); err != nil {
				return err
			}
			return cl.EndTransaction(context.Background(), kgo.TryCommit)
		})
		m.report(b, 1, "transactions/s")
	}
}
