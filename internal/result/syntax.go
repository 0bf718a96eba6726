package result

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"unicode/utf8"
)

// SyntaxError is a document that is not one JSON object in UTF-8 (RFC 8259), or
// one nested deeper than MaxDepth (HTTP 400).
type SyntaxError struct {
	Offset int64 // bytes read when it showed, the offending one included
	Msg    string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("%s (at byte %d)", e.Msg, e.Offset) }

// checkSyntax is what the functions below it rely on: they look for the ends of
// strings and objects and check nothing.
func checkSyntax(data []byte) error {
	if wellFormed(data) {
		return nil
	}
	return explain(data)
}

// explain returns what is wrong with data, nil if nothing is.
func explain(data []byte) error {
	if !utf8.Valid(data) {
		return &SyntaxError{invalidUTF8At(data), "not valid UTF-8"}
	}
	if !json.Valid(data) {
		return syntaxErrorOf(data)
	}
	if i := skipSpace(data, 0); data[i] != '{' {
		return &SyntaxError{int64(i) + 1, "must be one JSON object"}
	}
	return checkDepth(data)
}

func invalidUTF8At(data []byte) int64 {
	i := 0
	for i < len(data) {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n == 1 {
			break
		}
		i += n
	}
	return int64(i) + 1
}

// syntaxErrorOf asks encoding/json where and why. Its texts quote one character
// at most, so nothing of a payload leaks into answers and logs.
func syntaxErrorOf(data []byte) error {
	var (
		raw    json.RawMessage
		syntax *json.SyntaxError
	)
	if err := json.Unmarshal(data, &raw); errors.As(err, &syntax) {
		return &SyntaxError{syntax.Offset, "not valid JSON: " + syntax.Error()}
	}
	return &SyntaxError{0, "not valid JSON"}
}

func checkDepth(data []byte) error {
	depth := 0
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '"':
			i = endOfString(data, i) - 1
		case '{', '[':
			if depth++; depth > MaxDepth {
				return &SyntaxError{int64(i) + 1, fmt.Sprintf("nested deeper than %d levels", MaxDepth)}
			}
		case '}', ']':
			depth--
		}
	}
	return nil
}

// members yields the raw name and the raw value of each member of an object.
func members(data []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		i := skipSpace(data, skipSpace(data, 0)+1) // behind the brace
		for data[i] != '}' {
			endName := endOfString(data, i)
			name := data[i:endName]
			start := skipSpace(data, skipSpace(data, endName)+1) // behind the colon
			end := endOfValue(data, start)
			if !yield(name, data[start:end:end]) {
				return
			}
			if i = skipSpace(data, end); data[i] == ',' {
				i = skipSpace(data, i+1)
			}
		}
	}
}

func skipSpace(data []byte, i int) int {
	for i < len(data) && isSpace(data[i]) {
		i++
	}
	return i
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

// endOfString returns the index behind the string that starts at i.
func endOfString(data []byte, i int) int {
	for i++; ; {
		quote := i + bytes.IndexByte(data[i:], '"')
		for i <= quote {
			escape := bytes.IndexByte(data[i:quote], '\\')
			if escape < 0 {
				return quote + 1
			}
			i += escape + 2 // may be behind the quote, which was escaped then
		}
	}
}

// endOfValue returns the index behind the member's value that starts at i.
func endOfValue(data []byte, i int) int {
	switch data[i] {
	case '"':
		return endOfString(data, i)
	case '{', '[':
		return endOfNested(data, i)
	}
	for data[i] != ',' && data[i] != '}' && !isSpace(data[i]) {
		i++
	}
	return i
}

func endOfNested(data []byte, i int) int {
	for depth := 0; ; i++ {
		switch data[i] {
		case '"':
			i = endOfString(data, i) - 1
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
}
