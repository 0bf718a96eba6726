package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// action is what one command does: its flags, with their defaults, and the work. An
// action with a method Validate has it called once all flags have their values.
type action interface {
	bind(flags *pflag.FlagSet)
	Help() string // the example, and what a short line cannot say
	Run(e *env) error
}

// parse returns the action that args call, its flags set; nil where the help that was
// asked for has been printed. The words of the command, as far as they were recognised,
// are for the hint at its help.
func parse(args []string, stdout io.Writer) (called action, words string, err error) {
	root := commands(&called)
	root.SetArgs(args)
	root.SetOut(stdout)
	cmd, err := root.ExecuteC()
	return called, cmd.CommandPath(), err
}

// commands is the tree of all commands. Executing it performs nothing: it leaves the
// action in called.
func commands(called *action) *cobra.Command {
	leaf := func(use, short string, a action, arguments ...*string) *cobra.Command {
		return newLeaf(called, use, short, a, arguments)
	}
	cobra.EnableCommandSorting = false // in a help the first are those that are used most
	root := newGroup("sidecar", "Hands the results of a workflow process to Kafka, exactly once.")
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(&cobra.Command{Use: "help", Hidden: true, Run: func(_ *cobra.Command, words []string) {
		if cmd, _, err := root.Find(words); err == nil {
			cmd.InitDefaultHelpFlag()
			printHelp(cmd)
		}
	}})
	root.AddCommand(
		leaf("run", "Take results over the socket and publish them.", new(runCmd)),
		leaf("demo", "Show the whole way of three results, with an embedded broker.", new(demoCmd)),
		leaf("await", "Wait for the result of one trigger and print it.", new(awaitCmd)),
		leaf("status", "Tell how a running sidecar is.", new(statusCmd)),
	)
	store := newGroup("outbox", "Look into the outbox, with or without a running sidecar.")
	show, retry, purge := new(outboxShowCmd), new(outboxRetryCmd), new(outboxPurgeCmd)
	store.AddCommand(
		leaf("list", "List results and where each is.", new(outboxListCmd)),
		leaf("show <id>", "Show one result by its event ID, or those of a trigger by its correlation ID.", show, &show.ID),
		leaf("retry <event-id>", "Try a parked result again.", retry, &retry.EventID),
		leaf("purge <event-id>", "Remove a parked result for good.", purge, &purge.EventID),
		leaf("drain", "Publish what is left in a data directory, without a socket.", new(outboxDrainCmd)),
		leaf("check", "Check the whole file (no sidecar may run on it).", new(outboxCheckCmd)),
		leaf("recover", "Copy every readable result of a damaged outbox into a new one.", new(outboxRecoverCmd)),
	)
	root.AddCommand(store,
		leaf("topic", "Make the topics, or report how they differ.", new(topicCmd)),
		leaf("healthcheck", "Exit 0 if the sidecar is alive (or ready): a probe without a port.", new(healthcheckCmd)),
		leaf("version", "Tell the version.", new(versionCmd)),
	)
	return root
}

func newLeaf(called *action, use, short string, a action, arguments []*string) *cobra.Command {
	cmd := newCommand(use, short)
	cmd.Long = a.Help()
	cmd.Flags().SortFlags = false
	a.bind(cmd.Flags())
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != noVariable {
			f.Usage += " ($" + variable(f.Name) + ")"
		}
	})
	cmd.RunE = func(cmd *cobra.Command, words []string) error {
		if len(words) < len(arguments) {
			return fmt.Errorf("%s is missing", strings.Fields(use)[1+len(words)])
		}
		if len(words) > len(arguments) {
			return fmt.Errorf("one argument too many: %q", words[len(arguments)])
		}
		for i, at := range arguments {
			*at = words[i]
		}
		if err := readEnvironment(cmd.Flags()); err != nil {
			return err
		}
		if v, ok := a.(interface{ Validate() error }); ok {
			if err := v.Validate(); err != nil {
				return err
			}
		}
		*called = a
		return nil
	}
	return cmd
}

