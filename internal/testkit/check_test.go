package testkit

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

// published is three results of one correlation ID and their records.
func published() ([]Acked, []*kgo.Record) {
	var acked []Acked
	var records []*kgo.Record
	key := uuid.New()
	for i := range 3 {
		p := payload(0, i, 100)
		a := Acked{EventID: uuid.New(), CorrelationID: key, Payload: sha256.Sum256(p)}
		acked = append(acked, a)
		records = append(records, record(a.EventID, key, event(a, p), i))
	}
	return acked, records
}

func TestCountFindsWhatIsWrong(t *testing.T) {
	tests := map[string]struct {
		spoil      func([]*kgo.Record) []*kgo.Record
		duplicates int
		fault      string // empty: none
	}{
		"nothing": {spoil: func(r []*kgo.Record) []*kgo.Record { return r }},
		"a result that was not acknowledged": {spoil: func(r []*kgo.Record) []*kgo.Record {
			return append(r, record(uuid.New(), uuid.New(), []byte("{}"), 3))
		}},
		"twice":   {spoil: func(r []*kgo.Record) []*kgo.Record { return append(r, r[0]) }, duplicates: 1},
		"missing": {spoil: func(r []*kgo.Record) []*kgo.Record { return r[1:] }, fault: "is missing"},
		"order":   {spoil: func(r []*kgo.Record) []*kgo.Record { slices.Reverse(r); return r }, fault: "overtook"},
		"payload": {spoil: func(r []*kgo.Record) []*kgo.Record {
			r[1].Value = bytes.Replace(r[1].Value, []byte(`12345678901234567890.10`), []byte(`12345678901234567000.0`), 1)
			return r
		}, fault: "payload was altered"},
		"key":       {spoil: func(r []*kgo.Record) []*kgo.Record { r[1].Key = []byte("k"); return r }, fault: "key is"},
		"no ce_id":  {spoil: func(r []*kgo.Record) []*kgo.Record { r[1].Headers = nil; return r }, fault: "header ce_id"},
		"not JSON":  {spoil: func(r []*kgo.Record) []*kgo.Record { r[1].Value = []byte("{"); return r }, fault: "record's value"},
		"other one": {spoil: func(r []*kgo.Record) []*kgo.Record { r[1].Value = r[2].Value; return r }, fault: "is of event"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			acked, records := published()
			duplicates, faults := count(acked, tt.spoil(records))
			if duplicates != tt.duplicates {
				t.Errorf("%d duplicates, want %d", duplicates, tt.duplicates)
			}
			if tt.fault == "" && len(faults) > 0 {
				t.Errorf("faults: %v", faults)
			}
			if tt.fault != "" && (len(faults) == 0 || !strings.Contains(faults[0].Error(), tt.fault)) {
				t.Errorf("faults %v, want one with %q", faults, tt.fault)
			}
		})
	}
}

func TestConsumeReadsToTheEndAndLeavesOutAborted(t *testing.T) {
	f := StartFake(t)
	f.CreateTopic(t, "results", 3)
	f.CreateTopic(t, "empty", 2)
	cl := f.Client(t, kgo.TransactionalID("consume"), kgo.DefaultProduceTopic("results"))
	for i, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort, kgo.TryCommit, kgo.TryAbort} {
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for p := range 30 {
			r := &kgo.Record{Key: []byte{byte(p)}, Value: []byte{byte(i)}}
			if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		if err := cl.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	records := Consume(t, f.Addr(), "results")
	for _, r := range records {
		if v := r.Value[0]; v%2 != 0 {
			t.Errorf("read a record of transaction %d, which was aborted", v)
		}
	}
	if len(records) != 60 {
		t.Errorf("read %d records, want 60", len(records))
	}
	if n := len(Consume(t, f.Addr(), "empty")); n != 0 {
		t.Errorf("read %d records of an empty topic", n)
	}
}
