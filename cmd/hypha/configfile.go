package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"
)

// configPath is the file that the command line, or else the environment, names
// with --config. It must be known before the rest is parsed, since its lines are
// the weakest of all settings.
func configPath(args []string, env func(string) (string, bool)) string {
	for i, arg := range args {
		if value, ok := strings.CutPrefix(arg, "--config="); ok {
			return value
		}
		if arg == "--config" && i+1 < len(args) {
			return args[i+1]
		}
		if arg == "--" {
			break
		}
	}
	value, _ := env("HYPHA_CONFIG")
	return value
}

// configFile are the settings of a file: a line each, named as the flag.
type configFile struct {
	path  string
	lines map[string]any
}

func readConfigFile(path string) (*configFile, error) {
	f := &configFile{path: path}
	if path == "" {
		return f, nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	defer func() { _ = file.Close() }() // it was only read
	if err := yaml.NewDecoder(file).Decode(&f.lines); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("--config %s: %w", path, err)
	}
	return f, nil
}

// Validate implements kong.Resolver: a line that names no setting is a mistake
// that would otherwise go unseen.
func (f *configFile) Validate(app *kong.Application) error {
	known := map[string]bool{}
	var note func(*kong.Node)
	note = func(n *kong.Node) {
		for _, flag := range n.Flags {
			known[flag.Name] = known[flag.Name] || !flag.Tag.Has(once)
		}
		for _, child := range n.Children {
			note(child)
		}
	}
	note(app.Node)
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(f.lines)) {
		if !known[name] {
			problems = append(problems, fmt.Errorf("--config %s: there is no setting %q", f.path, name))
		}
	}
	return errors.Join(problems...)
}

// Resolve implements kong.Resolver.
func (f *configFile) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if flag.Tag.Has(once) {
		return nil, nil
	}
	return f.lines[flag.Name], nil
}
