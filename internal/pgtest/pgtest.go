//go:build unix

// Package pgtest gives tests a PostgreSQL server that is theirs: one for each test
// binary, from the server programs that are installed, in a temporary folder, on
// the loopback interface.
//
// The server is one that commits for good (fsync and synchronous_commit are on), so
// what tests see of it is what users would. A test gets a database of its own,
// copied from one that was prepared once. Tests that break the server, stop or
// freeze it, make one for themselves (Own).
//
// Where the server programs are missing, a test fails and says how to install them:
// it is never skipped. Whatever happens to the test binary, no server and no file
// outlives it.
package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// Role is what URLs of databases sign in with: it owns its database, and is
	// nothing besides.
	Role      = "hypha"
	superuser = "postgres"
	// patience is how long a statement of this package, or a start, may take. It
	// is long: a busy machine is no failure.
	patience = time.Minute
)

// Server is a PostgreSQL server for tests. It starts when it is first needed. It is
// safe for concurrent use.
type Server struct {
	prepare  func(ctx context.Context, url string) error
	password string
	within   func(*exec.Cmd) // see process

	mu        sync.Mutex
	process   *process // nil before the first start
	failed    error    // of the first start
	template  string
	databases int
	wiped     []string // names of databases that await their next test
}

// New is a server on which each database looks as prepare left the first one, such
// as migrated; nil leaves it empty. Keep it in a variable of the test package, and
// call Main from TestMain.
func New(prepare func(ctx context.Context, url string) error) *Server {
	return &Server{prepare: prepare, password: rand.Text()}
}

// Own is a server of one test, ended with it.
func Own(t testing.TB, prepare func(ctx context.Context, url string) error) *Server {
	t.Helper()
	s := New(prepare)
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Errorf("end the PostgreSQL server: %v", err)
		}
	})
	return s
}

// Main runs a package's tests, ends its servers, and answers the exit code.
func Main(m *testing.M, servers ...*Server) int {
	code := m.Run()
	for _, s := range servers {
		if err := s.close(); err != nil {
			fmt.Fprintln(os.Stderr, "end the PostgreSQL server:", err)
			code = max(code, 1)
		}
	}
	return code
}

// Database makes a database that is dropped at the end of the test, and answers its
// URL.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	name, err := s.create()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.drop(name); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	return s.url(Role, name)
}

