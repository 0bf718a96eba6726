package testkit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// readyTimeout bounds a broker's start on a slow, busy machine.
const readyTimeout = 2 * time.Minute

// KafkaOption changes how a broker is set up.
type KafkaOption func(*kafkaConfig)

type kafkaConfig struct {
	properties []string
	release    string
	secure     *Authority
	proxied    bool
	node       int      // of a cluster, from 1
	voters     []string // the controllers of a cluster, host:port, by node
}

// WithProperties adds lines to server.properties; a later line wins over ours.
// For instance "transaction.abort.timed.out.transaction.cleanup.interval.ms=1000".
func WithProperties(lines ...string) KafkaOption {
	return func(c *kafkaConfig) { c.properties = append(c.properties, lines...) }
}

// WithRelease formats the storage for the features of an older Kafka, for
// instance "3.9-IV0" (metadata.version); the default is the broker's own.
func WithRelease(version string) KafkaOption {
	return func(c *kafkaConfig) { c.release = version }
}

// WithSecurity adds a listener with TLS, client certificates and SASL: PLAIN for
// User:plain, whose password is SASLPassword, and whatever SCRAM users a test
// makes and OAUTHBEARER tokens (unsigned) it writes. Who comes through it may do
// only what access control lists say; the plain listener may do everything.
func WithSecurity(a *Authority) KafkaOption {
	return func(c *kafkaConfig) { c.secure = a }
}

// WithProxy adds a listener whose advertised address is a Proxy's, which begins
// with the broker: clients that come through it stay on it.
func WithProxy() KafkaOption {
	return func(c *kafkaConfig) { c.proxied = true }
}

// SASLPassword is the password of User:plain.
const SASLPassword = "plain-s3cret"

// Kafka is a real broker: Apache Kafka, one KRaft node on 127.0.0.1, automatic
// topics off, its data in a directory that goes with the test.
type Kafka struct {
	dir        string
	libs       string
	addr       string
	controller string
	secure     string
	behind     string // the listener behind the proxy
	front      string // the proxy's address
	proxy      *Proxy
	out        *output
	proc       *Process // nil while it is stopped
}

// StartKafka formats and starts a broker, and returns when it serves metadata
// and transactions. The broker ends with the test.
func StartKafka(t testing.TB, opts ...KafkaOption) *Kafka {
	t.Helper()
	k := layOut(t, opts)
	if err := k.start(); err != nil {
		t.Fatal(err)
	}
	return k
}

