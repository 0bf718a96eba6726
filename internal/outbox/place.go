package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
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
	for _, path := range []string{filepath.Join(dir, fileName), walOf(dir), walIndexOf(dir), filepath.Join(dir, lockName)} {
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

// errCut is a file of the outbox that another program has cut or overwritten.
var errCut = errors.New("another program has cut or overwritten it while the sidecar ran: what was committed is no longer there")

// commits are the log and its index, which SQLite keeps in shared memory
// (https://www.sqlite.org/walformat.html, in the machine's byte order). Neither may
// be closed before SQLite's connections: that would drop SQLite's locks.
type commits struct{ log, index *os.File }

func openCommits(dir string) (c commits, err error) {
	for _, f := range []struct {
		file **os.File
		path string
	}{{&c.log, walOf(dir)}, {&c.index, walIndexOf(dir)}} {
		if *f.file, err = os.Open(f.path); err != nil {
			return c, errors.Join(fmt.Errorf("open the outbox's files: %w", err), c.close())
		}
	}
	return c, nil
}

func (c commits) close() error {
	var errs []error
	for _, f := range []*os.File{c.log, c.index} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// whole returns an error unless the file and its log still hold what was committed.
// SQLite goes by its index and would write on behind a hole, and the next start drop
// everything from the hole on. Only who writes may ask.
func (o *Outbox) whole() error {
	if !o.comparesLog {
		return nil
	}
	_, err := o.compare()
	return err
}

// compare compares the log with its index, and returns how many frames that has. Some
// file systems do not show in a file what was mapped: there it has none at the start,
// or they differ already.
func (o *Outbox) compare() (frames uint32, err error) {
	const header = 48 // twice, then how many frames the file has
	var index [2*header + 4]byte
	if _, err := o.commits.index.ReadAt(index[:], 0); err != nil {
		return 0, fmt.Errorf("%s-shm: %w (%w)", fileName, errCut, err)
	}
	page := int64(binary.NativeEndian.Uint16(index[14:]))
	frames, inFile := binary.NativeEndian.Uint32(index[16:]), binary.NativeEndian.Uint32(index[2*header:])
	if st, err := os.Stat(o.path()); err == nil && st.Size() < page { // one that is not there is for inPlace to tell
		return frames, fmt.Errorf("%s: %w", fileName, errCut)
	}
	if frames <= inFile {
		return frames, nil
	}
	var log [walHeaderSize]byte
	_, err = o.commits.log.ReadAt(log[:], 0)
	st, statErr := o.commits.log.Stat()
	if err := errors.Join(err, statErr); err != nil {
		return frames, fmt.Errorf("%s-wal: %w (%w)", fileName, errCut, err)
	}
	salts := index[32:40]
	if st.Size() < walHeaderSize+int64(frames)*(frameHeaderSize+page) || !bytes.Equal(log[16:24], salts) {
		return frames, fmt.Errorf("%s-wal: %w", fileName, errCut)
	}
	return frames, nil
}
