package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/pflag"

	"workflow-results-sidecar/internal/kafkaconn"
	"workflow-results-sidecar/internal/publisher"
	"workflow-results-sidecar/internal/tracing"
)

// socketFlag is shared by all commands that speak to a running sidecar.
type socketFlag struct {
	Socket string
}

func (f *socketFlag) bind(flags *pflag.FlagSet) {
	flags.StringVar(&f.Socket, "socket", "/run/workflow-results/sidecar.sock", "`PATH` of the sidecar's Unix socket")
}

type dataFlags struct {
	DataDir        string
	AllowNetworkFS bool
}

func (f *dataFlags) bind(flags *pflag.FlagSet) {
	flags.StringVar(&f.DataDir, "data-dir", "/var/lib/workflow-results", "`DIR` of the outbox, of one sidecar alone")
	flags.BoolVar(&f.AllowNetworkFS, "allow-network-fs", false, "Accept a data directory on a network file system")
}

type kafkaFlags struct {
	Brokers            []string
	KafkaTLS           bool
	KafkaCAFile        string
	KafkaCertFile      string
	KafkaKeyFile       string
	KafkaTLSServerName string
	KafkaSASL          string
	KafkaUsername      string
	KafkaPasswordFile  string
	KafkaTokenFile     string
}

func (f *kafkaFlags) bind(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.Brokers, "brokers", []string{"127.0.0.1:9092"}, "Kafka brokers, each `HOST:PORT`")
	flags.BoolVar(&f.KafkaTLS, "kafka-tls", false, "Use TLS")
	flags.StringVar(&f.KafkaCAFile, "kafka-ca-file", "", "`FILE` with CA certificates (PEM)")
	flags.StringVar(&f.KafkaCertFile, "kafka-cert-file", "", "`FILE` with the client certificate (PEM)")
	flags.StringVar(&f.KafkaKeyFile, "kafka-key-file", "", "`FILE` with the client key (PEM)")
	flags.StringVar(&f.KafkaTLSServerName, "kafka-tls-server-name", "", "`NAME` that the brokers' certificates carry, if not their host")
	enumVar(flags, &f.KafkaSASL, "kafka-sasl", "", "SASL `MECHANISM`: plain, scram-sha-256, scram-sha-512, oauthbearer", "plain", "scram-sha-256", "scram-sha-512", "oauthbearer")
	flags.StringVar(&f.KafkaUsername, "kafka-username", "", "`NAME` of the SASL user")
	flags.StringVar(&f.KafkaPasswordFile, "kafka-password-file", "", "`FILE` with the SASL password; or set SIDECAR_KAFKA_PASSWORD")
	flags.StringVar(&f.KafkaTokenFile, "kafka-token-file", "", "`FILE` with the OAUTHBEARER token")
}

func (f kafkaFlags) config() kafkaconn.Config {
	return kafkaconn.Config{
		Brokers: f.Brokers, ClientID: "workflow-results-sidecar",
		TLS: f.KafkaTLS, CAFile: f.KafkaCAFile, CertFile: f.KafkaCertFile, KeyFile: f.KafkaKeyFile, TLSServerName: f.KafkaTLSServerName,
		SASL: f.KafkaSASL, Username: f.KafkaUsername, Password: os.Getenv("SIDECAR_KAFKA_PASSWORD"), PasswordFile: f.KafkaPasswordFile, TokenFile: f.KafkaTokenFile,
	}
}

type topicFlags struct {
	Topic                  string
	TopicPartitions        int32
	TopicReplicationFactor int16
	TopicRetention         time.Duration
	TopicMaxMessageBytes   int64
	TopicCompression       string
	TopicMinInsyncReplicas int
}

