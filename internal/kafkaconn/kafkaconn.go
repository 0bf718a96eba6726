// Package kafkaconn makes connections to Kafka: brokers, TLS and SASL.
//
// Every secret comes from a file or the environment. Files are read anew for
// every connection, so that a certificate, password or token that was replaced
// is in use without a restart.
package kafkaconn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// Config says how to reach Kafka.
type Config struct {
	Brokers  []string
	ClientID string

	TLS           bool
	CAFile        string // PEM; empty: the system's
	CertFile      string // PEM; client certificate, with KeyFile
	KeyFile       string
	TLSServerName string // empty: the broker's host

	SASL         string // "", plain, scram-sha-256, scram-sha-512, oauthbearer
	Username     string
	Password     string // from the environment; PasswordFile wins
	PasswordFile string
	TokenFile    string // oauthbearer
}

// Options returns the client options, after reading every file once so that a
// wrong path ends the start and not the first connection.
func (c Config) Options() ([]kgo.Opt, error) {
	if len(c.Brokers) == 0 {
		return nil, errors.New("no brokers: give --brokers host:port[,host:port]")
	}
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...), kgo.ClientID(c.ClientID),
		kgo.MetadataMinAge(250 * time.Millisecond), // the default of 5 s would be waited for after a topic was made or a leader moved
	}
	if c.CAFile != "" || c.CertFile != "" || c.KeyFile != "" || c.TLSServerName != "" {
		c.TLS = true
	}
	if c.TLS {
		if _, err := c.tlsConfig("localhost"); err != nil {
			return nil, err
		}
		opts = append(opts, kgo.Dialer(c.dialTLS))
	}
	mechanism, err := c.mechanism()
	if err != nil {
		return nil, err
	}
	if mechanism != nil {
		opts = append(opts, kgo.SASL(mechanism))
	}
	return opts, nil
}

func (c Config) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial Kafka: %w", err)
	}
	cfg, err := c.tlsConfig(host)
	if err != nil {
		return nil, err
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: cfg}
	conn, err := d.DialContext(ctx, network, addr)
	var untrusted *tls.CertificateVerificationError
	if errors.As(err, &untrusted) {
		return nil, fmt.Errorf("the certificate of %s is not trusted (see --kafka-ca-file and --kafka-tls-server-name): %w", addr, err)
	}
	return conn, err
}

func (c Config) tlsConfig(host string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if c.TLSServerName != "" {
		cfg.ServerName = c.TLSServerName
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the CA certificates (--kafka-ca-file): %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the CA file %s holds no PEM certificate", c.CAFile)
		}
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, errors.New("a client certificate needs both --kafka-cert-file and --kafka-key-file")
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read the client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

func (c Config) mechanism() (sasl.Mechanism, error) {
	if c.SASL == "" {
		return nil, nil
	}
	if c.SASL == "oauthbearer" {
		if c.TokenFile == "" {
			return nil, errors.New("--kafka-sasl oauthbearer needs --kafka-token-file")
		}
		_, err := c.token()
		return oauth.Oauth(func(context.Context) (oauth.Auth, error) {
			token, err := c.token()
			return oauth.Auth{Token: token}, err
		}), err
	}
	if c.Username == "" {
		return nil, fmt.Errorf("--kafka-sasl %s needs --kafka-username", c.SASL)
	}
	if _, err := c.password(); err != nil {
		return nil, err
	}
	scramAuth := func(context.Context) (scram.Auth, error) {
		pass, err := c.password()
		return scram.Auth{User: c.Username, Pass: pass}, err
	}
	switch c.SASL {
	case "plain":
		return plain.Plain(func(context.Context) (plain.Auth, error) {
			pass, err := c.password()
			return plain.Auth{User: c.Username, Pass: pass}, err
		}), nil
	case "scram-sha-256":
		return scram.Sha256(scramAuth), nil
	case "scram-sha-512":
		return scram.Sha512(scramAuth), nil
	}
	return nil, fmt.Errorf("unknown SASL mechanism %q: plain, scram-sha-256, scram-sha-512 or oauthbearer", c.SASL)
}

func (c Config) password() (string, error) {
	if c.PasswordFile != "" {
		return readSecret(c.PasswordFile, "--kafka-password-file")
	}
	if c.Password == "" {
		return "", fmt.Errorf("--kafka-sasl %s needs a password: --kafka-password-file, or SIDECAR_KAFKA_PASSWORD in the environment", c.SASL)
	}
	return c.Password, nil
}

func (c Config) token() (string, error) { return readSecret(c.TokenFile, "--kafka-token-file") }

// readSecret reads a file's text without the line end that editors add.
func readSecret(path, flag string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", flag, err)
	}
	secret := strings.TrimRight(string(text), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("%s: the file %s is empty", flag, path)
	}
	return secret, nil
}
