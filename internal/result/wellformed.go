package result

import "unicode/utf8"

// wellFormed reports whether data is one JSON object in UTF-8, nested at most
// MaxDepth deep (RFC 8259): what nearly every request is, found out in one pass at
// a multiple of the speed of encoding/json. Why something is not, explain tells.
func wellFormed(data []byte) bool {
	s := scanner{data: data}
	s.space()
	if s.peek() != '{' || !s.value(1) {
		return false
	}
	s.space()
	return s.at == len(data) && utf8.Valid(data)
}

// scanner reads JSON from at on.
type scanner struct {
	data []byte
	at   int
}

// peek returns the next byte, or 0 at the end, which JSON has nowhere.
func (s *scanner) peek() byte {
	if s.at < len(s.data) {
		return s.data[s.at]
	}
	return 0
}

// take steps over c, if it is next.
func (s *scanner) take(c byte) bool {
	if s.peek() != c {
		return false
	}
	s.at++
	return true
}

func (s *scanner) space() { s.at = skipSpace(s.data, s.at) }

// value steps over a value that is depth levels deep if it is an object or array.
func (s *scanner) value(depth int) bool {
	switch s.peek() {
	case '"':
		return s.text()
	case '{':
		return depth <= MaxDepth && s.list('}', func() bool {
			if !s.text() {
				return false
			}
			s.space()
			if !s.take(':') {
				return false
			}
			s.space()
			return s.value(depth + 1)
		})
	case '[':
		return depth <= MaxDepth && s.list(']', func() bool { return s.value(depth + 1) })
	case 't':
		return s.word("true")
	case 'f':
		return s.word("false")
	case 'n':
		return s.word("null")
	}
	return s.number()
}

// list steps over items between commas, from the opening bracket to end.
func (s *scanner) list(end byte, item func() bool) bool {
	s.at++
	if s.space(); s.take(end) {
		return true
	}
	for {
		s.space()
		if !item() {
			return false
		}
		if s.space(); !s.take(',') {
			return s.take(end)
		}
	}
}

func (s *scanner) word(w string) bool {
	if len(s.data)-s.at < len(w) || string(s.data[s.at:s.at+len(w)]) != w {
		return false
	}
	s.at += len(w)
	return true
}

// plain are the bytes that stand for themselves in a string.
var plain = func() (t [256]bool) {
	for c := range t {
		t[c] = c >= ' ' && c != '"' && c != '\\'
	}
	return t
}()

func (s *scanner) text() bool {
	if !s.take('"') {
		return false
	}
	for {
		for s.at < len(s.data) && plain[s.data[s.at]] {
			s.at++
		}
		if s.take('"') {
			return true
		}
		if !s.take('\\') || !s.escaped() {
			return false
		}
	}
}

// escaped steps over what follows a backslash.
func (s *scanner) escaped() bool {
	switch s.peek() {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.at++
		return true
	case 'u':
		for range 4 {
			s.at++
			if c := s.peek() | 0x20; (c < '0' || c > '9' || s.data[s.at] < '0') && (c < 'a' || c > 'f') {
				return false
			}
		}
		s.at++
		return true
	}
	return false
}

func (s *scanner) number() bool {
	s.take('-')
	if !s.take('0') && !s.digits() {
		return false
	}
	if s.take('.') && !s.digits() {
		return false
	}
	if s.take('e') || s.take('E') {
		if !s.take('+') {
			s.take('-')
		}
		return s.digits()
	}
	return true
}

// digits steps over one or more.
func (s *scanner) digits() bool {
	from := s.at
	for c := s.peek(); c >= '0' && c <= '9'; c = s.peek() {
		s.at++
	}
	return s.at > from
}