func (f *topicFlags) bind(flags *pflag.FlagSet) {
	flags.StringVar(&f.Topic, "topic", "workflow-results", "Topic of the results; the watermarks are in TOPIC-watermarks")
	flags.Int32Var(&f.TopicPartitions, "topic-partitions", 6, "Partitions, where the topic is made")
	flags.Int16Var(&f.TopicReplicationFactor, "topic-replication-factor", -1, "Replication factor, where the topic is made; -1 is the broker's default")
	flags.DurationVar(&f.TopicRetention, "topic-retention", 168*time.Hour, "retention.ms asked of the topic")
	flags.Int64Var(&f.TopicMaxMessageBytes, "topic-max-message-bytes", 1048588, "max.message.bytes asked of the topic")
	enumVar(flags, &f.TopicCompression, "topic-compression", "producer", "compression.type asked of the topic: producer, uncompressed, gzip, snappy, lz4 or zstd", "producer", "uncompressed", "gzip", "snappy", "lz4", "zstd")
	flags.IntVar(&f.TopicMinInsyncReplicas, "topic-min-insync-replicas", 0, "min.insync.replicas asked of the topic; 0 asks for none")
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

// topicName is what Kafka allows, with room for the name of the watermark topic.
var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,238}$`)

func (f topicFlags) check() error {
	if err := checkTopic(f.Topic); err != nil {
		return err
	}
	if f.TopicReplicationFactor == 0 || f.TopicReplicationFactor < -1 {
		return fmt.Errorf("--topic-replication-factor %d must be 1 or more, or -1 for the broker's default", f.TopicReplicationFactor)
	}
	if f.TopicMaxMessageBytes > math.MaxInt32 {
		return fmt.Errorf("--topic-max-message-bytes %d must be at most %d", f.TopicMaxMessageBytes, math.MaxInt32)
	}
	return errors.Join(
		atLeast("--topic-partitions", f.TopicPartitions, 1),
		atLeast("--topic-retention", f.TopicRetention, 0),
		atLeast("--topic-max-message-bytes", f.TopicMaxMessageBytes, 1024),
		atLeast("--topic-min-insync-replicas", f.TopicMinInsyncReplicas, 0))
}

func checkTopic(name string) error {
	if !topicName.MatchString(name) || name == "." || name == ".." {
		return fmt.Errorf("--topic %q must be 1 to 238 letters, digits, '.', '_' or '-'", name)
	}
	return nil
}

func (f kafkaFlags) check() error {
	for _, b := range f.Brokers {
		if err := hostPort("--brokers", b, 1); err != nil {
			return err
		}
	}
	if f.KafkaSASL == "" && (f.KafkaUsername != "" || f.KafkaPasswordFile != "" || f.KafkaTokenFile != "") {
		return errors.New("--kafka-username, --kafka-password-file and --kafka-token-file need --kafka-sasl: plain, scram-sha-256, scram-sha-512 or oauthbearer")
	}
	return nil
}

// hostPort checks an address of the form host:port.
func hostPort(flag, addr string, lowest uint64) error {
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		var n uint64
		if n, err = strconv.ParseUint(port, 10, 16); err == nil && n >= lowest {
			return nil
		}
	}
	return fmt.Errorf("%s %q must be host:port, such as 127.0.0.1:9092", flag, addr)
}

// atLeast checks one number or duration.
func atLeast[T cmp.Ordered](flag string, got, least T) error {
	if got < least {
		return fmt.Errorf("%s %v must be at least %v", flag, got, least)
	}
	return nil
}

type logFlags struct {
	LogFormat string
	LogLevel  string
}

func (f *logFlags) bind(flags *pflag.FlagSet) {
	enumVar(flags, &f.LogFormat, "log-format", "text", "text or json", "text", "json")
	enumVar(flags, &f.LogLevel, "log-level", "info", "debug, info, warn or error", "debug", "info", "warn", "error")
}

func (f logFlags) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(f.LogLevel)) // one of the four: enum has seen to it
	opts := &slog.HandlerOptions{Level: level}
	if f.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

type tracingFlag struct{ OTLPEndpoint string }

func (f *tracingFlag) bind(flags *pflag.FlagSet) {
	flags.StringVar(&f.OTLPEndpoint, "otlp-endpoint", "", "`URL` of a collector that takes OpenTelemetry traces (OTLP over HTTP), such as http://127.0.0.1:4318; off unless given; the rest is set by the OTEL_* variables, such as OTEL_TRACES_SAMPLER")
}

func (f tracingFlag) check() error {
	if f.OTLPEndpoint == "" {
		return nil
	}
	if u, err := url.Parse(f.OTLPEndpoint); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("--otlp-endpoint %q must be a URL, such as http://127.0.0.1:4318", f.OTLPEndpoint)
	}
	return nil
}

// startTraces returns nil where they are off.
func (f tracingFlag) startTraces(ctx context.Context, log *slog.Logger) (*tracing.Exporter, error) {
	if f.OTLPEndpoint == "" {
		return nil, nil
	}
	endpoint, err := url.Parse(f.OTLPEndpoint)
	if err != nil {
		return nil, fmt.Errorf("--otlp-endpoint: %w", err)
	}
	return tracing.Start(ctx, endpoint, version(), log)
}

// parseID reads a UUID argument.
func parseID(what, text string) (uuid.UUID, error) {
	id, err := uuid.Parse(strings.TrimSpace(text))
	if err != nil {
		return id, usage("%s %q is not a UUID, such as 0192f0c1-7b1e-7cc3-9d2a-0123456789ab", what, text)
	}
	return id, nil
}
