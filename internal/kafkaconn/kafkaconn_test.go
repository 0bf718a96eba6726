package kafkaconn

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kslog"

	"workflow-results-sidecar/internal/testkit"
)

const secret = "s3cret-that-nobody-may-see"

// broker is a fake cluster, and the configuration that reaches it so far.
func broker(t *testing.T, opts ...kfake.Opt) Config {
	t.Helper()
	return Config{Brokers: []string{testkit.StartFake(t, opts...).Addr()}, ClientID: "test"}
}

// log collects what the client logs, at debug level.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// client connects as the sidecar does. Whatever it logs holds no secret.
func client(t *testing.T, c Config) *kgo.Client {
	t.Helper()
	opts, err := c.Options()
	if err != nil {
		t.Fatal(err)
	}
	var l log
	logger := slog.New(slog.NewTextHandler(&l, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cl, err := kgo.NewClient(append(opts, kgo.WithLogger(kslog.New(logger)), kgo.RetryTimeout(2*time.Second))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cl.Close()
		if strings.Contains(l.text.String(), secret) {
			t.Error("the client's log holds a secret")
		}
	})
	return cl
}

func ping(t *testing.T, cl *kgo.Client) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := cl.Ping(ctx)
	if err != nil && strings.Contains(err.Error(), secret) {
		t.Errorf("the error holds a secret: %v", err)
	}
	return err
}

func reaches(t *testing.T, c Config) {
	t.Helper()
	if err := ping(t, client(t, c)); err != nil {
		t.Errorf("does not reach the broker: %v", err)
	}
}

// fails expects an error that holds each of the words.
func fails(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Error("no error")
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q is not in: %v", w, err)
		}
	}
}

func TestTLS(t *testing.T) {
	ca := testkit.NewAuthority(t)
	c := broker(t, kfake.TLS(ca.Server()))
	c.CAFile = file(t, "ca.pem", ca.PEM())
	reaches(t, c)

	c.TLSServerName = "kafka.test"
	reaches(t, c)

	c.TLSServerName = "other.test"
	fails(t, ping(t, client(t, c)), "not trusted", "--kafka-tls-server-name", "other.test")

	c.TLSServerName, c.CAFile = "", file(t, "ca.pem", testkit.NewAuthority(t).PEM())
	fails(t, ping(t, client(t, c)), "not trusted", "--kafka-ca-file", "unknown authority")

	c.CAFile, c.TLS = "", true // the system's authorities
	fails(t, ping(t, client(t, c)), "not trusted")
}

func TestClientCertificate(t *testing.T) {
	ca := testkit.NewAuthority(t)
	server := ca.Server()
	server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, ca.Pool()
	c := broker(t, kfake.TLS(server))
	c.CAFile = file(t, "ca.pem", ca.PEM())
	if err := ping(t, client(t, c)); err == nil {
		t.Error("reaches the broker without a client certificate")
	}
	cert, key := ca.Issue("sidecar")
	c.CertFile, c.KeyFile = file(t, "cert.pem", cert), file(t, "key.pem", key)
	reaches(t, c)
}

func TestPasswords(t *testing.T) {
	for mechanism, name := range map[string]string{"plain": "PLAIN", "scram-sha-256": "SCRAM-SHA-256", "scram-sha-512": "SCRAM-SHA-512"} {
		t.Run(mechanism, func(t *testing.T) {
			c := broker(t, kfake.EnableSASL(), kfake.Superuser(name, "sidecar", secret))
			c.SASL, c.Username, c.Password = mechanism, "sidecar", secret
			reaches(t, c)
			c.Password, c.PasswordFile = "not used", file(t, "password", []byte(secret+"\n")) // an editor's line end
			reaches(t, c)
			c.PasswordFile = ""
			if err := ping(t, client(t, c)); err == nil {
				t.Error("a wrong password reaches the broker")
			}
			c.Password, c.Username = secret, "stranger"
			if err := ping(t, client(t, c)); err == nil {
				t.Error("a wrong user reaches the broker")
			}
		})
	}
}

// becomes waits until the same client reaches the broker.
func becomes(t *testing.T, cl *kgo.Client) {
	t.Helper()
	limit := time.Now().Add(30 * time.Second)
	var err error
	for time.Now().Before(limit) {
		if err = ping(t, cl); err == nil {
			return
		}
	}
	t.Errorf("does not come to reach the broker: %v", err)
}

