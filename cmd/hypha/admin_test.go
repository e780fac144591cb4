package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/adminsocket"
)

// said is what a command printed, and how it ended.
type said struct {
	stdout, stderr string
	code           int
}

// runAdmin runs hypha admin as main does.
func runAdmin(t *testing.T, stdin string, args ...string) said {
	t.Helper()
	var out, errs bytes.Buffer
	err := run(t.Context(), append([]string{"admin"}, args...), func(string) (string, bool) { return "", false }, strings.NewReader(stdin), &out, &errs)
	s := said{stdout: out.String()}
	if err != nil {
		fmt.Fprintln(&errs, "hypha:", err)
		s.code = exitCode(err)
	}
	s.stderr = errs.String()
	return s
}

// through is a client of the server's admin socket.
func through(t *testing.T, path string) *http.Client {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return adminsocket.Dial(ctx, path) }}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func get(t *testing.T, c *http.Client, url string, headers ...string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

func TestAdminSocketIsClosedToOthers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	socket := filepath.Join(dir, adminSocketName)
	old := syscall.Umask(0) // a process with the worst of umasks
	p := startProgram(t, nil, "serve", "--data", dir, "--listen", "127.0.0.1:0")
	syscall.Umask(old)
	for path, want := range map[string]fs.FileMode{socket: fs.ModeSocket | 0o600, dir: fs.ModeDir | 0o700} {
		if info, err := os.Lstat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	if _, err := os.Lstat(socket + ".new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("where it was made is still there: %v", err)
	}
	if err := p.stop(t); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the stop: %v", err)
	}
}

// It is the connection that gives the authority, and nothing that is sent: not even
// where headers are believed.
func TestNothingSentForgesTheAdminSocket(t *testing.T) {
	dir := t.TempDir()
	v := startServer(t, func(s *settings) {
		s.Data, s.TrustedProxies, s.StrangerRate = dir, []string{"127.0.0.0/8"}, 0.001
	})
	socket := through(t, filepath.Join(dir, adminSocketName))
	remote := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, header := range []string{
		"X-None: 1", "X-Hypha-Admin-Socket: 1", "X-Hypha-Local: root (uid 0)", "X-Forwarded-For: @", "X-Forwarded-For: uid 0, pid 1", "X-Forwarded-For: unix:", "Forwarded: for=unix",
		"X-Real-Ip: @", "Authorization: uid 0", "Authorization: Bearer ", "Authorization: Bearer root", "Authorization: Local root", "Cookie: __Host-hypha=root (uid 0)", "User-Agent: hypha-admin/dev",
		"X-Hypha-Tenant: ten_" + nobody, "Host: hypha",
	} {
		// Strangers are counted, and wait in the end: that is a refusal as well.
		if status, body := get(t, remote, v.url()+"/services/tenants", header); status != http.StatusUnauthorized && status != http.StatusTooManyRequests {
			t.Errorf("%s: %d %s", header, status, body)
		}
	}
	// As many may come by the socket as like, and a credential that is shown there
	// counts for what it is.
	for range 200 {
		if status, body := get(t, socket, "http://hypha/services/openapi.yaml"); status != http.StatusOK {
			t.Fatalf("by the socket: %d %s", status, body)
		}
	}
	for header, want := range map[string]int{
		"X-None: 1":                                 http.StatusOK,
		"Authorization: Bearer " + testKey:          http.StatusForbidden,
		"Authorization: Bearer " + operatorKey:      http.StatusOK,
		"Authorization: Bearer nobody-has-this-one": http.StatusUnauthorized,
		"Sec-Fetch-Site: cross-site":                http.StatusOK, // reads alone are open to those
	} {
		if status, body := get(t, socket, "http://hypha/services/tenants", header); status != want {
			t.Errorf("by the socket, %s: %d, want %d: %s", header, status, want, body)
		}
	}
	// A page of another site has no more luck here than by TCP.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://hypha/services/tenants", strings.NewReader(`{"name":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Origin", "https://evil.example.com")
	resp, err := socket.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a page of another site: %s", resp.Status)
	}
	if status, body := get(t, socket, "http://hypha/metrics"); status != http.StatusOK || !strings.Contains(body, "/services/tenants") {
		t.Errorf("the metrics: %d %s", status, body)
	}
}

