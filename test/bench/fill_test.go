//go:build kafka

package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"workflow-results-sidecar/internal/metrics"
	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/result"
	"workflow-results-sidecar/internal/testkit"
)

// largeRows and largeBytes are limits that nothing here reaches.
const (
	largeRows  = 100_000_000
	largeBytes = 1 << 40
)

// withOutbox opens the outbox in dir in this process, which is faster than the
// socket, and closes it in order.
func withOutbox(b *testing.B, dir string, do func(*outbox.Outbox) error) {
	b.Helper()
	opts := outbox.DefaultOptions()
	opts.Dir, opts.Log, opts.Metrics = dir, slog.New(slog.DiscardHandler), metrics.New(prometheus.NewRegistry())
	opts.MaxRows, opts.DedupRows, opts.MaxBytes, opts.KeepAll = largeRows, largeRows, largeBytes, true
	o, err := outbox.Open(b.Context(), opts)
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	var g errgroup.Group
	g.Go(func() error { return o.Run(ctx) })
	err = do(o)
	stop()
	if err := errors.Join(err, g.Wait(), o.Close()); err != nil {
		b.Fatal(err)
	}
}

// randomIDs draws two IDs for each row, as a workflow does.
func randomIDs(int) (event, correlation uuid.UUID) { return uuid.New(), uuid.New() }

// evenIDs are as far apart as n random ones are on average, but in order. The
// indexes of IDs are written from the first page to the last with them, which takes
// minutes where random ones take hours; what is accepted afterwards has random IDs,
// and meets an index as large and as wide.
func evenIDs(n int) func(int) (event, correlation uuid.UUID) {
	const space = 1 << 48
	return func(i int) (event, correlation uuid.UUID) {
		event, correlation = uuid.New(), uuid.New()
		var head [8]byte
		binary.BigEndian.PutUint64(head[:], uint64(i)*(space/uint64(n))<<16)
		copy(event[:6], head[:])
		copy(correlation[:6], head[:])
		return event, correlation
	}
}

// fillOutbox puts n results of 1 KiB into a new outbox in dir, 4096 in a commit.
func fillOutbox(b *testing.B, dir string, n int, ids func(int) (event, correlation uuid.UUID)) {
	b.Helper()
	withOutbox(b, dir, func(o *outbox.Outbox) error {
		g, ctx := errgroup.WithContext(b.Context())
		batches := make(chan []result.Result, 1)
		g.Go(func() error {
			defer close(batches)
			for first := 0; first < n; first += commitBatch {
				rs, err := makeResults(first, min(commitBatch, n-first), ids)
				if err != nil {
					return err
				}
				select {
				case batches <- rs:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
		g.Go(func() error {
			for rs := range batches {
				outs, err := o.Append(ctx, rs)
				if err != nil {
					return err
				}
				for _, out := range outs {
					if out.Err != nil {
						return out.Err
					}
				}
			}
			return nil
		})
		return g.Wait()
	})
}

const commitBatch = 4096

// makeResults decodes n events of 1 KiB each, as the socket does.
func makeResults(first, n int, ids func(int) (event, correlation uuid.UUID)) ([]result.Result, error) {
	text := testkit.Event()
	eventAt := strings.Index(text, testkit.PlaceholderID)
	correlationAt := eventAt + len(testkit.PlaceholderID) + strings.Index(text[eventAt+len(testkit.PlaceholderID):], testkit.PlaceholderID)
	rs, now := make([]result.Result, n), time.Now()
	for i := range rs {
		line := []byte(text)
		event, correlation := ids(first + i)
		result.AppendUUID(line[eventAt:eventAt], event)
		result.AppendUUID(line[correlationAt:correlationAt], correlation)
		var err error
		if rs[i], err = result.Decode(line, now); err != nil {
			return nil, err
		}
	}
	return rs, nil
}

// markAll records everything in the outbox in dir as published, 2048 results in a
// publication, as the publisher does.
func markAll(b *testing.B, dir string) {
	b.Helper()
	withOutbox(b, dir, func(o *outbox.Outbox) error {
		st, err := o.Stats(b.Context())
		if err != nil || st.PendingRows == 0 {
			return err
		}
		const step = 2048
		for seq := st.PublishedSeq; seq < st.LastSeq; {
			p := outbox.Publication{At: time.Now(), Topic: "bench"}
			for range min(step, st.LastSeq-seq) {
				seq++
				p.Placements = append(p.Placements, outbox.Placement{Seq: seq, Partition: int32(seq % 6), Offset: seq / 6})
			}
			p.Through = seq
			p.Bytes = st.PendingBytes / st.PendingRows * int64(len(p.Placements)) // they are all alike
			o.MarkPublished(p)
		}
		return nil
	})
}

// copyOutbox copies an outbox that is closed.
func copyOutbox(b *testing.B, from, to string) {
	b.Helper()
	err := os.Mkdir(to, 0o700)
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{outboxFile, outboxFile + "-wal"} {
		src, err := os.Open(filepath.Join(from, name))
		if errors.Is(err, os.ErrNotExist) {
			continue // an end in order leaves no log
		}
		if err != nil {
			b.Fatal(err)
		}
		dst, err := os.OpenFile(filepath.Join(to, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			_, err = io.Copy(dst, src)
		}
		if err := errors.Join(err, dst.Close(), src.Close()); err != nil {
			b.Fatal(err)
		}
	}
}

const outboxFile = "outbox.db"

// outboxBytes are the sizes of the file and of its log.
func outboxBytes(b *testing.B, dir string) (file, log int64) {
	b.Helper()
	st, err := os.Stat(filepath.Join(dir, outboxFile))
	if err != nil {
		b.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dir, outboxFile+"-wal")); err == nil {
		log = st.Size()
	}
	return st.Size(), log
}

// requireRoom fails unless the volume of dir has so many bytes free.
func requireRoom(b *testing.B, dir string, bytes int64) {
	b.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		b.Fatal(err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < bytes {
		b.Fatalf("%s has %d MiB free, and %d are needed: choose another volume (TMPDIR) or fewer rows (-largest)", dir, free>>20, bytes>>20)
	}
}
