//go:build kafka

package test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"

	"workflow-results-sidecar/internal/testkit"
)

// secured is a broker with TLS, SASL and access control.
type secured struct {
	*testkit.Kafka
	t         *testing.T
	authority *testkit.Authority
	adm       *kadm.Client
	tls       []string // flags
}

func startSecured(t *testing.T) *secured {
	t.Helper()
	a := testkit.NewAuthority(t)
	k := testkit.StartKafka(t, testkit.WithSecurity(a))
	s := &secured{Kafka: k, t: t, authority: a, adm: kadm.NewClient(k.Client(t))}
	cert, key := a.Issue("client")
	s.tls = []string{"--kafka-ca-file", s.file("ca", a.PEM()), "--kafka-cert-file", s.file("cert", cert), "--kafka-key-file", s.file("key", key)}
	return s
}

// file makes a file, and replaces it as a mounted secret is replaced.
func (s *secured) file(name string, content []byte) string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), name)
	s.replace(path, content)
	return path
}

func (s *secured) replace(path string, content []byte) {
	s.t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		s.t.Fatal(err)
	}
}

func (s *secured) scramUser(user, password string, mechanism kadm.ScramMechanism) {
	s.t.Helper()
	_, err := s.adm.AlterUserSCRAMs(s.t.Context(), nil, []kadm.UpsertSCRAM{{User: user, Mechanism: mechanism, Iterations: 4096, Password: password}})
	if err != nil {
		s.t.Fatal(err)
	}
}

// token is an unsigned JWT, as the broker's unsecured validator takes it.
func token(user string) []byte {
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err) // maps of strings and numbers
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	now := time.Now().Unix()
	return []byte(part(map[string]any{"alg": "none"}) + "." + part(map[string]any{"sub": user, "iat": now - 10, "exp": now + 3600}) + ".\n")
}

// grant is one access control entry.
type grant struct {
	on string // topic, watermarks or transactional ID
	op kadm.ACLOperation
}

// The least that docs/OPERATIONS.md asks for.
var (
	minimum = []grant{
		{"topic", kadm.OpWrite}, {"topic", kadm.OpCreate}, {"topic", kadm.OpDescribeConfigs},
		{"watermarks", kadm.OpWrite}, {"watermarks", kadm.OpRead}, {"watermarks", kadm.OpCreate}, {"watermarks", kadm.OpDescribeConfigs},
		{"transactional ID", kadm.OpWrite},
	}
	minimumAtLeastOnce = minimum[:3]
)

func without(gs []grant, not ...grant) []grant {
	return slices.DeleteFunc(slices.Clone(gs), func(g grant) bool { return slices.Contains(not, g) })
}

func (s *secured) grant(user, topic string, gs ...grant) {
	s.t.Helper()
	for _, g := range gs {
		rs, err := s.adm.CreateACLs(s.t.Context(), g.acl(user, topic))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, r := range rs {
			if r.Err != nil {
				s.t.Fatal(r.Err, r.ErrMessage)
			}
		}
	}
}

// revoke takes one entry away that grant made.
func (s *secured) revoke(user, topic string, g grant) {
	s.t.Helper()
	gone, err := s.adm.DeleteACLs(s.t.Context(), g.acl(user, topic).AllowHosts())
	if err != nil || len(gone) != 1 || len(gone[0].Deleted) != 1 {
		s.t.Fatalf("take %v away: %+v %v", g, gone, err)
	}
}

func (g grant) acl(user, topic string) *kadm.ACLBuilder {
	b := kadm.NewACLs().Allow("User:" + user).Operations(g.op)
	switch g.on {
	case "topic":
		return b.Topics(topic).ResourcePatternType(kadm.ACLPatternLiteral)
	case "watermarks":
		return b.Topics(topic + "-watermarks").ResourcePatternType(kadm.ACLPatternLiteral)
	default:
		return b.TransactionalIDs(topic + "-").ResourcePatternType(kadm.ACLPatternPrefixed)
	}
}

