package outbox

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/mattn/go-sqlite3"
)

// connector opens connections of the outbox's file. The pragmas stand in the
// DSN so that every pooled connection has them.
type connector struct {
	path     string
	readOnly bool
	check    func() error // before each connection; nil: none
}

func (c connector) Driver() driver.Driver { return &sqlite3.SQLiteDriver{} }

func (c connector) Connect(context.Context) (driver.Conn, error) {
	// A connection to an empty file deletes the WAL beside it, and one to a copy
	// takes the WAL for the copy's.
	if c.check != nil {
		if err := c.check(); err != nil {
			return nil, err
		}
	}
	hook := func(conn *sqlite3.SQLiteConn) error {
		// Checkpoints are ours to time: the automatic one would run in the
		// middle of somebody's commit.
		_, err := conn.Exec("PRAGMA temp_store = MEMORY; PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = 16777216;", nil)
		return err
	}
	return (&sqlite3.SQLiteDriver{ConnectHook: hook}).Open(c.dsn())
}

func (c connector) dsn() string {
	if c.readOnly { // no more than it needs: PRAGMA auto_vacuum would begin a write transaction
		return fileURI(c.path, url.Values{"_query_only": {"true"}, "_busy_timeout": {"10000"}, "_cache_size": {"-1024"}})
	}
	return fileURI(c.path, url.Values{
		"_auto_vacuum":  {"incremental"},
		"_journal_mode": {"WAL"},
		"_synchronous":  {"FULL"}, // the driver's build default is NORMAL, which loses commits on a power cut
		"_txlock":       {"immediate"},
		"_busy_timeout": {"10000"},
		"_cache_size":   {"-4096"},
	})
}

// fileURI names a file and how to open it. A connection is used by one goroutine at a
// time, as database/sql has it, so SQLite need not lock it against a second.
func fileURI(path string, q url.Values) string {
	q.Set("_mutex", "no")
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String()
}

// damagedConnector opens a file to read what can be read of it, and writes nothing
// to it, not even a checkpoint. The file is attached, since the driver's own first
// steps would fail on it; writable_schema makes SQLite read a file that is shorter
// than its header says, instead of refusing it as a whole.
type damagedConnector struct{ path string }

func (c damagedConnector) Driver() driver.Driver { return connector{}.Driver() }

func (c damagedConnector) Connect(context.Context) (driver.Conn, error) {
	hook := func(conn *sqlite3.SQLiteConn) error {
		_, err := conn.Exec("PRAGMA writable_schema = ON; ATTACH "+quote(fileURI(c.path, url.Values{"mode": {"ro"}}))+" AS damaged", nil)
		return err
	}
	return (&sqlite3.SQLiteDriver{ConnectHook: hook}).Open(":memory:")
}

// quote writes text as a literal of SQL.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// verifyPragmas reads back what durability rests on.
func verifyPragmas(ctx context.Context, conn *sql.Conn) error {
	var mode string
	if err := conn.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return fmt.Errorf("read journal_mode: %w", err)
	}
	if mode != "wal" {
		return fmt.Errorf("journal_mode is %q, not wal: the file system of the data directory does not support shared memory maps", mode)
	}
	for name, want := range map[string]int64{"synchronous": 2, "auto_vacuum": 2} {
		got, err := pragmaInt(ctx, conn, name)
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("PRAGMA %s is %d, not %d", name, got, want)
		}
	}
	return nil
}

func pragmaInt(ctx context.Context, conn *sql.Conn, name string) (int64, error) {
	var v int64
	if err := conn.QueryRowContext(ctx, "PRAGMA "+name).Scan(&v); err != nil {
		return 0, fmt.Errorf("read PRAGMA %s: %w", name, err)
	}
	return v, nil
}

// inTransaction reports whether SQLite holds a transaction open on conn; a
// connection that cannot tell counts as one that does.
func inTransaction(conn *sql.Conn) bool {
	open := true
	_ = conn.Raw(func(dc any) error { // an error leaves open true: the safe answer
		open = !dc.(*sqlite3.SQLiteConn).AutoCommit()
		return nil
	})
	return open
}

// isFailedSync reports a failed fsync. After one, the kernel may have dropped
// the dirty pages and call the next fsync a success: only a new process that
// reads the file again knows what is on disk.
func isFailedSync(err error) bool {
	var e sqlite3.Error
	return errors.As(err, &e) && (e.ExtendedCode == sqlite3.ErrIoErrFsync || e.ExtendedCode == sqlite3.ErrIoErrDirFsync)
}

func isDamage(err error) bool {
	var e sqlite3.Error
	return errors.As(err, &e) && (e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB)
}

func isDiskFull(err error) bool {
	var e sqlite3.Error
	return errors.As(err, &e) && e.Code == sqlite3.ErrFull
}
