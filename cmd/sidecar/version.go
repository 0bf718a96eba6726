package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/mattn/go-sqlite3"
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

type versionCmd struct {
	JSON bool `help:"Print JSON." name:"json"`
}

// Help is shown by --help.
func (versionCmd) Help() string { return "Example:\n  sidecar version --json" }

// Run tells the versions of the program and of what it is built with.
func (c *versionCmd) Run(e *env) error {
	sqlite, _, _ := sqlite3.Version()
	var err error
	if c.JSON {
		err = json.NewEncoder(e.stdout).Encode(map[string]string{"version": version(), "go": runtime.Version(), "sqlite": sqlite})
	} else {
		_, err = fmt.Fprintf(e.stdout, "sidecar %s (%s, SQLite %s)\n", version(), runtime.Version(), sqlite)
	}
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
