package publisher

// bounds say how much goes into one publication. After a failure it is half of
// what was tried, so that a slow link or a refused record ends in publications
// that succeed; each success adds a quarter. On a link that stays slow three or
// four publications then succeed for one that does not.
type bounds struct {
	rows, maxRows   int
	bytes, maxBytes int64
}

func newBounds(rows int, bytes int64) bounds {
	return bounds{rows: rows, maxRows: rows, bytes: bytes, maxBytes: bytes}
}

// halve takes what was tried in vain.
func (b *bounds) halve(rows int, bytes int64) {
	b.rows = max(1, rows/2)
	b.bytes = max(1, bytes/2) // one result goes out whatever its size
}

// isolate narrows down on a record that was refused among n.
func (b *bounds) isolate(n int) { b.rows = max(1, n/2) }

func (b *bounds) grow() {
	b.rows = min(b.maxRows, b.rows+b.rows/4+1)
	b.bytes = min(b.maxBytes, b.bytes+b.bytes/4+1024)
}
