package result_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"workflow-results-sidecar/internal/result"
)

const (
	validVectors   = "../../api/vectors/valid.json"
	invalidVectors = "../../api/vectors/invalid.json"
	schemaFile     = "../../api/result.schema.json"
)

// vector is one document with what must become of it. The Python side reads the
// same files.
type vector struct {
	Name        string   `json:"name"`
	Input       *string  `json:"input"`
	InputBase64 []byte   `json:"input_base64"` // instead of input, where it is not UTF-8
	Value       string   `json:"value"`        // valid: the record's value
	Kind        string   `json:"kind"`         // invalid: syntax or invalid
	Fields      []string `json:"fields"`       // invalid: what InvalidError names
	Schema      *bool    `json:"schema"`       // false: the schema cannot tell
	Reason      string   `json:"reason"`       // why it cannot
}

func (v vector) data() []byte {
	if v.Input != nil {
		return []byte(*v.Input)
	}
	return v.InputBase64
}

func readVectors(t testing.TB, path string) []vector {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var vs []vector
	if err := json.Unmarshal(data, &vs); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if len(vs) < 40 {
		t.Fatalf("%s: only %d vectors", path, len(vs))
	}
	return vs
}

func TestValidVectors(t *testing.T) {
	for _, v := range readVectors(t, validVectors) {
		t.Run(v.Name, func(t *testing.T) {
			r, err := result.Decode(v.data(), time.Time{})
			if err != nil {
				t.Fatal(err)
			}
			if got := string(r.AppendJSON(nil)); got != v.Value {
				t.Errorf("record value:\n got %s\nwant %s", got, v.Value)
			}
		})
	}
}

func TestInvalidVectors(t *testing.T) {
	for _, v := range readVectors(t, invalidVectors) {
		t.Run(v.Name, func(t *testing.T) {
			_, err := result.Decode(v.data(), time.Time{})
			kind, fields := classify(err)
			if kind != v.Kind || !slices.Equal(fields, v.Fields) {
				t.Errorf("got %s %q (%v), want %s %q", kind, fields, err, v.Kind, v.Fields)
			}
		})
	}
}

func classify(err error) (kind string, fields []string) {
	var (
		syntax  *result.SyntaxError
		invalid *result.InvalidError
	)
	switch {
	case errors.As(err, &syntax):
		return "syntax", nil
	case errors.As(err, &invalid):
		for _, f := range invalid.Fields {
			fields = append(fields, f.Field)
		}
		return "invalid", fields
	}
	return "accepted", nil
}

// TestSchemaAgrees holds the schema against Decode. A vector that the schema
// cannot judge is one that it would accept: the flag is checked too.
func TestSchemaAgrees(t *testing.T) {
	schema := compileSchema(t)
	vectors := slices.Concat(readVectors(t, validVectors), readVectors(t, invalidVectors))
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			_, err := result.Decode(v.data(), time.Time{})
			accepted, schemaAccepts := err == nil, schemaAccepts(schema, v.data())
			blind := v.Schema != nil && !*v.Schema
			switch {
			case blind && v.Reason == "":
				t.Error("flagged, but no reason given")
			case !blind && accepted != schemaAccepts:
				t.Errorf("Decode accepts: %t (%v), the schema: %t", accepted, err, schemaAccepts)
			case blind && v.InputBase64 == nil && accepted == schemaAccepts:
				t.Error("flagged as beyond the schema, but the schema agrees")
			}
		})
	}
}

// TestSchemaAcceptsRecords: the schema describes the record's value as well.
func TestSchemaAcceptsRecords(t *testing.T) {
	schema := compileSchema(t)
	for _, v := range readVectors(t, validVectors) {
		if !schemaAccepts(schema, []byte(v.Value)) {
			t.Errorf("%s: the schema refuses the record's value", v.Name)
		}
	}
}

func compileSchema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	f, err := os.Open(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	doc, err := jsonschema.UnmarshalJSON(f)
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	id := doc.(map[string]any)["$id"].(string)
	if err := c.AddResource(id, doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile(id)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// schemaAccepts is false for what is no JSON.
func schemaAccepts(schema *jsonschema.Schema, data []byte) bool {
	instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	return err == nil && schema.Validate(instance) == nil
}
