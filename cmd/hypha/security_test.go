package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSecurityPageNamesTests holds the table of threats to the tests that there are: a
// line that nothing shows is a promise and no more.
func TestSecurityPageNamesTests(t *testing.T) {
	const root = "../.."
	page, err := os.ReadFile(filepath.Join(root, "SECURITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]string{} // the source of a package's tests
	source := func(pkg string) string {
		if text, ok := tests[pkg]; ok {
			return text
		}
		files, err := filepath.Glob(filepath.Join(root, pkg, "*_test.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s has no tests: %v", pkg, err)
		}
		var all strings.Builder
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(text)
		}
		tests[pkg] = all.String()
		return tests[pkg]
	}
	shownBy := regexp.MustCompile("^`([a-z0-9/]+): ((?:Test|Fuzz)\\w+(?:, (?:Test|Fuzz)\\w+)*)`$")
	_, threats, found := strings.Cut(string(page), "\n## Threats\n")
	threats, _, _ = strings.Cut(threats, "\n## ")
	threatsSeen := 0
	for line := range strings.Lines(threats) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| threat ") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 3 {
			t.Errorf("a line of %d cells: %s", len(cells), line)
			continue
		}
		threatsSeen++
		for _, part := range strings.Split(strings.TrimSpace(cells[2]), "; ") {
			m := shownBy.FindStringSubmatch(part)
			if m == nil {
				t.Errorf("%q names no tests as `package: TestA, TestB`:\n%s", part, line)
				continue
			}
			for _, name := range strings.Split(m[2], ", ") {
				if !strings.Contains(source(m[1]), "func "+name+"(") {
					t.Errorf("%s has no %s, which is to show:\n%s", m[1], name, line)
				}
			}
		}
	}
	if !found || threatsSeen < 30 {
		t.Errorf("%d threats were found in SECURITY.md", threatsSeen)
	}
}
