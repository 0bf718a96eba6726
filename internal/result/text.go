package result

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode/utf16"
)

// unquote decodes a valid JSON string literal; what it returns may be a part of
// raw. It is not exact if an escape names half a surrogate pair, which no UTF-8
// string can hold.
func unquote(raw []byte) (text []byte, exact bool) {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1], true
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, false
	}
	return []byte(s), !hasLoneSurrogate(raw)
}

// hasLoneSurrogate scans a valid JSON string literal, its quotes included: the
// closing one ends a pair that has not come.
func hasLoneSurrogate(raw []byte) bool {
	pending := rune(0) // a high surrogate that waits for its low one
	for i := 0; i < len(raw); i++ {
		unit := rune(0)
		if raw[i] == '\\' {
			i++
			if raw[i] == 'u' {
				unit = hexUnit(raw[i+1 : i+5])
				i += 4
			}
		}
		switch {
		case pending != 0:
			if utf16.DecodeRune(pending, unit) == '\uFFFD' {
				return true
			}
			pending = 0
		case utf16.IsSurrogate(unit):
			pending = unit
		}
	}
	return false
}

// hexUnit reads the four digits of a \u escape.
func hexUnit(digits []byte) rune {
	unit, _ := strconv.ParseUint(string(digits), 16, 16) // digits by the JSON syntax
	return rune(unit)
}
