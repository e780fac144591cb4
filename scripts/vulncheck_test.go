// Package scripts_test shows what the scripts that Make and CI run do when there is
// something to find. The programs that they run are played by a line of shell.
package scripts_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestVulncheck: a finding fails, and so does what can't be judged; a database
// that can't be reached is said loudly, and fails where the check is required.
func TestVulncheck(t *testing.T) {
	const away = `govulncheck: fetching vulnerabilities: Get "https://vuln.go.dev/index/modules.json.gz": dial tcp: lookup vuln.go.dev: no such host`
	for _, test := range []struct {
		name     string
		says     string
		status   string
		required bool
		fails    bool
		stdout   string
		stderr   string
	}{
		{name: "nothing found", says: "No vulnerabilities found.", status: "0", stdout: "No vulnerabilities found."},
		{name: "nothing found, and required", says: "No vulnerabilities found.", status: "0", required: true, stdout: "No vulnerabilities found."},
		{name: "a finding", says: "Vulnerability #1", status: "3", fails: true, stderr: "Vulnerability #1"},
		{name: "a finding that speaks of the net", says: "Vulnerability #1: dial tcp: no such host", status: "3", fails: true, stderr: "is used"},
		{name: "no way to the database", says: away, status: "1", stderr: "NOT CHECKED for known vulnerabilities: its database can't be reached"},
		{name: "and why", says: away, status: "1", stderr: "no such host"},
		{name: "no way to the database, and required", says: away, status: "1", required: true, fails: true, stderr: "NOT CHECKED"},
		{name: "code that can't be read", says: "govulncheck: loading packages: dial tcp is not a package", status: "1", fails: true, stderr: "failed with status 1"},
		{name: "a database that is none", says: "govulncheck: fetching vulnerabilities: invalid character", status: "1", fails: true, stderr: "failed with status 1"},
		{name: "another's certificate", says: `govulncheck: fetching vulnerabilities: Get "https://vuln.go.dev/index/modules.json.gz": tls: failed to verify certificate: x509: certificate signed by unknown authority`, status: "1", fails: true, stderr: "failed with status 1"},
		{name: "code that speaks of the net", says: "govulncheck: loading packages: no such host\nfetching vulnerabilities", status: "1", fails: true, stderr: "failed with status 1"},
		{name: "nothing that is called", says: "=== Symbol Results ===\n\nYour code is affected by 0 vulnerabilities.\nThis scan also found 1 vulnerability", status: "0", stdout: "also found 1"},
		{name: "a crash that ends well", says: "=== Symbol Results ===\n\nVulnerability #1: GO-2026-0001", status: "0", fails: true, stdout: "Vulnerability #1", stderr: "run it again"},
		{name: "a wrong call", says: "usage", status: "2", fails: true, stderr: "failed with status 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			fake := filepath.Join(t.TempDir(), "govulncheck")
			if err := os.WriteFile(fake, []byte("#!/bin/sh\necho \"$FAKE_SAYS\"\nexit $FAKE_STATUS\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			required := "0"
			if test.required {
				required = "1"
			}
			cmd := exec.CommandContext(t.Context(), "./vulncheck")
			cmd.Env = append(os.Environ(), "HYPHA_GOVULNCHECK="+fake, "FAKE_SAYS="+test.says, "FAKE_STATUS="+test.status,
				"HYPHA_REQUIRE_VULNCHECK="+required, "GOVULNCHECK_VERSION=v0.0.0")
			var stdout, stderr strings.Builder
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Run(); (err != nil) != test.fails {
				t.Errorf("it ends with %v\n%s%s", err, &stdout, &stderr)
			}
			if !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("it says %q and %q", &stdout, &stderr)
			}
		})
	}
}
