//go:build race

package testkit

// raceEnabled: the tests run with the race detector, so the binary gets it too.
const raceEnabled = true