// StartCluster starts so many brokers, each a controller too, whose topics have
// as many replicas by default and take writes while one broker is away.
func StartCluster(t testing.TB, n int, opts ...KafkaOption) []*Kafka {
	t.Helper()
	voters, err := freePorts(n)
	if err != nil {
		t.Fatal(err)
	}
	replicas := strconv.Itoa(n)
	insync := strconv.Itoa(n - 1)
	brokers := make([]*Kafka, n)
	for i := range n {
		brokers[i] = layOut(t, append([]KafkaOption{
			func(c *kafkaConfig) { c.node, c.voters = i+1, voters },
			WithProperties("default.replication.factor="+replicas, "min.insync.replicas="+insync,
				"offsets.topic.replication.factor="+replicas, "transaction.state.log.replication.factor="+replicas,
				"transaction.state.log.min.isr="+insync),
		}, opts...))
	}
	for _, k := range brokers { // none is ready before most are there
		if err := k.launch(); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range brokers {
		if err := k.awaitReady(); err != nil {
			t.Fatal(err)
		}
	}
	return brokers
}

// layOut makes a broker that ends with the test, and its proxy; it is not started.
func layOut(t testing.TB, opts []KafkaOption) *Kafka {
	t.Helper()
	k, err := newKafka(t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	showOnFailure(t, "Kafka", k.out)
	t.Cleanup(k.end)
	if k.front != "" {
		k.proxy = StartProxy(t, k.front, k.behind)
	}
	return k
}

// Addr is the broker's host:port; it stays the same over restarts.
func (k *Kafka) Addr() string { return k.addr }

// PID is the process ID of the running broker.
func (k *Kafka) PID(t testing.TB) int { t.Helper(); return k.running(t).PID() }

// Proxy stands before the broker; only with WithProxy.
func (k *Kafka) Proxy() *Proxy { return k.proxy }

// SecureAddr is the host:port of the listener of WithSecurity.
func (k *Kafka) SecureAddr() string { return k.secure }

// Client makes a client of the broker that is closed with test t.
func (k *Kafka) Client(t testing.TB, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	return newClient(t, []string{k.addr}, opts)
}

// CreateTopic makes a topic with the broker's default of replicas; configs are key, value, key, value.
func (k *Kafka) CreateTopic(t testing.TB, topic string, partitions int32, configs ...string) {
	t.Helper()
	createTopic(t, []string{k.addr}, topic, partitions, configs)
}

// Start starts a stopped or killed broker again, on the same port and data.
func (k *Kafka) Start(t testing.TB) {
	t.Helper()
	if k.proc != nil {
		t.Fatal("Kafka runs already")
	}
	if err := k.start(); err != nil {
		t.Fatal(err)
	}
}

// Stop ends the broker in an orderly way (SIGTERM) and waits for it.
func (k *Kafka) Stop(t testing.TB) {
	t.Helper()
	k.running(t).Term(t)
	k.proc.Wait(t)
	k.proc = nil
}

// Kill ends the broker at once (SIGKILL).
func (k *Kafka) Kill(t testing.TB) {
	t.Helper()
	k.running(t).Kill(t)
	k.proc = nil
}

// Pause freezes the broker (SIGSTOP): connections stay open and nothing answers.
func (k *Kafka) Pause(t testing.TB) { t.Helper(); k.running(t).Pause(t) }

// Resume ends a Pause.
func (k *Kafka) Resume(t testing.TB) { t.Helper(); k.running(t).Resume(t) }

func (k *Kafka) running(t testing.TB) *Process {
	t.Helper()
	if k.proc == nil {
		t.Fatal("Kafka does not run")
	}
	return k.proc
}

func (k *Kafka) end() {
	if k.proc != nil {
		k.proc.end()
		k.proc = nil
	}
}

// newKafka lays out a broker's directory and formats its storage.
func newKafka(dir string, opts []KafkaOption) (*Kafka, error) {
	var cfg kafkaConfig
	for _, opt := range opts {
		opt(&cfg)
	}
	libs, err := kafkaLibs()
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(5)
	if err != nil {
		return nil, err
	}
	k := &Kafka{dir: dir, libs: libs, addr: ports[0], controller: ports[1], secure: ports[2], out: &output{}}
	if cfg.voters != nil {
		k.controller = cfg.voters[cfg.node-1]
	}
	if cfg.proxied {
		k.behind, k.front = ports[3], ports[4]
		cfg.properties = append([]string{
			"listeners=PLAINTEXT://" + k.addr + ",PROXIED://" + k.behind + ",CONTROLLER://" + k.controller,
			"advertised.listeners=PLAINTEXT://" + k.addr + ",PROXIED://" + k.front,
			"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT",
		}, cfg.properties...)
	}
	if cfg.secure != nil {
		lines, err := k.securityProperties(cfg.secure)
		if err != nil {
			return nil, err
		}
		cfg.properties = append(lines, cfg.properties...)
	}
	if err := os.WriteFile(k.propertiesFile(), []byte(k.properties(cfg)), 0o600); err != nil {
		return nil, fmt.Errorf("write Kafka's settings: %w", err)
	}
	return k, k.format(cfg)
}

func (k *Kafka) propertiesFile() string { return filepath.Join(k.dir, "server.properties") }

func (k *Kafka) properties(cfg kafkaConfig) string {
	node, voters := max(cfg.node, 1), []string{"1@" + k.controller}
	if cfg.voters != nil {
		voters = nil
		for i, addr := range cfg.voters {
			voters = append(voters, fmt.Sprintf("%d@%s", i+1, addr))
		}
	}
	return strings.Join(append([]string{
		"process.roles=broker,controller",
		"node.id=" + strconv.Itoa(node),
		"controller.quorum.voters=" + strings.Join(voters, ","),
		"listeners=PLAINTEXT://" + k.addr + ",CONTROLLER://" + k.controller,
		"advertised.listeners=PLAINTEXT://" + k.addr,
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"inter.broker.listener.name=PLAINTEXT",
		"controller.listener.names=CONTROLLER",
		"log.dirs=" + filepath.Join(k.dir, "data"),
		"auto.create.topics.enable=false",
		"offsets.topic.replication.factor=1",
		"offsets.topic.num.partitions=1",
		"transaction.state.log.replication.factor=1",
		"transaction.state.log.min.isr=1",
		"transaction.state.log.num.partitions=3",
		"group.initial.rebalance.delay.ms=0",
		"log.cleaner.dedupe.buffer.size=16777216",
		"num.network.threads=2",
		"num.io.threads=4",
	}, append(cfg.properties, "")...), "\n")
}

func (k *Kafka) securityProperties(a *Authority) ([]string, error) {
	keystore, truststore := filepath.Join(k.dir, "broker.pem"), filepath.Join(k.dir, "ca.pem")
	cert, key := a.Issue("broker")
	if err := errors.Join(os.WriteFile(keystore, append(key, cert...), 0o600), os.WriteFile(truststore, a.PEM(), 0o600)); err != nil {
		return nil, fmt.Errorf("write Kafka's certificates: %w", err)
	}
	const modules = "org.apache.kafka.common.security."
	const listener = "listener.name.secure."
	return []string{
		"listeners=PLAINTEXT://" + k.addr + ",SECURE://" + k.secure + ",CONTROLLER://" + k.controller,
		"advertised.listeners=PLAINTEXT://" + k.addr + ",SECURE://" + k.secure,
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL",
		listener + "ssl.keystore.type=PEM", listener + "ssl.keystore.location=" + keystore,
		listener + "ssl.truststore.type=PEM", listener + "ssl.truststore.location=" + truststore,
		listener + "ssl.client.auth=required",
		listener + "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
		listener + "plain.sasl.jaas.config=" + modules + `plain.PlainLoginModule required user_plain="` + SASLPassword + `";`,
		listener + "scram-sha-256.sasl.jaas.config=" + modules + "scram.ScramLoginModule required;",
		listener + "scram-sha-512.sasl.jaas.config=" + modules + "scram.ScramLoginModule required;",
		listener + "oauthbearer.sasl.jaas.config=" + modules + `oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";`,
		"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users=User:ANONYMOUS",
	}, nil
}

func (k *Kafka) format(cfg kafkaConfig) error {
	args := []string{"-Xmx128m", "-cp", filepath.Join(k.libs, "*"), "kafka.tools.StorageTool", "format",
		"--cluster-id", "dGVzdGtpdC1jbHVzdGVyIQ", "--config", k.propertiesFile()}
	if cfg.release != "" {
		args = append(args, "--release-version", cfg.release)
	}
	if out, err := exec.Command("java", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("format Kafka's storage: %w\n%s", err, out)
	}
	return nil
}

func (k *Kafka) start() error {
	if err := k.launch(); err != nil {
		return err
	}
	return k.awaitReady()
}

func (k *Kafka) launch() error {
	cmd := exec.Command("java", "-Xms128m", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
		"-cp", filepath.Join(k.libs, "*"), "kafka.Kafka", k.propertiesFile())
	cmd.Dir = k.dir
	proc, err := startProcess("Kafka", cmd, k.out)
	if err != nil {
		return err
	}
	k.proc = proc
	return nil
}

func (k *Kafka) awaitReady() error {
	proc := k.proc
	ctx, cancel := context.WithTimeoutCause(context.Background(), readyTimeout, fmt.Errorf("not ready after %s", readyTimeout))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case <-proc.Done():
			stop(errEnded)
		case <-ctx.Done():
		}
	}()
	if err := poll(ctx, k.probe); err != nil {
		k.end()
		return fmt.Errorf("start Kafka on %s: %w\n%s", k.addr, err, k.out.tail(8<<10))
	}
	return nil
}

