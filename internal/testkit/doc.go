// Package testkit starts the real parts that tests need: an Apache Kafka broker,
// a kfake cluster, the sidecar's own binary, a load of results, and the count of
// what came out in Kafka.
//
// It promises that nothing it starts outlives the test binary, not even one that
// is killed; that it waits for events and never for a clock; and that the logs of
// what it started are in the output of a test that failed.
//
// A real broker needs Java 17 and Kafka's jars (`make kafka`). Tests that start
// one carry the build tag `kafka`, so that `go test ./...` works without Java;
// `go test -tags kafka ./...` runs them, and fails, never skips, without the jars.
//
// A package that calls Build or SharedKafka hands its TestMain to Main:
//
//	func TestMain(m *testing.M) { testkit.Main(m) }
package testkit
