//go:build !noembeddedbroker

package main

import (
	"fmt"
	"net"
	"strconv"

	"github.com/twmb/franz-go/pkg/kfake"
)

// startEmbeddedBroker starts an in-process broker that speaks Kafka's protocol
// and forgets everything when the process ends.
func startEmbeddedBroker(brokers []string) (stop func(), err error) {
	if len(brokers) != 1 {
		return func() {}, usage("--embedded-broker takes one --brokers address, 127.0.0.1:PORT")
	}
	host, text, err := net.SplitHostPort(brokers[0])
	port, portErr := strconv.Atoi(text)
	if err != nil || portErr != nil || (host != "127.0.0.1" && host != "localhost") {
		return func() {}, usage("--embedded-broker listens on 127.0.0.1 alone: give --brokers 127.0.0.1:PORT, not %q", brokers[0])
	}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(port))
	if err != nil {
		return func() {}, fmt.Errorf("start the embedded broker at %s: %w", brokers[0], err)
	}
	return cluster.Close, nil
}