// newLine is a sidecar that comes through the secure listener.
func (s *secured) newLine(flags ...string) *line {
	return newLine(s.t, s.SecureAddr(), slices.Concat(s.tls, flags)...)
}

// arrived expects what was acknowledged to be in the topic once.
func (s *secured) arrived(l *line, acked []testkit.Acked) {
	s.t.Helper()
	testkit.CheckExactlyOnce(s.t, acked, testkit.Consume(s.t, s.Addr(), l.topic))
}

// post hands results over and returns them.
func (l *line) post(n int) []testkit.Acked {
	l.t.Helper()
	load := testkit.StartLoad(l.t.Context(), l.t, testkit.LoadConfig{Socket: l.socket, Conns: 1, Count: n})
	if err := load.Wait(); err != nil {
		l.t.Fatal(err)
	}
	return load.Acked()
}

// TestSASLMechanisms publishes through TLS, a client certificate and every
// mechanism, with the least rights, and awaits a result likewise.
func TestSASLMechanisms(t *testing.T) {
	s := startSecured(t)
	s.scramUser("scram256", "scram-256-s3cret", kadm.ScramSha256)
	s.scramUser("scram512", "scram-512-s3cret", kadm.ScramSha512)
	for _, c := range []struct {
		mechanism, user, password, token string
		fromEnvironment                  bool
	}{
		{mechanism: "plain", user: "plain", password: testkit.SASLPassword},
		{mechanism: "scram-sha-256", user: "scram256", password: "scram-256-s3cret", fromEnvironment: true},
		{mechanism: "scram-sha-512", user: "scram512", password: "scram-512-s3cret"},
		{mechanism: "oauthbearer", user: "bearer", token: string(token("bearer"))},
	} {
		t.Run(c.mechanism, func(t *testing.T) {
			s := &secured{Kafka: s.Kafka, t: t, authority: s.authority, adm: s.adm, tls: s.tls}
			flags := []string{"--kafka-sasl", c.mechanism}
			env := ""
			switch {
			case c.token != "":
				flags = append(flags, "--kafka-token-file", s.file("token", []byte(c.token)))
			case c.fromEnvironment:
				flags, env = append(flags, "--kafka-username", c.user), c.password
			default:
				flags = append(flags, "--kafka-username", c.user, "--kafka-password-file", s.file("password", []byte(c.password+"\n")))
			}
			l := s.newLine(append(flags, "--log-level", "debug")...)
			if env != "" {
				l.env = []string{"SIDECAR_KAFKA_PASSWORD=" + env}
			}
			s.grant(c.user, l.topic, minimum...)
			p := l.start()
			acked := l.post(20)
			l.drained()
			l.stop(p)
			s.arrived(l, acked)
			for _, secret := range []string{c.password, strings.TrimSpace(c.token)} {
				if secret != "" && strings.Contains(p.Output(), secret) {
					t.Error("a secret stands in the log")
				}
			}

			s.grant(c.user, l.topic, grant{"topic", kadm.OpRead})
			cmd := exec.Command(l.bin, slices.Concat([]string{"await", "--brokers", s.SecureAddr(), "--topic", l.topic, "--correlation-id", acked[7].CorrelationID.String()}, s.tls, flags)...)
			cmd.Env = append(os.Environ(), "SIDECAR_KAFKA_PASSWORD="+env)
			if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte(acked[7].EventID.String())) {
				t.Errorf("await: %v\n%s", err, out)
			}
		})
	}
}