// probe makes the requests that tests begin with: metadata, and a transactional
// producer's ID, for which the broker first makes its transaction log.
func (k *Kafka) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.addr), kgo.RequestRetries(0), kgo.DialTimeout(time.Second))
	if err != nil {
		return err
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).BrokerMetadata(ctx); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID = kmsg.StringPtr("testkit-probe")
	req.TransactionTimeoutMillis = 1000
	resp, err := req.RequestWith(ctx, cl)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return fmt.Errorf("producer ID of a transaction: %w", err)
	}
	return nil
}

// kafkaLibs finds Kafka's jars and Java, or says how to get them.
func kafkaLibs() (string, error) {
	dir := os.Getenv("KAFKA_LIBS")
	if dir == "" {
		root, err := moduleRoot()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(root, ".cache", "kafka", "libs")
	}
	jars, err := filepath.Glob(filepath.Join(dir, "kafka_*.jar"))
	if err != nil || len(jars) == 0 {
		return "", fmt.Errorf("no Kafka in %s: run `make kafka`, or set KAFKA_LIBS to a directory with its jars", dir)
	}
	if _, err := exec.LookPath("java"); err != nil {
		return "", fmt.Errorf("Kafka needs Java 17: apt-get install openjdk-17-jre-headless: %w", err)
	}
	return dir, nil
}

// moduleRoot is the directory of the product's go.mod; go test runs in the
// package's, which may be of a module of its own.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	for {
		if text, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && strings.HasPrefix(string(text), "module workflow-results-sidecar\n") {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find the module: no go.mod of workflow-results-sidecar in this directory or above")
		}
		dir = parent
	}
}

// FreeAddr is an address on 127.0.0.1 that nobody listens on.
func FreeAddr(t testing.TB) string {
	t.Helper()
	found, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return found[0]
}

// freePorts finds n free loopback ports, below the range from which the kernel
// gives ports to outgoing connections: a stopped broker's port stays free.
func freePorts(n int) ([]string, error) {
	var found []string
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		defer l.Close() // held until all are found: none is found twice
		if found = append(found, addr); len(found) == n {
			return found, nil
		}
	}
	return nil, fmt.Errorf("found no %d free ports on 127.0.0.1", n)
}
