//go:build !race

package testkit

// RaceEnabled is whether the tests run with the race detector, which the binary then gets too.
const RaceEnabled = false
