package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/seal"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares what a test got with what stands in a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test ./cmd/hypha -update writes it)", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func runCLI(t *testing.T, env map[string]string, args ...string) (stdout string, err error) {
	t.Helper()
	var out bytes.Buffer
	look := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // what starts stops at once
	err = run(ctx, args, look, strings.NewReader(""), &out, io.Discard)
	return out.String(), err
}

func TestHelp(t *testing.T) {
	for name, args := range map[string][]string{
		"help.txt":         {"--help"},
		"help-serve.txt":   {"serve", "--help"},
		"help-dev.txt":     {"dev", "--help"},
		"help-bench.txt":   {"bench", "--help"},
		"help-migrate.txt": {"migrate", "up", "--help"},
		"help-store.txt":   {"store", "copy", "--help"},

		"help-admin.txt":               {"admin", "--help"},
		"help-admin-tenants.txt":       {"admin", "tenants", "--help"},
		"help-admin-users.txt":         {"admin", "users", "--help"},
		"help-admin-keys.txt":          {"admin", "keys", "--help"},
		"help-admin-operator-keys.txt": {"admin", "operator-keys", "--help"},
		"help-admin-secret-keys.txt":   {"admin", "secret-keys", "--help"},
		"help-admin-audit.txt":         {"admin", "audit", "--help"},
		"help-admin-audit-list.txt":    {"admin", "audit", "list", "--help"},
	} {
		out, err := runCLI(t, nil, args...)
		if err != nil {
			t.Errorf("%v: %v", args, err)
		}
		golden(t, filepath.Join("cli", name), []byte(out))
	}
}

func TestWrongSettingsAreReportedTogether(t *testing.T) {
	_, err := runCLI(t, map[string]string{"HYPHA_SLOTS": "0"}, "serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0",
		"--allow-egress", "localhost", "--deny-egress", "10.0.0.0/99", "--egress-ports", "0", "--egress-proxy", "proxy:3128", "--header-prefix", "a b", "--max-event-bytes", "1", "--max-age", "1s", "--history-age", "1m",
		"--public-url", "hooks.example.com", "--session-idle", "1m", "--session-lifetime", "1s", "--oidc-issuer", "http://accounts.example.com", "--oidc-redirect-url", "https://hooks.example.com/",
		"--trusted-proxies", "10.0.0.1", "--request-rate=-1", "--event-rate", "NaN", "--change-rate", "+Inf", "--stranger-rate", "1e9",
		"--tls-key", "tls.key", "--max-connections=-1", "--max-connections-per-address=-1")
	if err == nil {
		t.Fatal("it started")
	}
	for _, want := range []string{"--allow-egress", "--deny-egress", "--egress-ports", "--egress-proxy", "--header-prefix", "--max-event-bytes", "--max-age", "--history-age", "--slots",
		"--public-url", "--session-idle", "--session-lifetime", "--oidc-issuer", "--oidc-client-id", "--oidc-redirect-url",
		"--trusted-proxies", "--request-rate", "--event-rate", "--change-rate", "--stranger-rate", "--tls-cert", "--max-connections", "--max-connections-per-address"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not named in: %v", want, err)
		}
	}
}

func TestWrongSettingsSayWhatToDo(t *testing.T) {
	misspelt := filepath.Join(t.TempDir(), "hypha.yaml")
	if err := os.WriteFile(misspelt, []byte("slot: 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	readable := filepath.Join(t.TempDir(), "keys")
	if err := errors.Join(os.WriteFile(readable, []byte(strings.Repeat("ab", 32)), 0o600), os.Chmod(readable, 0o640)); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"unknown flag":    {[]string{"serve", "--no-such"}, "--help"},
		"unknown command": {[]string{"fly"}, "--help"},
		"bad schedule":    {[]string{"serve", "--retry-schedule", "5"}, "5s, 30m or 2h"},
		"bad secret key":  {[]string{"serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--secret-key", "abc"}, "64 hexadecimal digits"},
		"two keys of one": {[]string{"serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--secret-key", strings.Repeat("ab", 32), "--secret-key-file", misspelt}, "give one of them"},
		"readable keys":   {[]string{"serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--secret-key-file", readable}, "chmod 600"},
		"no key":          {[]string{"serve", "--database-url", "postgres://u:hush@127.0.0.1:1/d", "--listen", "127.0.0.1:0"}, "openssl rand -hex 32"},
		"proxies":         {[]string{"serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--trusted-proxies", "::/0"}, "could then pretend to be anybody"},
		"bad log level":   {[]string{"serve", "--log-level", "loud"}, "log-level"},
		"misspelt line":   {[]string{"serve", "--config", misspelt}, `there is no setting "slot"`},
		"no such file":    {[]string{"serve", "--config", "/no/such/file"}, "no such file"},
	} {
		if _, err := runCLI(t, nil, tc.args...); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v; want it to say %q", name, err, tc.want)
		}
	}
}

