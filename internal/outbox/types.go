package outbox

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/result"
)

// State is where a result is on its way.
type State string

// A result is pending until it is published or parked. Parked results wait for
// a person: Retry makes them pending again, Purge removes them.
const (
	Pending   State = "pending"
	Published State = "published"
	Parked    State = "parked"
)

// Location is where in Kafka a published result lies.
type Location struct {
	Topic     string
	Partition int32
	Offset    int64
}

// Entry is all that is known of a result, but for its payload.
type Entry struct {
	Seq           int64 // publication order; a retried result gets a new one
	EventID       uuid.UUID
	CorrelationID uuid.UUID
	WorkflowID    string
	WorkflowRunID string
	Status        result.Status
	State         State
	AcceptedAt    time.Time
	Bytes         int64      // what it counts against the limits
	PublishedAt   *time.Time // nil unless published, and where only the watermark proved it
	Location      *Location  // nil unless published, and where only the watermark proved it
	ParkedAt      *time.Time // nil unless parked
	Reason        string     // why it is parked
}

// Outcome answers one appended result. Err is nil, a *ConflictError, or ErrFull.
type Outcome struct {
	Entry     Entry
	Duplicate bool // the event ID was already held with the same content
	Err       error
}

// Filter selects entries for List; the zero Filter selects all.
type Filter struct {
	CorrelationID *uuid.UUID
	State         State // empty: any
	After         int64 // only entries with a greater Seq
	Limit         int   // 1 to MaxListLimit; 0 is MaxListLimit
	Newest        bool  // from the end, the newest first
}

// MaxListLimit bounds one List.
const MaxListLimit = 1000

// Row is a pending result as the publisher takes it.
type Row struct {
	Seq        int64
	AcceptedAt time.Time
	Bytes      int64 // what it counts against the limits
	Result     result.Result
}

// Placement is where one result of a Publication went.
type Placement struct {
	Seq       int64
	Partition int32
	Offset    int64
}

// Publication says that every result with Seq <= Through, parked ones aside, is
// published. Placements, ascending by Seq, is empty where only the watermark
// told us.
type Publication struct {
	Through    int64
	At         time.Time
	Topic      string
	Placements []Placement
	Bytes      int64             // of the results in Placements; 0: unknown, they are counted
	Watermark  WatermarkPosition // of the watermark that proves it; zero if there is none
}

// Stats is a consistent view of the counters.
type Stats struct {
	ID             uuid.UUID // of the outbox: the transactional ID derives from it
	PendingRows    int64
	PendingBytes   int64
	ParkedRows     int64
	ParkedBytes    int64
	HeldRows       int64 // all rows, published ones in their windows included
	HeldBytes      int64
	MaxRows        int64
	MaxBytes       int64
	LastSeq        int64     // highest Seq ever given
	PublishedSeq   int64     // the watermark of ours
	OldestPending  time.Time // zero if none is pending
	QueuedRows     int64     // results that wait for a commit
	QueuedBytes    int64
	FileBytes      int64
	WALBytes       int64
	Damage         string    // why intake and publishing are stopped; empty is sound
	DedupTrimmedAt time.Time // when the limits last took deduplication entries before their time
}

// Errors that callers decide by.
var (
	ErrNotFound  = errors.New("no such result in the outbox")
	ErrNotParked = errors.New("only parked results can be retried or purged")
	// ErrFull: the limit of rows or bytes is reached by pending and parked
	// results alone, or the disk is full. Nothing was stored.
	ErrFull = errors.New("the outbox is full")
	// ErrBusy: too many results wait for a commit already. Nothing was stored.
	ErrBusy = errors.New("too many results are waiting to be committed")
	// ErrUnavailable: the store could not commit (I/O error, read-only, damage).
	ErrUnavailable = errors.New("the outbox cannot store results")
	// ErrClosed: the outbox was closed.
	ErrClosed = errors.New("the outbox is closed")
)

// ConflictError reports an event ID that is already held with other content.
type ConflictError struct{ Held Entry }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("event_id %s is already held with other content (seq %d, %s)", e.Held.EventID, e.Held.Seq, e.Held.State)
}
