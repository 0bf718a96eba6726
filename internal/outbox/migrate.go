package outbox

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"slices"
)

//go:embed migrations/*.sql
var migrations embed.FS

// applicationID marks the file as ours (PRAGMA application_id): "WRSO".
const applicationID = 0x5752534f

// SchemaVersion is the newest schema that this program knows: it opens files of
// that one and brings those of all before to it.
func SchemaVersion() int {
	names, _ := fs.Glob(migrations, "migrations/*.sql") // the pattern is sound, and the files are in the binary
	return len(names)
}

// migrate brings the file to the newest schema. Each numbered file runs in one
// transaction with its user_version: a crash leaves the file at a whole version.
func migrate(ctx context.Context, conn *sql.Conn) error {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return fmt.Errorf("list migrations: %w", err)
	}
	slices.Sort(names)
	version, err := pragmaInt(ctx, conn, "user_version")
	if err != nil {
		return err
	}
	if version > int64(len(names)) {
		return fmt.Errorf("the outbox has schema version %d, this program knows %d: it was written by a newer sidecar; run that version, or drain the outbox with it first", version, len(names))
	}
	if err := checkApplicationID(ctx, conn, version); err != nil {
		return err
	}
	for i := int(version); i < len(names); i++ {
		if err := applyMigration(ctx, conn, names[i], i+1); err != nil {
			return fmt.Errorf("apply %s: %w", names[i], err)
		}
	}
	return nil
}

func checkApplicationID(ctx context.Context, conn *sql.Conn, version int64) error {
	id, err := pragmaInt(ctx, conn, "application_id")
	if err != nil {
		return err
	}
	if id == applicationID || (id == 0 && version == 0) {
		return nil
	}
	return fmt.Errorf("the file is an SQLite database, but not an outbox (application_id %#x): choose another data directory", id)
}

func applyMigration(ctx context.Context, conn *sql.Conn, name string, version int) error {
	text, err := migrations.ReadFile(name)
	if err != nil {
		return err
	}
	script := fmt.Sprintf("BEGIN IMMEDIATE;\n%s\nPRAGMA application_id = %d;\nPRAGMA user_version = %d;\nCOMMIT;", text, applicationID, version)
	if _, err := conn.ExecContext(ctx, script); err != nil {
		_, rollbackErr := conn.ExecContext(ctx, "ROLLBACK")
		if inTransaction(conn) {
			return fmt.Errorf("%w (and the rollback failed: %w)", err, rollbackErr)
		}
		return err
	}
	return nil
}