// What is wrong with a database's URL is told without the password that is in it.
func TestDatabasePasswordIsNotShown(t *testing.T) {
	key := strings.Repeat("07", 32)
	for _, url := range []string{"postgres://hypha:hush@127.0.0.1:1/hypha?sslmode=disable", "postgres://hypha:hush@127.0.0.1:port/hypha", "host=127.0.0.1 port=1 password=hush sslmode=nonsense"} {
		_, err := runCLI(t, map[string]string{"HYPHA_DATABASE_URL": url, "HYPHA_SECRET_KEY": key}, "serve", "--listen", "127.0.0.1:0")
		if err == nil || !strings.Contains(err.Error(), "--database-url") || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v", url, err)
		}
	}
	s := settings{DatabaseURL: "postgres://hypha:hush@db.test:5433/orders"}
	if got := s.where(); got != "postgresql://db.test:5433/orders" {
		t.Errorf("it is said to be at %s", got)
	}
}

// Nor is what is wrong with a proxy's, and one that is right is logged without it.
func TestProxyPasswordIsNotShown(t *testing.T) {
	for _, url := range []string{"http://hypha:hush@proxy:port", "http://hypha:hush@proxy/path", "hypha:hush@proxy:3128", "http://hypha:hu%sh@proxy", "ftp://hypha:hush@proxy", "socks5://:hush@proxy"} {
		_, err := runCLI(t, map[string]string{"HYPHA_EGRESS_PROXY": url}, "serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0")
		if err == nil || !strings.Contains(err.Error(), "--egress-proxy") || strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "hu%sh") {
			t.Errorf("%s: %v", url, err)
		}
	}
	p := startProgram(t, []string{"HYPHA_EGRESS_PROXY=http://hypha:hush@127.0.0.1:1"}, "serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0")
	if log := p.stderr.String(); !strings.Contains(log, "proxy=http://127.0.0.1:1") || strings.Contains(log, "hush") {
		t.Errorf("the log has to name the proxy, without its password:\n%s", log)
	}
}

// A flag is stronger than a variable, and that than a line of the file.
func TestStrengthOfSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hypha.yaml")
	if err := os.WriteFile(file, []byte("slots: -1\nmax-webhooks: -1\nmax-queued: -1\nallow-egress: [nonsense]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := runCLI(t, map[string]string{"HYPHA_SLOTS": "-2", "HYPHA_MAX_WEBHOOKS": "-2"},
		"serve", "--config", file, "--slots=-3", "--data", t.TempDir(), "--listen", "127.0.0.1:0")
	if err == nil {
		t.Fatal("it started")
	}
	for _, want := range []string{"--slots: must be at least 1, and is -3", "--max-webhooks: must be at least 0, and is -2", "--max-queued: must be at least 0, and is -1", `"nonsense" is not a network`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

func TestSecondServerRefusesTheFolder(t *testing.T) {
	dir := t.TempDir()
	startServer(t, func(s *settings) { s.Data = dir })
	_, err := runCLI(t, nil, "serve", "--data", dir, "--listen", "127.0.0.1:0")
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "--data") {
		t.Errorf("the second server said: %v", err)
	}
}

func TestAnotherKeyIsRefusedNotGuessed(t *testing.T) {
	dir := t.TempDir()
	p := startProgram(t, []string{"HYPHA_BOOTSTRAP_API_KEY=" + testKey}, "serve", "--data", dir, "--listen", "127.0.0.1:0")
	client{p.url, testKey}.createWebhook(t, "https://hooks.example.com/in", "*")
	if err := p.stop(t); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, seal.FileName))
	if err != nil {
		t.Fatal(err)
	}
	had, err := openKeys(nil, dir)
	if err != nil {
		t.Fatal(err)
	}
	p = spawn(t, nil, "serve", "--data", dir, "--listen", "127.0.0.1:0", "--secret-key", strings.Repeat("ab", 32))
	<-p.exited
	if said := p.stderr.String(); p.err == nil || !strings.Contains(said, "under the key "+had.Current().String()) || strings.Contains(said, strings.Repeat("ab", 8)) {
		t.Errorf("another key: %v; want that it names %s:\n%s", p.err, had.Current(), said)
	}
	// With both it starts, whichever way they are given.
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(strings.Repeat("ab", 32)+"\n"+string(text)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--secret-key-file", file}, {"--secret-key", strings.Repeat("ab", 32) + "," + strings.TrimSpace(string(text))}} {
		p = startProgram(t, nil, append([]string{"serve", "--data", dir, "--listen", "127.0.0.1:0"}, args...)...)
		client{p.url, testKey}.must(t, http.MethodGet, "/webhooks", nil, nil)
		if err := p.stop(t); err != nil {
			t.Fatal(err)
		}
		if log := p.stderr.String(); !strings.Contains(log, had.Current().String()) || strings.Contains(log, strings.TrimSpace(string(text))) {
			t.Errorf("the log has to name the keys that there are, and not to show them:\n%s", log)
		}
	}
}

