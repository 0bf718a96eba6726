package testkit

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// consumeTimeout bounds one Consume; an open transaction may hold it back for
// its time-out and the broker's sweep.
const consumeTimeout = 2 * time.Minute

// Consume reads a topic, read_committed, from its start to the high watermark of
// the moment of the call, partition by partition in order. An open transaction
// below that mark is waited for, never left out. Control records are read, so
// that the end is reached where a partition ends with one, and not returned.
func Consume(t testing.TB, addr, topic string) []*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), consumeTimeout)
	defer cancel()
	records, err := consume(ctx, newClient(t, []string{addr}, []kgo.Opt{
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.FetchMaxWait(250 * time.Millisecond), // closing waits for the fetch under way
	}), topic)
	if err != nil {
		t.Fatalf("read topic %s: %v", topic, err)
	}
	return records
}

func consume(ctx context.Context, cl *kgo.Client, topic string) ([]*kgo.Record, error) {
	adm := kadm.NewClient(cl)
	ends, err := adm.ListEndOffsets(ctx, topic) // read_uncommitted: the high watermark
	if err = errors.Join(err, ends.Error()); err != nil {
		return nil, fmt.Errorf("find the end: %w", err)
	}
	starts, err := adm.ListStartOffsets(ctx, topic)
	if err = errors.Join(err, starts.Error()); err != nil {
		return nil, fmt.Errorf("find the start: %w", err)
	}
	todo := map[int32]int64{}
	ends.Each(func(end kadm.ListedOffset) {
		start, ok := starts.Lookup(topic, end.Partition)
		if ok && start.Offset < end.Offset {
			todo[end.Partition] = end.Offset
		}
	})
	cl.AddConsumePartitions(starts.KOffsets())
	var records []*kgo.Record
	for len(todo) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("%d partitions are not read to their end: %w", len(todo), err)
		}
		for r := range fetches.RecordsAll() {
			end, open := todo[r.Partition]
			if open && r.Offset < end && !r.Attrs.IsControl() {
				records = append(records, r)
			}
			if open && r.Offset+1 >= end {
				delete(todo, r.Partition)
			}
		}
	}
	return records, nil
}

// CheckExactlyOnce fails the test unless every acknowledged result is in records
// once, with its payload byte for byte, and in each correlation ID's order of
// acceptance; and unless what was not acknowledged is there at most once.
func CheckExactlyOnce(t testing.TB, acked []Acked, records []*kgo.Record) {
	t.Helper()
	if n := CheckAtLeastOnce(t, acked, records); n > 0 {
		t.Errorf("%d records are there more than once", n)
	}
}

// CheckAtLeastOnce is CheckExactlyOnce but for duplicates: it returns how many
// records repeat an earlier one, and the order is that of the first appearances.
func CheckAtLeastOnce(t testing.TB, acked []Acked, records []*kgo.Record) (duplicates int) {
	t.Helper()
	duplicates, faults := count(acked, records)
	const shown = 20
	for i, fault := range faults {
		if i == shown {
			t.Errorf("and %d more", len(faults)-shown)
			break
		}
		t.Error(fault)
	}
	return duplicates
}

// seen is the first appearance of an event.
type seen struct {
	record *kgo.Record
	place  int // among the records
}

func count(acked []Acked, records []*kgo.Record) (duplicates int, faults []error) {
	first := make(map[uuid.UUID]seen, len(records))
	for i, r := range records {
		id, err := uuid.Parse(Header(r, "ce_id"))
		if err != nil {
			faults = append(faults, fmt.Errorf("partition %d, offset %d: header ce_id: %w", r.Partition, r.Offset, err))
			continue
		}
		if _, again := first[id]; again {
			duplicates++
			continue
		}
		first[id] = seen{r, i}
	}
	last := map[uuid.UUID]seen{} // by correlation ID
	for _, a := range acked {
		s, ok := first[a.EventID]
		if !ok {
			faults = append(faults, fmt.Errorf("event %s was acknowledged and is missing", a.EventID))
			continue
		}
		if err := compare(a, s.record); err != nil {
			faults = append(faults, fmt.Errorf("event %s: %w", a.EventID, err))
		}
		if before, ok := last[a.CorrelationID]; ok && before.place > s.place {
			faults = append(faults, fmt.Errorf("event %s (offset %d) overtook one that was accepted before it (offset %d)", a.EventID, s.record.Offset, before.record.Offset))
		}
		last[a.CorrelationID] = s
	}
	return duplicates, faults
}

func compare(a Acked, r *kgo.Record) error {
	var value struct {
		EventID uuid.UUID       `json:"event_id"`
		Result  json.RawMessage `json:"result"`
	}
	if err := json.Unmarshal(r.Value, &value); err != nil {
		return fmt.Errorf("the record's value: %w", err)
	}
	switch {
	case string(r.Key) != a.CorrelationID.String():
		return fmt.Errorf("the record's key is %q, not %s", r.Key, a.CorrelationID)
	case value.EventID != a.EventID:
		return fmt.Errorf("the record's value is of event %s", value.EventID)
	case sha256.Sum256(value.Result) != a.Payload:
		return fmt.Errorf("the payload was altered: %.200s", value.Result)
	}
	return nil
}

// Header is a record header's value, or empty.
func Header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}
