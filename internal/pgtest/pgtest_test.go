//go:build unix

package pgtest

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

var server = New(func(ctx context.Context, url string) error { return statement(ctx, url, "CREATE TABLE t (n int)") })

// asVictim makes this test binary one that starts a server and is killed.
const asVictim = "PGTEST_AS_VICTIM"

func TestMain(m *testing.M) {
	if os.Getenv(asVictim) != "" {
		os.Exit(victim())
	}
	os.Exit(Main(m, server))
}

// victim says where its server's folder is, and waits.
func victim() int {
	if err := server.running(); err != nil {
		return 1
	}
	if _, err := server.startPgBouncer(context.Background()); err != nil {
		return 1
	}
	if os.Getenv(asVictim) == "frozen" {
		if err := server.Freeze(); err != nil {
			return 1
		}
	}
	if _, err := os.Stdout.WriteString(server.process.folder + "\n"); err != nil {
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

func statement(ctx context.Context, url, text string) error {
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = c.Exec(ctx, text)
	return errors.Join(err, c.Close(ctx))
}

func rows(t *testing.T, url string) (n int) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(t.Context()) }()
	if err := c.QueryRow(t.Context(), "SELECT count(*) FROM t").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestDatabasesAreApart(t *testing.T) {
	a, b := server.Database(t), server.Database(t)
	if err := statement(t.Context(), a, "INSERT INTO t VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	if got, other := rows(t, a), rows(t, b); got != 1 || other != 0 {
		t.Errorf("%d rows and %d; want 1 and 0", got, other)
	}
}

func TestDatabaseGoesWithItsTest(t *testing.T) {
	var url string
	t.Run("test", func(t *testing.T) { url = server.Database(t) })
	if err := statement(t.Context(), url, "SELECT 1"); err == nil {
		t.Error("the database is still there")
	}
}

func TestReusedDatabaseIsEmpty(t *testing.T) {
	wipe := func(ctx context.Context, url string) error { return statement(ctx, url, "DELETE FROM t") }
	var urls [2]string
	for i := range urls {
		t.Run("test", func(t *testing.T) {
			urls[i] = server.Reused(t, wipe)
			if n := rows(t, urls[i]); n != 0 {
				t.Errorf("test %d finds %d rows", i, n)
			}
			if err := statement(t.Context(), urls[i], "INSERT INTO t VALUES (1)"); err != nil {
				t.Fatal(err)
			}
		})
	}
	if urls[0] != urls[1] {
		t.Error("the database was not used again")
	}
}

func TestServerCommitsForGood(t *testing.T) {
	c, err := pgx.Connect(t.Context(), server.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(t.Context()) }()
	for _, name := range [...]string{"fsync", "synchronous_commit"} {
		var value string
		if err := c.QueryRow(t.Context(), "SELECT current_setting($1)", name).Scan(&value); err != nil || value != "on" {
			t.Errorf("%s is %q, %v", name, value, err)
		}
	}
}

func TestServerComesBack(t *testing.T) {
	own := Own(t, server.prepare)
	url := own.Database(t)
	for _, crash := range []bool{true, false} {
		if err := statement(t.Context(), url, "INSERT INTO t VALUES (1)"); err != nil {
			t.Fatal(err)
		}
		if err := own.Stop(crash); err != nil {
			t.Fatal(err)
		}
		if err := statement(t.Context(), url, "SELECT 1"); err == nil {
			t.Fatal("it answers although it was stopped")
		}
		if err := own.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if n := rows(t, url); n != 2 {
		t.Errorf("%d rows; want 2", n)
	}
}

// A client of the proxy has no session: what it sets is another's, or nobody's.
func TestPooledDatabase(t *testing.T) {
	url := server.Pooled(t)(server.Database(t)) + "&default_query_exec_mode=exec"
	var clients []*pgx.Conn
	for range 2 * poolSize {
		c, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close(context.Background()) }()
		clients = append(clients, c)
	}
	servers := map[int]bool{}
	for _, c := range clients {
		var pid int
		if err := c.QueryRow(t.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
			t.Fatal(err)
		}
		servers[pid] = true
	}
	if len(servers) > poolSize {
		t.Errorf("%d clients have %d connections to the server; want %d at most", len(clients), len(servers), poolSize)
	}
}

func TestFrozenServer(t *testing.T) {
	own := Own(t, server.prepare)
	url := own.Database(t)
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Freeze(); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := c.Exec(context.Background(), "SELECT 1")
		answered <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := statement(ctx, url, "SELECT 1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a new connection got %v", err)
	}
	select {
	case err := <-answered:
		t.Errorf("an old connection got %v", err)
	default:
	}
	if err := own.Thaw(); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Errorf("after it was thawed: %v", err)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// A killed test binary leaves no server and no files, frozen or not.
func TestNothingOutlivesTheTests(t *testing.T) {
	for _, state := range []string{"running", "frozen"} {
		t.Run(state, func(t *testing.T) {
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(self)
			cmd.Env = append(os.Environ(), asVictim+"="+state)
			if _, err := cmd.StdinPipe(); err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			folder, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			folder = strings.TrimSpace(folder)
			pids := pidsIn(t, folder)
			if len(pids) != 2 {
				t.Fatalf("the processes are %v; want a server and a proxy", pids)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // it was killed
			ticks := time.NewTicker(20 * time.Millisecond)
			defer ticks.Stop()
			for deadline := time.Now().Add(patience); ; <-ticks.C {
				_, err := os.Stat(folder)
				ended := errors.Is(err, os.ErrNotExist)
				for _, pid := range pids {
					ended = ended && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
				}
				if ended {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("processes %v or their folder %s are still there: %v", pids, folder, err)
				}
			}
		})
	}
}

// pidsIn are the processes of a server's folder.
func pidsIn(t *testing.T, folder string) (pids []int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*.pid"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, filepath.Join((&process{folder: folder}).data(), "postmaster.pid")) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(string(b), "\n")
		pid, err := strconv.Atoi(strings.TrimSpace(first))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func TestMissingProgramsAreNamed(t *testing.T) {
	t.Setenv(binVariable, t.TempDir())
	err := New(nil).running()
	if err == nil || !strings.Contains(err.Error(), binVariable) {
		t.Errorf("error is %v; want it to name %s", err, binVariable)
	}
}