func TestFirstStartPrintsTheSignInOnce(t *testing.T) {
	dir := t.TempDir()
	p := startProgram(t, nil, "serve", "--data", dir, "--listen", "127.0.0.1:0")
	p.stdout.await(t, p.exited, "password")
	out := p.stdout.String()
	var key, email, password string
	for line := range strings.Lines(out) {
		for name, into := range map[string]*string{"API key": &key, "email": &email, "password": &password} {
			if rest, ok := strings.CutPrefix(strings.TrimSpace(line), name); ok {
				*into = strings.TrimSpace(rest)
			}
		}
	}
	c := client{p.url, key}
	c.must(t, http.MethodGet, "/webhooks", nil, nil)
	var session struct{ Token string }
	c.must(t, http.MethodPost, "/auth/login", map[string]string{"email": email, "password": password}, &session)
	client{p.url, session.Token}.must(t, http.MethodGet, "/auth/me", nil, nil)
	if log := p.stderr.String(); strings.Contains(log, key) || strings.Contains(log, password) {
		t.Error("the log has a secret")
	}
	if err := p.stop(t); err != nil {
		t.Fatal(err)
	}
	p = startProgram(t, nil, "serve", "--data", dir, "--listen", "127.0.0.1:0")
	if out := p.stdout.String(); out != "" {
		t.Errorf("the second start printed %q", out)
	}
	client{p.url, key}.must(t, http.MethodGet, "/webhooks", nil, nil)
}

// At SIGTERM what is being sent is finished and recorded, and what waits is
// taken up by the next start.
func TestShutdownFinishesWhatIsInFlight(t *testing.T) {
	hold := make(chan struct{})
	receiver := newArrivals(t, func(a arrived) int {
		if a.path == "/slow" {
			<-hold
		}
		return http.StatusOK
	})
	dir := t.TempDir()
	args := []string{"serve", "--data", dir, "--listen", "127.0.0.1:0", "--allow-egress", "127.0.0.0/8"}
	p := startProgram(t, []string{"HYPHA_BOOTSTRAP_API_KEY=" + testKey}, args...)
	c := client{p.url, testKey}
	webhook, _ := c.createWebhook(t, receiver.URL+"/slow", "*")
	const events = 300 // more than may be in flight
	for i := range events {
		c.must(t, http.MethodPost, "/events", fmt.Sprintf(`{"type":"stop.test","data":%d}`, i), nil)
	}
	receiver.awaitCount(t, 1)
	ended := make(chan error, 1)
	go func() { ended <- p.stop(t) }()
	p.stderr.await(t, p.exited, "finishing what is in flight")
	close(hold)
	if err := <-ended; err != nil {
		t.Fatalf("%v\n%s", err, p.stderr)
	}
	p = startProgram(t, nil, args...)
	got := receiver.awaitCount(t, events)
	seen := map[string]bool{}
	for _, a := range got {
		if id := a.header.Get("webhook-id"); seen[id] {
			t.Errorf("event %s came twice: its outcome was not recorded", id)
		} else {
			seen[id] = true
		}
	}
	var stats struct{ TotalDeliveries, PendingDeliveries int }
	eventually(t, "all are recorded", func() bool {
		client{p.url, testKey}.must(t, http.MethodGet, "/webhooks/stats?webhookId="+webhook, nil, &stats)
		return stats.TotalDeliveries == events && stats.PendingDeliveries == 0
	})
}

func TestReadyAndAlive(t *testing.T) {
	v := startServer(t, nil)
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		resp, err := http.Get(v.url() + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

// `hypha dev` is up, delivers to its receiver, and leaves nothing behind.
func TestDev(t *testing.T) {
	temp := t.TempDir()
	p := spawn(t, []string{"TMPDIR=" + temp}, "dev", "--listen", "127.0.0.1:0", "--every", "20ms")
	line := p.stdout.await(t, p.exited, "Open http://")
	page := strings.TrimPrefix(line, "Open ")
	eventually(t, "the page shows verified arrivals at all three webhooks", func() bool {
		resp, err := http.Get(page)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(body), "wrong") {
			t.Fatalf("a signature did not verify:\n%s", body)
		}
		return strings.Contains(string(body), "verified") && !strings.Contains(string(body), "<td>0</tr>")
	})
	if err := p.stop(t); err != nil {
		t.Errorf("%v\n%s", err, p.stderr)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
