package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	fileName = "outbox.db"
	lockName = "lock"
)

// ErrLocked says that another process has the data directory open.
var ErrLocked = errors.New("the data directory is in use by another process")

// prepareDir makes the data directory (0700), refuses a network file system,
// takes the lock and makes the empty file (0600; SQLite gives its WAL the same
// mode). Directory entries are synced: after a power cut the file is there.
func prepareDir(dir string, allowNetworkFS bool) (lock *os.File, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", explainPermission(err))
	}
	if err := refuseNetworkFS(dir, allowNetworkFS); err != nil {
		return nil, err
	}
	lock, err = lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	f, err := os.OpenFile(filepath.Join(dir, fileName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the outbox file: %w", explainPermission(err))
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("sync the outbox file: %w", err)
	}
	if err := syncDirs(dir); err != nil {
		return nil, err
	}
	return lock, nil
}

// explainPermission says as whom the process was refused.
func explainPermission(err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return fmt.Errorf("%w: this process runs as UID %d, and the data directory (--data-dir) must belong to that user", err, os.Getuid())
}

// lockDir holds an exclusive flock; the kernel drops it with the process.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock file: %w", explainPermission(err))
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // the lock's error is the one to tell
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s (a running sidecar? end it first; two sidecars need a --data-dir each)", ErrLocked, path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

func syncDirs(dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("resolve the data directory: %w", err)
	}
	for _, d := range []string{abs, filepath.Dir(abs)} {
		f, err := os.Open(d)
		if errors.Is(err, os.ErrPermission) && d != abs {
			continue // the parent was made by somebody else, who answers for its entry
		}
		if err != nil {
			return fmt.Errorf("open directory to sync it: %w", err)
		}
		err = errors.Join(f.Sync(), f.Close())
		if err != nil && (d == abs || !errors.Is(err, unix.EINVAL)) {
			return fmt.Errorf("sync directory %s: %w", d, err)
		}
	}
	return nil
}

// networkFS names file systems whose locks or fsync SQLite cannot rest on, by
// statfs(2) magic number (linux/magic.h and the file systems' own headers).
var networkFS = map[int64]string{
	0x6969: "NFS", 0x517b: "SMB", 0xff534d42: "CIFS", 0xfe534d42: "SMB2",
	0x65735546: "FUSE", 0x01021997: "9p", 0x00c36400: "Ceph", 0x0bd00bd0: "Lustre",
	0x47504653: "GPFS", 0x5346414f: "AFS", 0x73757245: "Coda", 0x7461636f: "OCFS2",
}

func refuseNetworkFS(dir string, allow bool) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	name, found := networkFS[int64(st.Type)&0xffffffff]
	if !found || allow {
		return nil
	}
	return fmt.Errorf("the data directory %s is on a network file system (%s), where locks and fsync do not hold what SQLite needs: use a local or block volume, or --allow-network-fs if you know better", dir, name)
}

// openFile opens the writer's connection and brings the file to a known state:
// pragmas read back, schema migrated, WAL checkpointed and synced, before
// anybody is let in.
func openFile(ctx context.Context, path string) (*sql.DB, *sql.Conn, error) {
	db := sql.OpenDB(connector{path: path})
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, nil, errors.Join(explainOpen(path, err), db.Close())
	}
	for _, step := range []func(context.Context, *sql.Conn) error{verifyPragmas, migrate, checkpointTruncate} {
		if err := step(ctx, conn); err != nil {
			return nil, nil, errors.Join(explainOpen(path, err), conn.Close(), db.Close())
		}
	}
	return db, conn, nil
}

func explainOpen(path string, err error) error {
	if isDamage(err) || errors.Is(err, errWALDamaged) {
		return fmt.Errorf("the outbox file %s is damaged: %w: %s", path, err, DamageHelp(filepath.Dir(path)))
	}
	return fmt.Errorf("open outbox %s: %w", path, err)
}

// DamageHelp is what a person does about a damaged outbox in dir.
func DamageHelp(dir string) string {
	return fmt.Sprintf("end the sidecar, copy the directory, then run `sidecar outbox recover --data-dir %s --to NEWDIR`, which copies out every readable result", dir)
}

// checkpointTruncate moves the whole WAL into the file and syncs both. What was
// only in a page cache when the last process died is on disk after it.
func checkpointTruncate(ctx context.Context, conn *sql.Conn) error {
	busy, left, err := checkpoint(ctx, conn, "TRUNCATE")
	if err != nil {
		return err
	}
	if busy || left > 0 {
		return fmt.Errorf("checkpoint the WAL: not complete (busy %t, %d frames left)", busy, left)
	}
	return nil
}

// Exists returns an error if dir holds no outbox: commands that look into one
// must not make an empty one by a mistyped path, or of a file that was cut to nothing.
func Exists(dir string) error {
	st, err := os.Stat(filepath.Join(dir, fileName))
	if err != nil {
		return fmt.Errorf("no outbox in %s (--data-dir): %w", dir, err)
	}
	if st.Size() == 0 {
		return fmt.Errorf("the outbox file in %s (--data-dir) is empty: it was truncated, or its first start was cut off; nothing can be read from it", dir)
	}
	return nil
}