// TestPasswordIsReadAgain: a wrong password keeps results pending and is named;
// the right one, put in its place, is used without a restart.
func TestPasswordIsReadAgain(t *testing.T) {
	s := startSecured(t)
	s.scramUser("sidecar", "new-s3cret", kadm.ScramSha512)
	password := s.file("password", []byte("old-s3cret"))
	l := s.newLine("--kafka-sasl", "scram-sha-512", "--kafka-username", "sidecar", "--kafka-password-file", password)
	s.grant("sidecar", l.topic, minimum...)
	p := l.start()
	acked := l.post(5)
	st := l.awaitStatus("the broker refuses the password", func(st status) bool { return st.Publisher.LastError != "" })
	if !strings.Contains(st.Publisher.LastError, "SASL") || !strings.Contains(st.Publisher.LastError, "correct --kafka-username, or what --kafka-password-file holds") || st.Outbox.Pending != 5 || strings.Contains(st.Publisher.LastError, "s3cret") {
		t.Errorf("%+v", st)
	}
	s.replace(password, []byte("new-s3cret"))
	l.drained()
	l.stop(p)
	s.arrived(l, acked)
}

// TestMissingRights: whatever right is missing, results stay pending, the status
// names the right, and once it is given everything goes out, without a restart.
func TestMissingRights(t *testing.T) {
	s := startSecured(t)
	n := 0
	for name, c := range map[string]struct {
		grants   []grant
		delivery string
		exists   bool // the topics do
		says     []string
	}{
		"all": {grants: minimum},
		"the topics exist and may not be created": {exists: true, grants: without(minimum, grant{"topic", kadm.OpCreate}, grant{"watermarks", kadm.OpCreate})},
		"settings may not be read":                {exists: true, grants: without(minimum, grant{"topic", kadm.OpDescribeConfigs}, grant{"watermarks", kadm.OpDescribeConfigs})},
		"at-least-once needs less":                {delivery: "at-least-once", grants: minimumAtLeastOnce},

		"create":              {grants: without(minimum, grant{"topic", kadm.OpCreate}), says: []string{"Create", "TOPIC"}},
		"create watermarks":   {grants: without(minimum, grant{"watermarks", kadm.OpCreate}), says: []string{"Create", "TOPIC-watermarks", "--delivery at-least-once"}},
		"nothing at all":      {exists: true, says: []string{"Describe", "Write", "TOPIC"}},
		"write":               {exists: true, grants: append(without(minimum, grant{"topic", kadm.OpWrite}), grant{"topic", kadm.OpDescribe}), says: []string{"Write", "TOPIC"}},
		"write watermarks":    {exists: true, grants: without(minimum, grant{"watermarks", kadm.OpWrite}), says: []string{"Write", "TOPIC-watermarks"}},
		"read watermarks":     {exists: true, grants: without(minimum, grant{"watermarks", kadm.OpRead}), says: []string{"Read", "TOPIC-watermarks", "--delivery at-least-once"}},
		"transactional ID":    {exists: true, grants: without(minimum, grant{"transactional ID", kadm.OpWrite}), says: []string{"Write on the prefix TOPIC-,", "transactional ID", "--delivery at-least-once"}},
		"at-least-once write": {exists: true, delivery: "at-least-once", grants: []grant{{"topic", kadm.OpDescribe}, {"topic", kadm.OpDescribeConfigs}}, says: []string{"Write", "TOPIC"}},
	} {
		n++
		user := fmt.Sprintf("user%d", n)
		t.Run(name, func(t *testing.T) {
			s := &secured{Kafka: s.Kafka, t: t, authority: s.authority, adm: s.adm, tls: s.tls}
			delivery := c.delivery
			if delivery == "" {
				delivery = "exactly-once"
			}
			l := s.newLine("--kafka-sasl", "oauthbearer", "--kafka-token-file", s.file("token", token(user)), "--delivery", delivery)
			if c.exists {
				s.CreateTopic(t, l.topic, 6)
				s.CreateTopic(t, l.topic+"-watermarks", 6, "cleanup.policy", "compact")
			}
			s.grant(user, l.topic, c.grants...)
			p := l.start()
			acked := l.post(3)
			if c.says != nil {
				st := l.awaitStatus("something is missing", func(st status) bool { return st.Publisher.LastError != "" })
				for _, text := range c.says {
					if text = strings.ReplaceAll(text, "TOPIC", l.topic); !strings.Contains(st.Publisher.LastError, text) {
						t.Errorf("%q does not say %q", st.Publisher.LastError, text)
					}
				}
				if st.Outbox.Pending != 3 || st.Outbox.Parked != 0 {
					t.Errorf("%+v", st)
				}
				s.grant(user, l.topic, minimum...)
			}
			l.drained()
			l.stop(p)
			s.arrived(l, acked)
		})
	}
}

