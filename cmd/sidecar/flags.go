package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/kafkaconn"
	"workflow-results-sidecar/internal/publisher"
)

// socketFlag is shared by all commands that speak to a running sidecar.
type socketFlag struct {
	Socket string `help:"Unix socket of the sidecar (${default})." default:"/run/workflow-results/sidecar.sock" placeholder:"PATH"`
}

type dataFlags struct {
	DataDir        string `help:"Directory of the outbox, of one sidecar alone (${default})." default:"/var/lib/workflow-results" placeholder:"DIR"`
	AllowNetworkFS bool   `help:"Accept a data directory on a network file system." name:"allow-network-fs"`
}

type kafkaFlags struct {
	Brokers            []string `help:"Kafka brokers, host:port (${default})." default:"127.0.0.1:9092" placeholder:"HOST:PORT"`
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
	TopicCompression       string        `help:"compression.type asked of the topic." enum:"producer,uncompressed,gzip,snappy,lz4,zstd" default:"producer"`
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
	LogFormat string `help:"text or json." enum:"text,json" default:"text"`
	LogLevel  string `help:"debug, info, warn or error." enum:"debug,info,warn,error" default:"info"`
}

func (f logFlags) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(f.LogLevel)) // one of the four: kong has seen to it
	opts := &slog.HandlerOptions{Level: level}
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
