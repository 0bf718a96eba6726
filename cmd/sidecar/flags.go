package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/kafkaconn"
	"workflow-results-sidecar/internal/publisher"
)

// socketFlag is shared by all commands that speak to a running sidecar.
type socketFlag struct {
	Socket string `help:"Unix socket of the sidecar." default:"/run/workflow-results/sidecar.sock" placeholder:"PATH"`
}

type dataFlags struct {
	DataDir        string `help:"Directory of the outbox, of one sidecar alone." default:"/var/lib/workflow-results" placeholder:"DIR"`
	AllowNetworkFS bool   `help:"Accept a data directory on a network file system." name:"allow-network-fs"`
}

type kafkaFlags struct {
	Brokers            []string `help:"Kafka brokers, host:port." default:"127.0.0.1:9092" placeholder:"HOST:PORT"`
	KafkaTLS           bool     `help:"Use TLS." name:"kafka-tls"`
	KafkaCAFile        string   `help:"CA certificates (PEM)." name:"kafka-ca-file" placeholder:"FILE"`
	KafkaCertFile      string   `help:"Client certificate (PEM)." name:"kafka-cert-file" placeholder:"FILE"`
	KafkaKeyFile       string   `help:"Client key (PEM)." name:"kafka-key-file" placeholder:"FILE"`
	KafkaTLSServerName string   `help:"Name that the brokers' certificates carry, if not their host." name:"kafka-tls-server-name" placeholder:"NAME"`
	KafkaSASL          string   `help:"SASL mechanism: plain, scram-sha-256, scram-sha-512, oauthbearer." name:"kafka-sasl" enum:",plain,scram-sha-256,scram-sha-512,oauthbearer" default:"" placeholder:"MECHANISM"`
	KafkaUsername      string   `help:"SASL user." placeholder:"NAME"`
	KafkaPasswordFile  string   `help:"File with the SASL password; or set SIDECAR_KAFKA_PASSWORD." placeholder:"FILE"`
	KafkaTokenFile     string   `help:"File with the OAUTHBEARER token." placeholder:"FILE"`
}

func (f kafkaFlags) config() kafkaconn.Config {
	return kafkaconn.Config{
		Brokers: f.Brokers, ClientID: "workflow-results-sidecar",
		TLS: f.KafkaTLS, CAFile: f.KafkaCAFile, CertFile: f.KafkaCertFile, KeyFile: f.KafkaKeyFile, TLSServerName: f.KafkaTLSServerName,
		SASL: f.KafkaSASL, Username: f.KafkaUsername, Password: os.Getenv("SIDECAR_KAFKA_PASSWORD"), PasswordFile: f.KafkaPasswordFile, TokenFile: f.KafkaTokenFile,
	}
}

type topicFlags struct {
	Topic                  string        `help:"Topic of the results; the watermarks are in TOPIC-watermarks." default:"workflow-results"`
	TopicPartitions        int32         `help:"Partitions, where the topic is made." default:"6"`
	TopicReplicationFactor int16         `help:"Replication factor, where the topic is made; -1 is the broker's default." default:"-1"`
	TopicRetention         time.Duration `help:"retention.ms asked of the topic." default:"168h"`
	TopicMaxMessageBytes   int64         `help:"max.message.bytes asked of the topic." default:"1048588"`
	TopicCompression       string        `help:"compression.type asked of the topic." default:"producer"`
	TopicMinInsyncReplicas int           `help:"min.insync.replicas asked of the topic; 0 asks for none." default:"0"`
}

func (f topicFlags) specs() (results, watermarks publisher.TopicSpec) {
	configs := map[string]string{
		"retention.ms":      strconv.FormatInt(f.TopicRetention.Milliseconds(), 10),
		"max.message.bytes": strconv.FormatInt(f.TopicMaxMessageBytes, 10),
		"compression.type":  f.TopicCompression,
	}
	if f.TopicMinInsyncReplicas > 0 {
		configs["min.insync.replicas"] = strconv.Itoa(f.TopicMinInsyncReplicas)
	}
	results = publisher.ResultsTopic(f.Topic, f.TopicPartitions, f.TopicReplicationFactor, configs)
	return results, publisher.WatermarksTopic(results)
}

func (f topicFlags) validate() error {
	if f.Topic == "" || f.TopicPartitions < 1 || f.TopicReplicationFactor == 0 || f.TopicReplicationFactor < -1 || f.TopicRetention < 0 || f.TopicMaxMessageBytes < 1024 {
		return usage("the topic needs a name, 1 or more partitions, a replication factor of 1 or more (or -1), a retention of 0 or more and max.message.bytes of 1024 or more")
	}
	return nil
}

type logFlags struct {
	LogFormat string     `help:"text or json." enum:"text,json" default:"text"`
	LogLevel  slog.Level `help:"debug, info, warn or error." default:"info"`
}

func (f logFlags) logger(w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: f.LogLevel}
	if f.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// parseID reads a UUID argument.
func parseID(what, text string) (uuid.UUID, error) {
	id, err := uuid.Parse(strings.TrimSpace(text))
	if err != nil {
		return id, usage("%s %q is not a UUID, such as 0192f0c1-7b1e-7cc3-9d2a-0123456789ab", what, text)
	}
	return id, nil
}

// bytesText writes a number of bytes for people.
func bytesText(n int64) string {
	const units = "KMGT"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}