// Reused is a database as Database gives one, for suites of hundreds of tests: it may
// have been another test's before. wipe takes away what a test left in it. That of a
// test that failed is not used again.
func (s *Server) Reused(t testing.TB, wipe func(ctx context.Context, url string) error) string {
	t.Helper()
	s.mu.Lock()
	var name string
	if n := len(s.wiped); n > 0 {
		name, s.wiped = s.wiped[n-1], s.wiped[:n-1]
	}
	s.mu.Unlock()
	if name == "" {
		var err error
		if name, err = s.create(); err != nil {
			t.Fatal(err)
		}
	}
	url := s.url(Role, name)
	t.Cleanup(func() {
		if t.Failed() {
			if err := s.drop(name); err != nil {
				t.Errorf("drop the test's database: %v", err)
			}
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := wipe(ctx, url); err != nil {
			t.Errorf("wipe the test's database: %v", err)
			return
		}
		s.mu.Lock()
		s.wiped = append(s.wiped, name)
		s.mu.Unlock()
	})
	return url
}

// SuperuserURL is the URL of a database that Database made, for a role that may do
// everything.
func (s *Server) SuperuserURL(database string) (string, error) {
	u, err := url.Parse(database)
	if err != nil {
		return "", err
	}
	u.User = url.UserPassword(superuser, s.password)
	return u.String(), nil
}

// url is an address of the running server.
func (s *Server) url(role, database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(role, s.password), Host: s.process.address(),
		Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// running starts the server, and makes what databases are copied from, unless that
// is done.
func (s *Server) running() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil || s.failed != nil {
		return s.failed
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s.process, s.failed = startNew(ctx, s.password, s.within)
	if s.failed == nil {
		s.failed = s.makeTemplate(ctx)
	}
	return s.failed
}

func (s *Server) makeTemplate(ctx context.Context) error {
	if err := s.execute(ctx, "CREATE ROLE "+Role+" LOGIN PASSWORD '"+s.password+"'"); err != nil {
		return err
	}
	if s.prepare == nil {
		s.template = "template0"
		return nil
	}
	const name = "prepared"
	if err := s.execute(ctx, "CREATE DATABASE "+name+" TEMPLATE template0 OWNER "+Role); err != nil {
		return err
	}
	if err := s.prepare(ctx, s.url(Role, name)); err != nil {
		return fmt.Errorf("prepare the tests' database: %w", err)
	}
	s.template = name
	return nil
}

func (s *Server) create() (string, error) {
	if err := s.running(); err != nil {
		return "", err
	}
	s.mu.Lock()
	s.databases++
	name := fmt.Sprintf("test%d", s.databases)
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return name, s.execute(ctx, "CREATE DATABASE "+name+" TEMPLATE "+s.template+" OWNER "+Role)
}

// drop drops a database, unless the server is down: then it goes with the server.
func (s *Server) drop(name string) error {
	if !s.process.up() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return s.execute(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
}

// execute runs a statement as the superuser, outside of transactions.
func (s *Server) execute(ctx context.Context, statement string) error {
	c, err := pgx.Connect(ctx, s.url(superuser, "postgres"))
	if err != nil {
		return err
	}
	_, err = c.Exec(ctx, statement, pgx.QueryExecModeSimpleProtocol)
	return errors.Join(err, c.Close(ctx))
}

func (s *Server) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return nil
	}
	return s.process.remove()
}

// Stop ends the server: in order, with connections broken off, or as a crash does,
// so that the next start recovers from the log.
func (s *Server) Stop(crash bool) error { return s.process.stop(crash) }

// Start starts the server that was stopped, at the same address.
func (s *Server) Start() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return s.process.start(ctx)
}

// Restart is Stop and Start.
func (s *Server) Restart(crash bool) error {
	if err := s.Stop(crash); err != nil {
		return err
	}
	return s.Start()
}

// Freeze halts all processes of the server: connections stay open, and nothing
// answers.
func (s *Server) Freeze() error { return s.process.freeze() }

// Thaw lets a frozen server go on.
func (s *Server) Thaw() error { return s.process.thaw() }

// nameOf is the name of the database that a URL is of.
func nameOf(database string) (string, error) {
	u, err := url.Parse(database)
	if err != nil {
		return "", err
	}
	return strings.TrimPrefix(u.Path, "/"), nil
}

// DropConnections breaks off all connections to a database but those of this package,
// as PostgreSQL does before a setting of it can hold for all.
func (s *Server) DropConnections(ctx context.Context, database string) error {
	name, err := nameOf(database)
	if err != nil {
		return err
	}
	return s.execute(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '"+name+"' AND pid <> pg_backend_pid()")
}

// Set changes a setting of a database, for those who connect from now on; "" is its
// default.
func (s *Server) Set(ctx context.Context, database, setting, value string) error {
	name, err := nameOf(database)
	if err != nil {
		return err
	}
	if value == "" {
		return s.execute(ctx, "ALTER DATABASE "+name+" RESET "+setting)
	}
	return s.execute(ctx, "ALTER DATABASE "+name+" SET "+setting+" = "+value)
}

// LimitConnections limits how many connections Role may have, and breaks off those
// that it has; -1 is no limit, and breaks off none.
func (s *Server) LimitConnections(ctx context.Context, most int) error {
	err := s.execute(ctx, fmt.Sprintf("ALTER ROLE %s CONNECTION LIMIT %d", Role, most))
	if err != nil || most < 0 {
		return err
	}
	return s.execute(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '"+Role+"'")
}
