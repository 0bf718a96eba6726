//go:build race

package testkit

// RaceEnabled: the tests run with the race detector, so the binary gets it too.
const RaceEnabled = true
