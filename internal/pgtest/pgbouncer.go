//go:build unix

package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// poolSize is how many connections pgbouncer has to a database: fewer than clients
// have to it, so that a client's transactions come to different ones.
const poolSize = 6

// Pooled starts pgbouncer before the server, and answers how the URL of a database
// becomes one that leads through it. It pools transactions, and ends with the test. A
// client finds nothing of what it did to its session, nor what it has prepared.
func (s *Server) Pooled(t testing.TB) func(database string) string {
	t.Helper()
	if err := s.running(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	b, err := s.startPgBouncer(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.end(); err != nil {
			t.Error(err)
		}
	})
	return func(database string) string {
		u, err := url.Parse(database)
		if err != nil {
			t.Fatal(err)
		}
		u.Host = b.address
		return u.String()
	}
}

// pgBouncer is a running proxy.
type pgBouncer struct {
	address, log string
	process      *os.Process
	exited       chan struct{}
}

func (s *Server) startPgBouncer(ctx context.Context) (*pgBouncer, error) {
	program, err := findPgBouncer()
	if err != nil {
		return nil, err
	}
	for n := 1; ; n++ {
		b, err := s.tryPgBouncer(ctx, program)
		if err == nil || n == attemptsOfPort || ctx.Err() != nil {
			return b, err
		}
	}
}

func (s *Server) tryPgBouncer(ctx context.Context, program string) (*pgBouncer, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p := s.process
	name := filepath.Join(p.folder, "pgbouncer"+strconv.Itoa(port))
	b := &pgBouncer{address: "127.0.0.1:" + strconv.Itoa(port), log: name + ".log", exited: make(chan struct{})}
	for file, lines := range map[string][]string{
		name + ".users": {fmt.Sprintf("%q %q", Role, s.password), fmt.Sprintf("%q %q", superuser, s.password)},
		name + ".ini": {
			"[databases]", "* = host=127.0.0.1 port=" + strconv.Itoa(p.port),
			"[pgbouncer]", "listen_addr = 127.0.0.1", "listen_port = " + strconv.Itoa(port), "unix_socket_dir =",
			"auth_type = md5", "auth_file = " + name + ".users",
			"pool_mode = transaction", "default_pool_size = " + strconv.Itoa(poolSize), "max_client_conn = 1000",
			"logfile = " + b.log, "pidfile = " + name + ".pid", "log_connections = 0", "log_disconnections = 0",
		},
	} {
		if err := p.write(file, lines); err != nil {
			return nil, err
		}
	}
	cmd := p.command(context.WithoutCancel(ctx), program, "-q", name+".ini")
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start pgbouncer: %w", err)
	}
	go func() {
		_ = cmd.Wait() // its log says why
		close(b.exited)
	}()
	b.process = cmd.Process
	err = p.await(ctx, b.address, b.exited)
	if err != nil {
		log, _ := os.ReadFile(b.log) // what there is of it
		return nil, errors.Join(fmt.Errorf("start pgbouncer: %w\n%s", err, log), b.end())
	}
	return b, nil
}

// end ends it at once: it has nothing to lose, and what its signals mean differs
// between its versions.
func (b *pgBouncer) end() error {
	if err := b.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end pgbouncer: %w", err)
	}
	<-b.exited
	return nil
}

// write writes a file that the server programs' user may read.
func (p *process) write(path string, lines []string) error {
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	if p.user == nil {
		return nil
	}
	return os.Chown(path, int(p.user.Uid), int(p.user.Gid))
}