// leaks are the places where a secret might show itself.
type leaks struct {
	t       *testing.T
	secrets map[string]string // by what each is
}

// check looks for every secret, plain and as base64, which is how SASL and HTTP carry it.
func (k leaks) check(where, text string) {
	k.t.Helper()
	for what, secret := range k.secrets {
		for _, form := range []string{secret, base64.StdEncoding.EncodeToString([]byte(secret)), base64.RawURLEncoding.EncodeToString([]byte(secret)), url.QueryEscape(secret)} {
			if strings.Contains(text, form) {
				k.t.Errorf("%s stands in %s: …%s…", what, where, form[:min(len(form), 12)])
			}
		}
	}
}

// of looks at all that a running sidecar shows, and at what the commands print.
func (k leaks) of(l *line, p *testkit.Process, flags []string, env string) {
	k.t.Helper()
	client := testkit.SocketClient(k.t, l.socket)
	defer client.CloseIdleConnections()
	for _, path := range []string{"/v1/status", "/metrics", "/healthz", "/readyz", "/v1/results"} {
		resp, err := client.Get("http://sidecar" + path)
		if err != nil {
			k.t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || len(text) == 0 {
			k.t.Fatalf("%s: %q %v", path, text, err)
		}
		k.check(path, string(text))
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID()))
	if err != nil || !bytes.Contains(cmdline, []byte(l.socket)) {
		k.t.Fatalf("%q %v", cmdline, err)
	}
	k.check("/proc/PID/cmdline", string(cmdline))
	for _, args := range [][]string{
		{"status", "--socket", l.socket},
		{"status", "--json", "--socket", l.socket},
		slices.Concat([]string{"topic", "--brokers", l.broker, "--topic", l.topic}, flags),
		slices.Concat([]string{"await", "--timeout", "1s", "--brokers", l.broker, "--topic", l.topic, "--correlation-id", uuid.NewString()}, flags),
	} {
		cmd := exec.Command(l.bin, args...)
		cmd.Env = append(os.Environ(), "SIDECAR_KAFKA_PASSWORD="+env)
		out, err := cmd.CombinedOutput()
		if len(out) == 0 {
			k.t.Fatalf("%s says nothing: %v", args[0], err)
		}
		k.check("what sidecar "+args[0]+" prints", string(out))
	}
}