func TestKilledServersSocketIsReplaced(t *testing.T) {
	dir := t.TempDir()
	args := []string{"serve", "--data", dir, "--listen", "127.0.0.1:0"}
	p := startProgram(t, nil, args...)
	list := []string{"tenants", "list", "--data", dir}
	if s := runAdmin(t, "", list...); s.code != 0 {
		t.Fatal(s)
	}
	p.kill(t)
	if s := runAdmin(t, "", list...); s.code != 1 || !strings.Contains(s.stderr, "was killed; start it again") {
		t.Errorf("after the kill: %+v", s)
	}
	startProgram(t, nil, args...)
	if s := runAdmin(t, "", list...); s.code != 0 || !strings.Contains(s.stdout, "default") {
		t.Errorf("after the start: %+v", s)
	}
}

func TestSecondServerLeavesTheSocketOfTheFirst(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	startServer(t, func(s *settings) { s.AdminSocket = socket })
	second := spawn(t, nil, "serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--admin-socket", socket)
	<-second.exited
	if log := second.stderr.String(); second.err == nil || !strings.Contains(log, "hypha: --admin-socket") || !strings.Contains(log, "another server listens") {
		t.Errorf("the second server said: %v %s", second.err, log)
	}
	if s := runAdmin(t, "", "tenants", "list", "--admin-socket", socket); s.code != 0 {
		t.Errorf("the first one: %+v", s)
	}
	// Nor does a second one on the folder, which has its socket there.
	dir := t.TempDir()
	startServer(t, func(s *settings) { s.Data = dir })
	if _, err := runCLI(t, nil, "serve", "--data", dir, "--listen", "127.0.0.1:0"); err == nil {
		t.Error("a second server runs on the folder")
	}
	if s := runAdmin(t, "", "tenants", "list", "--data", dir); s.code != 0 {
		t.Errorf("the first one on the folder: %+v", s)
	}
}

// A socket that was asked for is made, or the server does not start. The one that is
// there by default does not keep it from starting.
func TestWhereTheAdminSocketIs(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("d", adminsocket.MaxPath))
	_, err := runCLI(t, nil, "serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--admin-socket", long)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("that of a socket can have %d", adminsocket.MaxPath)) {
		t.Errorf("a long path: %v", err)
	}
	p := startProgram(t, nil, "serve", "--data", long, "--listen", "127.0.0.1:0")
	if log := p.stderr.String(); !strings.Contains(log, "there is no admin socket") {
		t.Errorf("a long folder: %s", log)
	}
	dir := t.TempDir()
	startServer(t, func(s *settings) { s.Data, s.AdminSocket = dir, "off" })
	if _, err := os.Lstat(filepath.Join(dir, adminSocketName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("off: %v", err)
	}
	// With a database there is no folder to put it in.
	database, socket := databases.Database(t), filepath.Join(t.TempDir(), "s")
	here := t.TempDir()
	startServer(t, func(s *settings) { s.Data, s.DatabaseURL, s.SecretKey = here, database, strings.Repeat("5a", 32) })
	if left, err := os.ReadDir(here); err != nil || len(left) > 0 {
		t.Errorf("with a database: %v %v", left, err)
	}
	startServer(t, func(s *settings) {
		s.DatabaseURL, s.SecretKey, s.AdminSocket = database, strings.Repeat("5a", 32), socket
	})
	if s := runAdmin(t, "", "tenants", "list", "--admin-socket", socket); s.code != 0 || !strings.Contains(s.stdout, "default") {
		t.Errorf("with a database: %+v", s)
	}
}

func TestAdminErrorsSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	startServer(t, func(s *settings) { s.Data = dir })
	for name, tc := range map[string]struct {
		args []string
		code int
		want string
	}{
		"no server":         {[]string{"tenants", "list", "--data", t.TempDir()}, 1, "start it, or name another's folder with --data"},
		"no folder":         {[]string{"tenants", "list", "--data", "/no/such/folder"}, 1, "there is no folder /no/such/folder; name the server's with --data"},
		"off":               {[]string{"tenants", "list", "--admin-socket", "off"}, 2, "name the socket's path"},
		"no command":        {[]string{"tenants"}, 2, "--help"},
		"unknown command":   {[]string{"tenants", "explode"}, 2, "--help"},
		"unknown flag":      {[]string{"tenants", "list", "--no-such"}, 2, "--help"},
		"no name":           {[]string{"tenants", "create"}, 2, "<name>"},
		"nothing to change": {[]string{"keys", "update", "key_" + nobody, "--data", dir}, 2, "--name or --expires"},
		"no such tenant":    {[]string{"tenants", "get", "ten_" + nobody, "--data", dir}, 1, "Tenant not found"},
		"no such user":      {[]string{"users", "delete", "x@example.com", "--data", dir}, 1, "has no user x@example.com"},
		"a wrong value":     {[]string{"users", "create", "nonsense", "--role", "King", "--data", dir}, 1, "role must be one of Administrator"},
		"no terminal":       {[]string{"users", "set-password", testEmail, "--data", dir}, 2, "--password-stdin"},
		"an empty password": {[]string{"users", "set-password", testEmail, "--password-stdin", "--data", dir}, 2, "is empty"},
		"two passwords":     {[]string{"users", "create", "x@example.com", "--role", "Viewer", "--password-stdin", "--ask-password", "--data", dir}, 2, "together"},
		"a wrong time":      {[]string{"audit", "list", "--since", "yesterday", "--data", dir}, 2, "a duration such as 24h"},
		"a wrong end":       {[]string{"operator-keys", "create", "x", "--expires", "soon", "--data", dir}, 2, "nor never"},
		"a wrong limit":     {[]string{"audit", "list", "--limit=-1", "--data", dir}, 2, "--limit"},
		"a wrong action":    {[]string{"audit", "list", "--action", "webhook.exploded", "--data", dir}, 1, "action is no action"},
	} {
		if s := runAdmin(t, "", tc.args...); s.code != tc.code || !strings.Contains(s.stderr, tc.want) || s.stdout != "" {
			t.Errorf("%s: %+v; want %d and %q", name, s, tc.code, tc.want)
		}
	}
	// With a second tenant, a command has to be told which.
	runAdmin(t, "", "tenants", "create", "Acme\x1b[2J", "--data", dir)
	if s := runAdmin(t, "", "tenants", "create", "Acme", "--data", dir); s.code != 0 {
		t.Fatal(s)
	}
	if s := runAdmin(t, "", "users", "list", "--data", dir); s.code != 2 || !strings.Contains(s.stderr, "(default), ten_") {
		t.Errorf("two tenants: %+v", s)
	}
}

