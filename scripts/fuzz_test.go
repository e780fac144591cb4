package scripts_test

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fuzz runs the script with a go that does what a line of shell says: $target is
// what it is to fuzz, $before how many times it was asked to already. It answers
// the targets in the order in which they were run.
func fuzz(t *testing.T, does string) (ran []string, output string, err error) {
	t.Helper()
	folder := t.TempDir()
	fake, log := filepath.Join(folder, "go"), filepath.Join(folder, "log")
	script := `#!/bin/sh
[ "$1" = test ] || exit 0
target="$(echo "$*" | sed 's/.*-fuzz ^\([A-Za-z0-9_]*\)\$ .*/\1/')"
before="$(grep -cx "$target" "$FAKE_LOG")"
echo "$target" >>"$FAKE_LOG"
` + does + "\n"
	if err := errors.Join(os.WriteFile(fake, []byte(script), 0o700), os.WriteFile(log, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "./fuzz")
	cmd.Env = append(os.Environ(), "GO="+fake, "FAKE_LOG="+log, "FUZZTIME=1x")
	out, err := cmd.CombinedOutput()
	b, readErr := os.ReadFile(log)
	if readErr != nil {
		t.Fatal(readErr)
	}
	return strings.Fields(string(b)), string(out), err
}

// None is forgotten.
func TestFuzzRunsEveryTarget(t *testing.T) {
	var want []string
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") || d.IsDir() {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Fuzz") {
				want = append(want, f.Name.Name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got, out, err := fuzz(t, "exit 0")
	slices.Sort(want)
	slices.Sort(got)
	if err != nil || len(want) == 0 || !slices.Equal(got, want) {
		t.Errorf("it ran %q, want %q; %v\n%s", got, want, err, out)
	}
}

func TestFuzzFails(t *testing.T) {
	const late = `echo "--- FAIL: $target (3.01s)"; echo "    context deadline exceeded"; exit 1`
	for name, tc := range map[string]struct {
		does  string
		fails bool
		runs  int // of FuzzCheckURL
	}{
		"nothing found":             {"exit 0", false, 1},
		"a finding":                 {`[ $target != FuzzCheckURL ] || { echo "    Failing input written to testdata/fuzz/$target/1"; exit 1; }`, true, 1},
		"a finding of a context":    {`[ $target != FuzzCheckURL ] || { echo "    context deadline exceeded"; echo "    Failing input written to testdata/fuzz/$target/1"; exit 1; }`, true, 1},
		"it does not build":         {`[ $target != FuzzCheckURL ] || exit 2`, true, 1},
		"built in a way of its own": {`[ $target != FuzzBody ] || exit 2`, true, 0},
		"late once":                 {`[ $before -gt 0 ] || { ` + late + `; }`, false, 2},
		"late again":                {`[ $target != FuzzCheckURL ] || { ` + late + `; }`, true, 2},
	} {
		t.Run(name, func(t *testing.T) {
			ran, out, err := fuzz(t, tc.does)
			runs := len(slices.DeleteFunc(ran, func(target string) bool { return target != "FuzzCheckURL" }))
			if (err != nil) != tc.fails || runs != tc.runs {
				t.Errorf("%d runs, want %d; it ends with %v, want a failure: %t\n%s", runs, tc.runs, err, tc.fails, out)
			}
		})
	}
}