func TestPasswordFileIsReadAgain(t *testing.T) {
	c := broker(t, kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "sidecar", secret))
	c.SASL, c.Username, c.PasswordFile = "scram-sha-512", "sidecar", file(t, "password", []byte("old"))
	cl := client(t, c)
	if err := ping(t, cl); err == nil {
		t.Fatal("a wrong password reaches the broker")
	}
	for _, broken := range [][]byte{{}, []byte("\n")} { // half-written
		replace(t, c.PasswordFile, broken)
		fails(t, ping(t, cl), "--kafka-password-file", "empty")
	}
	if err := os.Remove(c.PasswordFile); err != nil {
		t.Fatal(err)
	}
	fails(t, ping(t, cl), "--kafka-password-file", "no such file")
	replace(t, c.PasswordFile, []byte(secret))
	becomes(t, cl)
}

func TestCertificatesAreReadAgain(t *testing.T) {
	ca, old := testkit.NewAuthority(t), testkit.NewAuthority(t)
	server := ca.Server()
	server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, ca.Pool()
	c := broker(t, kfake.TLS(server))
	cert, key := old.Issue("sidecar")
	c.CAFile, c.CertFile, c.KeyFile = file(t, "ca.pem", old.PEM()), file(t, "cert.pem", cert), file(t, "key.pem", key)
	cl := client(t, c)
	fails(t, ping(t, cl), "not trusted")
	replace(t, c.CAFile, []byte("half a fi"))
	fails(t, ping(t, cl), c.CAFile, "no PEM certificate")
	replace(t, c.CAFile, ca.PEM())
	if err := ping(t, cl); err == nil {
		t.Fatal("a client certificate of another authority reaches the broker")
	}
	cert, key = ca.Issue("sidecar")
	replace(t, c.CertFile, cert)
	fails(t, ping(t, cl), "client certificate") // it does not fit the old key
	replace(t, c.KeyFile, key)
	becomes(t, cl)
}

func TestWhatIsWrongIsToldAtTheStart(t *testing.T) {
	cert, key := testkit.NewAuthority(t).Issue("sidecar")
	ok, okKey := file(t, "cert.pem", cert), file(t, "key.pem", key)
	empty, missing := file(t, "empty", nil), t.TempDir()+"/missing"
	for name, c := range map[string]struct {
		config Config
		words  []string
	}{
		"no brokers":           {Config{Brokers: nil}, []string{"--brokers"}},
		"no CA file":           {Config{CAFile: missing}, []string{"--kafka-ca-file", missing}},
		"an empty CA file":     {Config{CAFile: empty}, []string{empty, "PEM"}},
		"no key":               {Config{CertFile: ok}, []string{"--kafka-key-file"}},
		"no certificate":       {Config{KeyFile: okKey}, []string{"--kafka-cert-file"}},
		"a wrong key":          {Config{CertFile: ok, KeyFile: ok}, []string{"client certificate"}},
		"no user":              {Config{SASL: "plain", Password: secret}, []string{"--kafka-username"}},
		"no password":          {Config{SASL: "plain", Username: "u"}, []string{"--kafka-password-file", "SIDECAR_KAFKA_PASSWORD"}},
		"no password file":     {Config{SASL: "plain", Username: "u", PasswordFile: missing}, []string{"--kafka-password-file", missing}},
		"an empty password":    {Config{SASL: "plain", Username: "u", PasswordFile: empty}, []string{"--kafka-password-file", "empty"}},
		"no token file":        {Config{SASL: "oauthbearer"}, []string{"--kafka-token-file"}},
		"a missing token":      {Config{SASL: "oauthbearer", TokenFile: missing}, []string{"--kafka-token-file", missing}},
		"an unknown mechanism": {Config{SASL: "gssapi", Username: "u", Password: secret}, []string{"gssapi", "scram-sha-512"}},
	} {
		t.Run(name, func(t *testing.T) {
			if name != "no brokers" {
				c.config.Brokers = []string{"127.0.0.1:1"}
			}
			_, err := c.config.Options()
			fails(t, err, c.words...)
			if strings.Contains(fmt.Sprint(err), secret) {
				t.Errorf("the error holds the password: %v", err)
			}
		})
	}
}

// file writes content into a file of the test.
func file(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	replace(t, path, content)
	return path
}

// replace puts a whole new file into place, as a mounted secret is replaced.
func replace(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}
