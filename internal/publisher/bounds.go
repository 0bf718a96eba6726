package publisher

// bounds say how much goes into one publication. They halve after a failure, so
// that a slow link or a refused record ends in publications that succeed, and
// double back after each success.
type bounds struct {
	rows, maxRows   int
	bytes, maxBytes int64
}

func newBounds(rows int, bytes int64) bounds {
	return bounds{rows: rows, maxRows: rows, bytes: bytes, maxBytes: bytes}
}

func (b *bounds) halve() {
	b.rows = max(1, b.rows/2)
	b.bytes = max(1, b.bytes/2) // one result goes out whatever its size
}

// isolate narrows down on a record that was refused among n.
func (b *bounds) isolate(n int) { b.rows = max(1, n/2) }

func (b *bounds) grow() {
	b.rows = min(b.maxRows, b.rows*2)
	b.bytes = min(b.maxBytes, b.bytes*2)
}