// TestSecretsShowNowhere: not in the log at its most talkative, nor in errors, the
// status, the metrics, the commands' output or the list of processes, whether the
// broker takes them or not.
func TestSecretsShowNowhere(t *testing.T) {
	s := startSecured(t)
	const right, wrong = "r1ght-c4nary/+ü€", "wr0ng-c4nary/+ü€"
	s.scramUser("env", right, kadm.ScramSha512)
	s.scramUser("file", right, kadm.ScramSha256)
	expired := strings.TrimSpace(string(token("bearer")))
	expired = expired[:strings.Index(expired, ".")+1] + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"t0ken-c4nary","iat":1,"exp":2}`)) + "."
	good := strings.TrimSpace(string(token("bearer-c4nary")))
	keyFile := s.tls[5]
	key, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	keyLine := strings.Split(string(key), "\n")[1]
	for _, c := range []struct {
		name, mechanism, user, env, file, token string
		fails                                   bool
	}{
		{name: "password by environment", mechanism: "scram-sha-512", user: "env", env: right},
		{name: "wrong password by environment", mechanism: "scram-sha-512", user: "env", env: wrong, fails: true},
		{name: "password by file", mechanism: "scram-sha-256", user: "file", file: right},
		{name: "wrong password by file", mechanism: "plain", user: "plain", file: wrong, fails: true},
		{name: "token", mechanism: "oauthbearer", user: "bearer-c4nary", token: good},
		{name: "expired token", mechanism: "oauthbearer", user: "bearer-c4nary", token: expired, fails: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &secured{Kafka: s.Kafka, t: t, authority: s.authority, adm: s.adm, tls: s.tls}
			flags := []string{"--kafka-sasl", c.mechanism}
			if c.token == "" {
				flags = append(flags, "--kafka-username", c.user)
			} else {
				flags = append(flags, "--kafka-token-file", s.file("token", []byte(c.token)))
			}
			if c.file != "" {
				flags = append(flags, "--kafka-password-file", s.file("password", []byte(c.file)))
			}
			k := leaks{t: t, secrets: map[string]string{"the key": keyLine}}
			for what, secret := range map[string]string{"the password of the environment": c.env, "the password of the file": c.file, "the token": strings.TrimSuffix(c.token, ".")} {
				if secret != "" {
					k.secrets[what] = secret
				}
			}
			l := s.newLine(append(slices.Clone(flags), "--log-level", "debug")...)
			l.env = []string{"SIDECAR_KAFKA_PASSWORD=" + c.env}
			s.grant(c.user, l.topic, minimum...)
			p := l.start("--shutdown-timeout", "1s")
			l.post(3)
			if c.fails {
				st := l.awaitStatus("the broker refuses", func(st status) bool { return st.Publisher.LastError != "" })
				if st.Outbox.Pending != 3 {
					t.Errorf("%+v", st)
				}
			} else {
				l.drained()
			}
			k.of(l, p, slices.Concat(s.tls, flags), c.env)
			l.stop(p)
			if !c.fails && !strings.Contains(p.Output(), "level=DEBUG") { // a client that is refused has nothing to add
				t.Error("the log is not at its most talkative")
			}
			k.check("the log", p.Output())
		})
	}
}

// TestBrokenSecretsAreNotQuoted: an error says which file is wrong and not what is in it.
func TestBrokenSecretsAreNotQuoted(t *testing.T) {
	const canary = "br0ken-c4nary"
	a := testkit.NewAuthority(t)
	s := &secured{t: t}
	cert, key := a.Issue("client")
	broken := bytes.Replace(key, []byte("\n"), []byte("\n"+canary), 1)
	k := leaks{t: t, secrets: map[string]string{"the secret": canary, "the key": strings.Split(string(key), "\n")[1]}}
	for name, flags := range map[string][]string{
		"a key that is none":               {"--kafka-cert-file", s.file("cert", cert), "--kafka-key-file", s.file("key", []byte(canary))},
		"a key that is damaged":            {"--kafka-cert-file", s.file("cert", cert), "--kafka-key-file", s.file("key", broken)},
		"a key in the certificate's place": {"--kafka-cert-file", s.file("cert", key), "--kafka-key-file", s.file("key", key)},
		"a password without a user":        {"--kafka-sasl", "plain", "--kafka-password-file", s.file("password", []byte(canary))},
		"a password without a mechanism":   {"--kafka-username", "u", "--kafka-password-file", s.file("password", []byte(canary))},
		"a password as a token":            {"--kafka-sasl", "oauthbearer", "--kafka-password-file", s.file("password", []byte(canary))},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLine(t, "127.0.0.1:1", flags...)
			p := testkit.StartSidecar(t, l.bin, slices.Concat([]string{"SIDECAR_KAFKA_PASSWORD=" + canary, "run", "--socket", l.socket, "--data-dir", l.data, "--log-level", "debug"}, flags)...)
			if code := p.Wait(t); code != 2 {
				t.Errorf("status %d: %s", code, p.Output())
			}
			k := leaks{t: t, secrets: k.secrets}
			k.check("the error", p.Output())
		})
	}
}
