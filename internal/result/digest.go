package result

import (
	"crypto/sha256"
	"encoding/binary"
)

// digest covers the fields as they were supplied. Two contents never share an
// encoding: each field is preceded by whether it was given and by its length.
// A stored digest is compared with those of later versions: the encoding is part
// of the outbox's format.
func digest(r *Result, hasPayload bool) Digest {
	text := make([]byte, 0, 512)
	text = append(text, r.CorrelationID[:]...)
	text = appendField(text, true, r.WorkflowID)
	text = appendField(text, true, r.WorkflowRunID)
	text = appendField(text, true, string(r.Status))
	if r.Error != nil {
		text = appendField(text, true, *r.Error)
	} else {
		text = appendField(text, false, "")
	}
	h := sha256.New()
	h.Write(appendHead(text, hasPayload, len(r.Payload)))
	if hasPayload {
		h.Write(r.Payload) // last, so that it need not be copied
	}
	var sum [sha256.Size]byte
	return Digest(h.Sum(sum[:0])[:len(Digest{})])
}

// Intact reports whether the content still has its Digest: whether what a disk
// gives back is what was accepted. event_id and timestamp are not covered.
func (r *Result) Intact() bool {
	return digest(r, true) == r.Digest ||
		string(r.Payload) == "{}" && digest(r, false) == r.Digest // it was left out
}

func appendField(dst []byte, given bool, value string) []byte {
	return append(appendHead(dst, given, len(value)), value...)
}

func appendHead(dst []byte, given bool, size int) []byte {
	if !given {
		return append(dst, 0)
	}
	return binary.BigEndian.AppendUint64(append(dst, 1), uint64(size))
}
