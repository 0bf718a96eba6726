//go:build noembeddedbroker

package main

// startEmbeddedBroker refuses: an eighth of a binary that runs beside a real Kafka
// need not be a broker for trials.
func startEmbeddedBroker([]string) (stop func(), err error) {
	return func() {}, usage("--embedded-broker: this build, the image's, has no broker in it: take the Python package's binary, or `make build`")
}
