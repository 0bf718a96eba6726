package outbox

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// The write-ahead log as SQLite lays it out (https://www.sqlite.org/fileformat2.html#walformat).
const (
	walHeaderSize   = 32
	frameHeaderSize = 24
	walMagic        = 0x377f0682 // the last bit says that the checksums are of big-endian words
)

func walOf(dir string) string { return filepath.Join(dir, fileName+"-wal") }

// walIndexOf is the log's index, which SQLite keeps in shared memory.
func walIndexOf(dir string) string { return filepath.Join(dir, fileName+"-shm") }

// walFrame is one frame of the log's present generation.
type walFrame struct {
	page   uint32
	commit uint32 // pages of the file after this commit; 0: not the end of one
	whole  bool   // its checksum is right
	data   []byte // only during the walk
}

// walkWAL calls visit with each frame of the log's present generation, damaged
// ones included. A frame's checksum goes on from its predecessor's as that is
// stored: behind a damaged frame the whole ones are told from others again.
func walkWAL(path string, visit func(walFrame) error) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the write-ahead log: %w", err)
	}
	defer func() { _ = f.Close() }() // it is only read
	r := bufio.NewReaderSize(f, 1<<20)
	var header [walHeaderSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return endOfWAL(err) // cut off in its first write: nothing is committed in it
	}
	magic := binary.BigEndian.Uint32(header[:])
	var words binary.ByteOrder = binary.LittleEndian
	if magic&1 == 1 {
		words = binary.BigEndian
	}
	sum := walChecksum(words, [2]uint32{}, header[:24])
	if magic&^1 != walMagic || sum != storedChecksum(header[24:]) {
		return nil // SQLite takes such a log for empty
	}
	size := binary.BigEndian.Uint32(header[8:])
	if size < 512 || size > 65536 {
		return nil
	}
	salts := header[16:24]
	frame := make([]byte, frameHeaderSize+int(size))
	for {
		if _, err := io.ReadFull(r, frame); err != nil {
			return endOfWAL(err)
		}
		expected := walChecksum(words, walChecksum(words, sum, frame[:8]), frame[frameHeaderSize:])
		sum = storedChecksum(frame[16:])
		ours := bytes.Equal(frame[8:16], salts)
		next := walFrame{
			page: binary.BigEndian.Uint32(frame), commit: binary.BigEndian.Uint32(frame[4:]),
			whole: ours && sum == expected, data: frame[frameHeaderSize:],
		}
		if err := visit(next); err != nil {
			return err
		}
	}
}

func endOfWAL(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return fmt.Errorf("read the write-ahead log: %w", err)
}

func storedChecksum(b []byte) [2]uint32 {
	return [2]uint32{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])}
}

func walChecksum(words binary.ByteOrder, sum [2]uint32, data []byte) [2]uint32 {
	for i := 0; i+8 <= len(data); i += 8 {
		sum[0] += words.Uint32(data[i:]) + sum[1]
		sum[1] += words.Uint32(data[i+4:]) + sum[0]
	}
	return sum
}

// checkWAL tells damage in the middle of the log from an end that was cut off in
// mid-write, which is what a crash leaves. SQLite reads up to the first frame that
// is not whole and drops the rest in silence. Each commit is synced before the next
// is written, so at most one may lie behind such a frame after a crash: where there
// are more, they were acknowledged. A log that lost its end cannot be told from
// one that was never longer.
func checkWAL(path string) error {
	number, broken, behind := 0, 0, 0
	err := walkWAL(path, func(f walFrame) error {
		number++
		switch {
		case !f.whole && broken == 0:
			broken = number
		case f.whole && broken > 0 && f.commit > 0:
			behind++
		}
		return nil
	})
	if err != nil || behind < 2 {
		return err
	}
	return fmt.Errorf("frame %d of the write-ahead log is damaged, and %d commits lie behind it: %w", broken, behind, errWALDamaged)
}

var errWALDamaged = errors.New("results that were acknowledged would be lost")

// refuseEmptied returns an error where the file was cut to nothing and its log was
// not: SQLite deletes a log that lies beside an empty file, and with it the last that
// is left.
func refuseEmptied(dir string) error {
	if Exists(dir) == nil {
		return nil
	}
	commits := 0
	err := walkWAL(walOf(dir), func(f walFrame) error {
		if f.whole && f.commit > 0 {
			commits++
		}
		return nil
	})
	if err != nil || commits == 0 {
		return err
	}
	return fmt.Errorf("it is empty, yet its write-ahead log (%s-wal) holds %d commits, which a start would delete: it was truncated; put it back as it was, or restore the newest backup of the directory; to begin anew without what it held, move both files away", fileName, commits)
}

// refuseWithoutLog returns an error where the log is gone and its index is there: a
// crash leaves both, and an end in order neither.
func refuseWithoutLog(dir string) error {
	_, err := os.Stat(walOf(dir))
	index := walIndexOf(dir)
	if _, indexErr := os.Stat(index); !errors.Is(err, os.ErrNotExist) || indexErr != nil {
		return nil
	}
	return fmt.Errorf("its write-ahead log (%s-wal) was deleted or moved: put it back, for it holds what was accepted last; to begin without that, delete %s", fileName, index)
}

// applyWAL writes the pages of all whole frames up to the last commit into a copy
// of the file: what SQLite would have done, had it read past the damage.
func applyWAL(path string, file *os.File) error {
	frames, last := 0, 0
	err := walkWAL(path, func(f walFrame) error {
		if frames++; f.whole && f.commit > 0 {
			last = frames
		}
		return nil
	})
	if err != nil {
		return err
	}
	number := 0
	return walkWAL(path, func(f walFrame) error {
		if number++; !f.whole || number > last || f.page == 0 {
			return nil
		}
		if _, err := file.WriteAt(f.data, int64(f.page-1)*int64(len(f.data))); err != nil {
			return fmt.Errorf("apply the write-ahead log: %w", err)
		}
		return nil
	})
}
