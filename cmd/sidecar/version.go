package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/mattn/go-sqlite3"
	"github.com/spf13/pflag"

	"workflow-results-sidecar/internal/outbox"
)

// buildVersion is set by the linker (-X main.buildVersion=…).
var buildVersion string

func version() string {
	if buildVersion != "" {
		return buildVersion
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

type versionReport struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	SQLite  string `json:"sqlite"`
	Schema  int    `json:"outbox_schema"` // the newest that it knows: it opens this one and all before
}

type versionCmd struct {
	JSON bool
}

func (c *versionCmd) bind(flags *pflag.FlagSet) {
	flags.BoolVar(&c.JSON, "json", false, "Print JSON")
}

// Help is shown by --help.
func (versionCmd) Help() string { return "Example:\n  sidecar version --json" }

// Run tells the versions of the program and of what it is built with.
func (c *versionCmd) Run(e *env) error {
	sqlite, _, _ := sqlite3.Version()
	var err error
	if c.JSON {
		err = json.NewEncoder(e.stdout).Encode(versionReport{version(), runtime.Version(), sqlite, outbox.SchemaVersion()})
	} else {
		_, err = fmt.Fprintf(e.stdout, "sidecar %s (%s, SQLite %s)\n", version(), runtime.Version(), sqlite) // the Python package knows us by this form
	}
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