// What is said to one command is said there: neither a variable nor a line of the file
// renames anything.
func TestFlagsOfOneCommandAreNoSettings(t *testing.T) {
	env := map[string]string{"HYPHA_NAME": "from a variable", "HYPHA_EXPIRES": "1h", "HYPHA_JSON": "true"}
	_, err := runCLI(t, env, "admin", "operator-keys", "update", "key_"+nobody)
	if err == nil || exitCode(err) != 2 || !strings.Contains(err.Error(), "nothing is to be changed") {
		t.Errorf("with variables: %v", err)
	}
	file := filepath.Join(t.TempDir(), "hypha.yaml")
	if err := os.WriteFile(file, []byte("name: from a file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := runCLI(t, nil, "admin", "operator-keys", "update", "key_"+nobody, "--config", file); err == nil || !strings.Contains(err.Error(), `there is no setting "name"`) {
		t.Errorf("with a file: %v", err)
	}
	// Where the server is, is a setting.
	dir := t.TempDir()
	startServer(t, func(s *settings) { s.Data = dir })
	if err := os.WriteFile(file, fmt.Appendf(nil, "data: %s\nslots: 3\n", dir), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for name, value := range map[string]string{"HYPHA_CONFIG": file, "HYPHA_DATA": dir, "HYPHA_ADMIN_SOCKET": filepath.Join(dir, adminSocketName)} {
		out.Reset()
		look := func(asked string) (string, bool) {
			if asked == name {
				return value, true
			}
			return "", false
		}
		if err := run(t.Context(), []string{"admin", "tenants", "list"}, look, strings.NewReader(""), &out, io.Discard); err != nil || !strings.Contains(out.String(), "default") {
			t.Errorf("%s: %v %s", name, err, out.String())
		}
	}
}

// Another account is told so, by the exit code too. It takes root to be one; others
// close the folder to themselves.
func TestAdminOfAnotherAccount(t *testing.T) {
	dir, err := os.MkdirTemp("", "hypha") //nolint:usetesting // that of the test is closed to other accounts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	data := filepath.Join(dir, "data")
	startServer(t, func(s *settings) { s.Data = data })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "admin", "tenants", "list", "--data", data)
	if os.Geteuid() == 0 {
		code, err := os.ReadFile(self) // it stands where others may not run it
		if err != nil {
			t.Fatal(err)
		}
		cmd.Path = filepath.Join(dir, "hypha")
		if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(cmd.Path, code, 0o755), os.Chmod(data, 0o755)); err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Dir = dir
	} else {
		if err := os.Chmod(dir, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	}
	cmd.Env = append(os.Environ(), asProgram+"=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "as the account that runs the server, or as root") {
		t.Errorf("%v %s", err, out)
	}
}

// TestAdminCommands goes through the commands. What they print is in
// testdata/cli/admin.txt: on the standard output, and (!) on that for errors.
func TestAdminCommands(t *testing.T) {
	dir := t.TempDir()
	v := startServer(t, func(s *settings) { s.Data = dir })
	var out strings.Builder
	secrets := map[string]string{}
	step := func(stdin string, args ...string) said {
		t.Helper()
		s := runAdmin(t, stdin, append(args, "--data", dir)...)
		if s.code != 0 {
			t.Fatalf("%v: %+v", args, s)
		}
		fmt.Fprintf(&out, "\n$ hypha admin %s\n", strings.Join(args, " "))
		for line := range strings.Lines(s.stderr) {
			fmt.Fprintf(&out, "! %s", line)
		}
		out.WriteString(s.stdout)
		return s
	}
	first := func(s said) string { // of the second line, or of a line "id  …"
		t.Helper()
		lines := strings.Split(s.stdout, "\n")
		return strings.Fields(strings.TrimPrefix(lines[min(1, len(lines)-1)], "id"))[0]
	}
	idOf := func(s said) string {
		return regexp.MustCompile(`[a-z]+_[0-9a-hjkmnp-tv-z]{26}`).FindString(s.stderr + s.stdout)
	}

	step("", "tenants", "list")
	second := idOf(step("", "tenants", "create", "Acme"))
	step("", "tenants", "get", second)
	step("", "tenants", "update", second, "--name", "Acme Inc.")
	step("", "tenants", "delete", second)

	made := step("", "users", "create", "dana@example.com", "--role", "Developer")
	dana, password := idOf(made), strings.TrimSpace(made.stdout)
	secrets[password] = "<the password>"
	signIn := func(want int, password string) string {
		t.Helper()
		a := ask(t, v.url(), http.MethodPost, "/services/auth/login", fmt.Sprintf(`{"email":"dana@example.com","password":%q}`, password))
		if a.status != want {
			t.Errorf("sign in: %d %s", a.status, a.body)
		}
		return "Authorization: Bearer " + a.text("token")
	}
	session := signIn(200, password)
	step("", "users", "list")
	step("", "users", "sign-out", dana)
	if a := ask(t, v.url(), http.MethodGet, "/services/auth/me", "", session); a.status != http.StatusUnauthorized {
		t.Errorf("after the sign-out: %d", a.status)
	}
	step("another password\r\n", "users", "set-password", "Dana@example.com", "--password-stdin")
	signIn(401, password)
	signIn(200, "another password")
	step("", "users", "update", dana, "--role", "Viewer")
	step("the first password", "users", "create", "erin@example.com", "--role", "Viewer", "--password-stdin")
	step("", "users", "delete", "erin@example.com")

	key := step("", "keys", "create", "CI", "--scope", "events:write", "--scope", "webhooks:read")
	secret := strings.TrimSpace(key.stdout)
	secrets[secret] = "<the key>"
	if a := ask(t, v.url(), http.MethodGet, "/services/webhooks", "", "Authorization: Bearer "+secret); a.status != http.StatusOK {
		t.Errorf("the key: %d %s", a.status, a.body)
	}
	step("", "keys", "list")
	step("", "keys", "update", idOf(key), "--name", "Deployments", "--expires", "2999-01-01T00:00:00Z")
	step("", "keys", "update", idOf(key), "--expires", "never")
	step("", "keys", "delete", idOf(key))
	if a := ask(t, v.url(), http.MethodGet, "/services/webhooks", "", "Authorization: Bearer "+secret); a.status != http.StatusUnauthorized {
		t.Errorf("the revoked key: %d", a.status)
	}

	operator := step("", "operator-keys", "create", "Ops", "--expires", "720h")
	secret = strings.TrimSpace(operator.stdout)
	secrets[secret] = "<the operator key>"
	step("", "operator-keys", "update", idOf(operator), "--name", "Operations")
	// The last one too: the socket is the way back in.
	step("", "operator-keys", "delete", first(step("", "operator-keys", "list")))
	step("", "operator-keys", "delete", idOf(operator))
	if a := ask(t, v.url(), http.MethodGet, "/services/tenants", "", "Authorization: Bearer "+operatorKey); a.status != http.StatusUnauthorized {
		t.Errorf("the deleted operator's key: %d", a.status)
	}

	ask(t, v.url(), http.MethodPost, "/services/vault", `{"name":"TOKEN","value":"x"}`, "Authorization: Bearer "+testKey)
	step("", "secret-keys", "list")
	step("", "secret-keys", "create")
	step("", "rekey")
	tenant := idOf(step("", "tenants", "list", "--json"))
	step("", "audit", "list", "--limit", "3", "--action", "operatorKey.deleted", "--since", "24h")
	step("", "audit", "list", "--limit", "0", "--tenant", tenant, "--actor", "local")
	lines := runAdmin(t, "", "audit", "export", "--tenant", tenant, "--data", dir)
	if n := strings.Count(lines.stdout, "\n"); lines.code != 0 || n < 10 || !strings.HasPrefix(lines.stdout, `{"id":"aud_`) {
		t.Errorf("the export: %+v", lines)
	}
	all := out.String() + lines.stdout
	if strings.Contains(all, "another password") || strings.Contains(all, "the first password") {
		t.Error("a password that was given is shown")
	}

	// Who did it, is in the log: for operators with the account, for a tenant's people
	// without.
	mine := ask(t, v.url(), http.MethodGet, "/services/audit?actor=local&limit=1", "", "Authorization: Bearer "+testKey)
	if mine.text("data.0.actor.kind") != "local" || mine.get("data.0.actor.name") != nil || mine.get("data.0.userAgent") != nil {
		t.Errorf("the tenant sees %s", mine.body)
	}
	if !strings.Contains(lines.stdout, fmt.Sprintf(`(uid %d)"`, os.Geteuid())) {
		t.Errorf("the operators see %s", lines.stdout)
	}

	text := out.String()
	for secret, name := range secrets {
		text = strings.ReplaceAll(text, secret, name)
	}
	if strings.Contains(text, "another password") || strings.Contains(text, "the first password") {
		t.Error("a password that was given is shown")
	}
	for _, r := range []struct{ find, put string }{
		// What is put there has the same width, so that tables stay in order.
		{`([a-z]+)_[0-9a-hjkmnp-tv-z]{26}`, "${1}_xxxxxxxxxxxxxxxxxxxxxxxxxx"},
		{`2[0-8]\d\d-\d\d-\d\dT\d\d:\d\d:\d\d`, "20xx-xx-xxTxx:xx:xx"},
		{`\.\d{3}Z`, ".xxxZ"},
		{`(?m)^[0-9a-f]{8} `, "xxxxxxxx "},
		{`local \S+ \(uid \d+\) *`, "local <account>  "},
		{`ACTOR +`, "ACTOR            "},
		{`hypha_[A-Za-z0-9_-]{4}`, "hypha_XXXX"},
	} {
		text = regexp.MustCompile(r.find).ReplaceAllString(text, r.put)
	}
	golden(t, "cli/admin.txt", []byte("What hypha admin prints; after \"!\" what goes to the standard error.\n"+text))
}

// A name that a tenant likes does nothing to a terminal.
func TestTerminalsAreSafeFromNames(t *testing.T) {
	for in, want := range map[string]string{"": "-", "Acme": "Acme", "Zoë 日本": "Zoë 日本", "a\x1b[2Jb\r\n\tc": "a�[2Jb���c", "\u202eabc": "�abc", "\xff": "�"} {
		if got := cell(in); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
}

func TestInstants(t *testing.T) {
	now := time.Now()
	for text, off := range map[string]time.Duration{"24h": 24 * time.Hour, "90m": 90 * time.Minute} {
		for side, off := range map[which]time.Duration{later: off, earlier: -off} {
			at, err := instantOf(text, side)
			if want := now.Add(off); err != nil || at.Sub(want).Abs() > time.Minute {
				t.Errorf("%s: %v %v, want %v", text, at, err, want)
			}
		}
	}
	if at, err := instantOf("2027-01-01T00:00:00+01:00", later); err != nil || !at.Equal(time.Date(2026, 12, 31, 23, 0, 0, 0, time.UTC)) {
		t.Errorf("%v %v", at, err)
	}
}
