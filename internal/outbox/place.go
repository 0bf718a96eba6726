package outbox

import (
	"fmt"
	"os"
	"path/filepath"
)

// placed is a file of a running outbox and what lay under its name at the start.
type placed struct {
	path string
	info os.FileInfo
}

// placeFiles notes the files that SQLite has open, and the lock.
func placeFiles(dir string) (files []placed, err error) {
	for _, name := range []string{fileName, fileName + "-wal", fileName + "-shm", lockName} {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("look at the outbox's files: %w", err)
		}
		files = append(files, placed{path, info})
	}
	return files, nil
}

// inPlace returns an error unless each of our files still lies under its name. To
// SQLite a file that was deleted or renamed is as good as any: a commit succeeds,
// and no later start finds it.
func (o *Outbox) inPlace() error {
	for _, f := range o.files {
		info, err := os.Stat(f.path)
		if err == nil && !os.SameFile(info, f.info) {
			err = fmt.Errorf("%s is another file than at the start", f.path)
		}
		if err != nil {
			return fmt.Errorf("%w: a file of the running outbox was deleted, renamed or replaced: %w; put it back as it was; if it is deleted, let the sidecar publish what it holds before you end it", ErrUnavailable, err)
		}
	}
	return nil
}
