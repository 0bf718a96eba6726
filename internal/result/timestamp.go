package result

import (
	"errors"
	"strings"
	"time"
)

// parseTime takes what RFC 3339 (section 5.6) allows, save a leap second and
// lower-case letters, and refuses what it would have to cut off or could not
// write again. Neither time.Parse nor UnmarshalText is that strict: both take a
// comma, hours of one digit and offsets beyond a day (go.dev/issue/54580).
func parseTime(s string) (time.Time, error) {
	if !isTimeShaped(s) {
		return time.Time{}, errors.New("not in the form of RFC 3339")
	}
	t, err := time.Parse(time.RFC3339Nano, s) // checks the ranges and the calendar
	if err != nil {
		return time.Time{}, err
	}
	t = t.UTC()
	_, err = t.MarshalText() // the offset can carry it out of the years that have four digits
	return t, err
}

func isTimeShaped(s string) bool {
	const seconds = "0000-00-00T00:00:00"
	if len(s) <= len(seconds) || !hasShape(s[:len(seconds)], seconds) {
		return false
	}
	s = s[len(seconds):]
	if fraction, ok := strings.CutPrefix(s, "."); ok {
		s = strings.TrimLeft(fraction, "0123456789")
		if digits := len(fraction) - len(s); digits < 1 || digits > 9 {
			return false
		}
	}
	return s == "Z" || isOffset(s)
}

// isOffset takes -23:59 to +23:59.
func isOffset(s string) bool {
	return (hasShape(s, "+00:00") || hasShape(s, "-00:00")) && s[1:3] <= "23" && s[4:] <= "59"
}

// hasShape compares s with shape, in which 0 stands for any digit.
func hasShape(s, shape string) bool {
	if len(s) != len(shape) {
		return false
	}
	for i := range len(s) {
		isDigit := '0' <= s[i] && s[i] <= '9'
		if shape[i] == '0' && !isDigit || shape[i] != '0' && s[i] != shape[i] {
			return false
		}
	}
	return true
}
