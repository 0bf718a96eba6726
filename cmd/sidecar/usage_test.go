package main

import (
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"workflow-results-sidecar/internal/outbox"
)

// everyCommand are the words of every command that can be run.
func everyCommand(t *testing.T) [][]string {
	t.Helper()
	var all [][]string
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if !cmd.HasSubCommands() && !cmd.Hidden {
			all = append(all, strings.Fields(cmd.CommandPath())[1:])
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(commands(new(action)))
	if len(all) < 14 {
		t.Fatalf("only %v", all)
	}
	return all
}

// TestEveryHelpHasAnExampleThatParses also keeps examples true when flags change.
func TestEveryHelpHasAnExampleThatParses(t *testing.T) {
	example := regexp.MustCompile(`(?m)^\s*(sidecar .*)$`)
	for _, words := range everyCommand(t) {
		name := strings.Join(words, " ")
		t.Run(name, func(t *testing.T) {
			help := succeed(t, append(words, "--help")...)
			_, after, found := strings.Cut(help, "Example:")
			if !found {
				t.Fatalf("no example:\n%s", help)
			}
			match := example.FindStringSubmatch(after)
			if match == nil || !strings.HasPrefix(match[1], "sidecar "+name) {
				t.Fatalf("the example does not call sidecar %s:\n%s", name, help)
			}
			if called, _, err := parse(strings.Fields(match[1])[1:], io.Discard); err != nil || called == nil {
				t.Errorf("%s: %v", match[1], err)
			}
		})
	}
}

func TestUnknownFlagsAndBadValuesEndWithStatus2(t *testing.T) {
	for _, words := range everyCommand(t) {
		fail(t, exitUsage, []string{"--no-such-flag", "See: sidecar " + strings.Join(words, " ") + " --help"}, append(words, "--no-such-flag")...)
	}
	for _, c := range []struct{ args, says string }{
		{"", "run"},
		{"runn", "did you mean run?"},
		{"run --delivery sometimes", `"exactly-once","at-least-once"`},
		{"run --socket-mode 999", "octal"},
		{"run --max-rows 0", "--max-rows"},
		{"run --history 48h --dedup-window 24h", "--dedup-window 24h0m0s must be at least 48h0m0s"},
		{"run --brokers nope", `--brokers "nope" must be host:port`},
		{"run --brokers 127.0.0.1:99999", "must be host:port"},
		{"run --brokers 127.0.0.1:9092,:", "must be host:port"},
		{"run --topic bad/topic", "--topic"},
		{"run --topic-compression foo", `"gzip"`},
		{"run --topic-max-message-bytes 999999999999", "at most 2147483647"},
		{"run --topic-min-insync-replicas=-1", "--topic-min-insync-replicas"},
		{"run --max-bytes 1", "--max-bytes 1 must be at least"},
		{"run --socket-mode 0", "let the owner"},
		{"run --socket-gid=-2", "--socket-gid"},
		{"run --linger=-1s", "--linger"},
		{"run --shutdown-timeout=-1s", "--shutdown-timeout"},
		{"run --admin-addr foo", "--admin-addr"},
		{"run --admin-results", "needs --admin-addr"},
		{"run --kafka-username u", "need --kafka-sasl"},
		{"outbox drain --timeout=-1s", "--timeout"},
		{"await --correlation-id 0192f0c1-7b1e-7cc3-9d2a-0123456789ab --topic a/b", "--topic"},
		{"await --correlation-id 0192f0c1-7b1e-7cc3-9d2a-0123456789ab --brokers x", "host:port"},
		{"bogus", "See: sidecar --help"},
		{"outbox bogus 7", "See: sidecar outbox --help"},
		{"run --history soon", "--history"},
		{"run --topic-partitions 0", "partitions"},
		{"run --topic-partitions many", "--topic-partitions"},
		{"run --log-level loud", `"debug","info","warn","error"`},
		{"run --log-format xml", "--log-format"},
		{"run --kafka-sasl digest-md5", "--kafka-sasl"},
		{"run --allow-uid root", "--allow-uid"},
		{"run --embedded-broker --brokers example.com:9092 --data-dir /tmp/never --socket /tmp/never.sock", "127.0.0.1"},
		{"run --embedded-broker --brokers 127.0.0.1:1,127.0.0.1:2 --data-dir /tmp/never --socket /tmp/never.sock", "one --brokers"},
		{"await", "--correlation-id"},
		{"await --correlation-id 7", "not a UUID"},
		{"await --correlation-id 0192f0c1-7b1e-7cc3-9d2a-0123456789ab --timeout 0s", "--timeout"},
		{"outbox list --state lost", `"pending","published","parked"`},
		{"outbox list --limit 0", "--limit"},
		{"outbox list --limit 1001", "1000"},
		{"outbox list --correlation-id 7", "not a UUID"},
		{"outbox show", "<id>"},
		{"outbox show 7", "not a UUID"},
		{"outbox purge 0192f0c1-7b1e-7cc3-9d2a-0123456789ab", "--yes"},
		{"outbox recover", "--to"},
		{"outbox drain --topic-replication-factor 0", "--topic-replication-factor"},
		{"topic --topic-max-message-bytes 5", "--topic-max-message-bytes"},
		{"topic --kafka-sasl plain", "--kafka-username"},
	} {
		t.Run(c.args, func(t *testing.T) { fail(t, exitUsage, []string{c.says}, strings.Fields(c.args)...) })
	}
}

func TestEveryFlagHasAnEnvironmentVariable(t *testing.T) {
	t.Setenv("SIDECAR_SOCKET", "/tmp/of-the-environment.sock")
	fail(t, exitFailed, []string{"/tmp/of-the-environment.sock"}, "healthcheck")
	fail(t, exitFailed, []string{"/tmp/of-the-flag.sock"}, "healthcheck", "--socket", "/tmp/of-the-flag.sock")
	t.Setenv("SIDECAR_MAX_ROWS", "0")
	fail(t, exitUsage, []string{"--max-rows"}, "run")
	t.Setenv("SIDECAR_MAX_ROWS", "many")
	fail(t, exitUsage, []string{"SIDECAR_MAX_ROWS in the environment"}, "run")
	t.Setenv("SIDECAR_YES", "true") // but for the guard of what cannot be undone
	fail(t, exitUsage, []string{"--yes"}, "outbox", "purge", "0192f0c1-7b1e-7cc3-9d2a-0123456789ab")
}

func TestHelpIsAskedForInTwoWays(t *testing.T) {
	for _, words := range append(everyCommand(t), nil, []string{"outbox"}) {
		if first, second := succeed(t, append(slices.Clone(words), "--help")...), succeed(t, append([]string{"help"}, words...)...); first != second || first == "" {
			t.Errorf("%v: %d bytes are not %d", words, len(first), len(second))
		}
	}
}

func TestVersion(t *testing.T) {
	if out := succeed(t, "version"); !strings.Contains(out, "SQLite 3.") || !strings.Contains(out, "go1.") {
		t.Error(out)
	}
	if v := decode[versionReport](t, succeed(t, "version", "--json")); v.Version == "" || v.SQLite == "" || v.Schema != outbox.SchemaVersion() {
		t.Error(v)
	}
}

// TestSecurityNamesItsTests: what docs/SECURITY.md claims is tried by tests that exist.
func TestSecurityNamesItsTests(t *testing.T) {
	root := os.DirFS("../..")
	page, err := fs.ReadFile(root, "docs/SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	for _, pattern := range []string{"cmd/*/*_test.go", "internal/*/*_test.go", "test/*_test.go", "test/*/*_test.go"} {
		files, err := fs.Glob(root, pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := fs.ReadFile(root, file)
			if err != nil {
				t.Fatal(err)
			}
			tests.Write(text)
		}
	}
	names := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z]+)`").FindAllStringSubmatch(string(page), -1)
	for _, name := range names {
		if !strings.Contains(tests.String(), "func "+name[1]+"(") {
			t.Errorf("there is no %s", name[1])
		}
	}
	if len(names) < 20 {
		t.Errorf("only %d tests are named", len(names))
	}
}