// newGroup is a command that others stand below.
func newGroup(use, short string) *cobra.Command {
	group := newCommand(use, short)
	group.RunE = func(cmd *cobra.Command, words []string) error {
		var names []string
		for _, sub := range cmd.Commands() {
			if !sub.Hidden {
				names = append(names, sub.Name())
			}
		}
		if len(words) == 0 {
			return fmt.Errorf("a command is missing: %s", strings.Join(names, ", "))
		}
		if like := cmd.SuggestionsFor(words[0]); len(like) > 0 {
			return fmt.Errorf("there is no command %q; did you mean %s?", words[0], strings.Join(like, " or "))
		}
		return fmt.Errorf("there is no command %q here: %s", words[0], strings.Join(names, ", "))
	}
	return group
}

func newCommand(use, short string) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, SilenceErrors: true, SilenceUsage: true, DisableFlagsInUseLine: true, SuggestionsMinimumDistance: 2}
	cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) { printHelp(cmd) })
	return cmd
}

// helpWidth is the number of columns of a help.
const helpWidth = 100

func printHelp(cmd *cobra.Command) {
	if cmd.HasSubCommands() {
		cmd.Printf("Usage: %s <command>\n\n%s\n\nCommands:\n", cmd.CommandPath(), cmd.Short)
		printCommands(cmd, cmd.CommandPath()+" ")
		cmd.Printf("\nEvery flag can come from the environment: SIDECAR_SOCKET stands for --socket.\nMore about one command: %s <command> --help\n", cmd.CommandPath())
		return
	}
	cmd.Printf("Usage: %s [flags]\n\n%s\n\n%s\n\nFlags:\n%s", cmd.UseLine(), cmd.Short, cmd.Long, cmd.LocalFlags().FlagUsagesWrapped(helpWidth))
}

func printCommands(cmd *cobra.Command, above string) {
	for _, sub := range cmd.Commands() {
		switch {
		case sub.Hidden:
		case sub.HasSubCommands():
			printCommands(sub, above)
		default:
			cmd.Printf("  %-16s %s\n", strings.TrimPrefix(sub.CommandPath(), "sidecar "), sub.Short)
		}
	}
}

// noVariable is the flag that the environment does not set: what cannot be undone is asked for
// by hand.
const noVariable = "yes"

func variable(flag string) string {
	return "SIDECAR_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// readEnvironment sets the flags that the command line did not.
func readEnvironment(flags *pflag.FlagSet) (err error) {
	flags.VisitAll(func(f *pflag.Flag) {
		value, set := os.LookupEnv(variable(f.Name))
		if !set || f.Changed || f.Name == noVariable || f.Name == "help" || err != nil {
			return
		}
		if bad := flags.Set(f.Name, value); bad != nil {
			err = fmt.Errorf("%s in the environment: %w", variable(f.Name), bad)
		}
	})
	return err
}

// serviceLink is what Kubernetes puts into the environment for a Service.
var serviceLink = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT|PORT)(_|$)`)

// warnOfUnknownVariables: a slip in a name would leave the default, without a word.
func warnOfUnknownVariables(log *slog.Logger) {
	known := map[string]bool{"SIDECAR_KAFKA_PASSWORD": true, "SIDECAR_BIN": true} // the latter is for the Python tests
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) { known[variable(f.Name)] = true })
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(commands(new(action)))
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, "SIDECAR_") && !known[name] && !serviceLink.MatchString(name) {
			log.Warn("an environment variable belongs to no flag: `sidecar run --help` lists those that do", "name", name)
		}
	}
}

// enumVar declares a flag with one of few values.
func enumVar(flags *pflag.FlagSet, at *string, name, value, usage string, of ...string) {
	*at = value
	flags.Var(&enum{at, of}, name, usage)
}

type enum struct {
	at *string
	of []string
}

func (e *enum) String() string { return *e.at }
func (e *enum) Type() string   { return "choice" }

func (e *enum) Set(value string) error {
	if !slices.Contains(e.of, value) {
		return fmt.Errorf(`must be one of "%s"`, strings.Join(e.of, `","`))
	}
	*e.at = value
	return nil
}

// idsVar declares a flag with UIDs or GIDs, separated by commas; given again it adds.
func idsVar(flags *pflag.FlagSet, at *[]uint32, name, usage string) {
	flags.Func(name, usage, func(text string) error {
		for word := range strings.SplitSeq(text, ",") {
			id, err := strconv.ParseUint(word, 10, 32)
			if err != nil {
				return fmt.Errorf("%q is not the number of a user or group", word)
			}
			*at = append(*at, uint32(id))
		}
		return nil
	})
}
