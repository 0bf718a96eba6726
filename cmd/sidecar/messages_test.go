package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestMessagesAreExplained: every warning and error that the code can log stands in
// the runbook, up to its first colon or semicolon.
func TestMessagesAreExplained(t *testing.T) {
	runbook := readFile(t, "../../docs/OPERATIONS.md")
	found := 0
	for _, root := range []string{".", "../../internal"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() && d.Name() == "testkit" {
				return fs.SkipDir
			}
			if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if message, logged := loggedBy(n); logged {
					found++
					if !strings.Contains(runbook, "`"+message+"`") {
						t.Errorf("%s: docs/OPERATIONS.md does not explain %q", path, message)
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 20 {
		t.Errorf("only %d messages were found", found)
	}
}

// loggedBy returns the beginning of what a call logs as a warning or an error.
func loggedBy(n ast.Node) (message string, logged bool) {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return "", false
	}
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return "", false
	}
	text := 0 // which argument is the message
	switch method.Sel.Name {
	case "Warn", "Error":
	case "tolerate":
		text = 1
	default:
		return "", false
	}
	if len(call.Args) <= text {
		return "", false // an error's own method
	}
	arg := call.Args[text]
	for { // "text" + more
		sum, ok := arg.(*ast.BinaryExpr)
		if !ok {
			break
		}
		arg = sum.X
	}
	literal, ok := arg.(*ast.BasicLit)
	if !ok {
		return "", false // tolerate's own call
	}
	message, err := strconv.Unquote(literal.Value)
	if err != nil {
		return "", false
	}
	if i := strings.IndexAny(message, ":;"); i > 0 && !strings.HasPrefix(message, "ended;") {
		message = message[:i]
	}
	return message, true
}
