//go:build unix

package pgtest

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"testing"
)

// Standby is a second server that follows this one, ended with the test. From now on
// what is committed here is on both (synchronous_standby_names).
func (s *Server) Standby(t testing.TB) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	standby, err := s.follow(ctx)
	if err != nil {
		t.Fatal("start a standby:", err)
	}
	t.Cleanup(func() {
		if err := standby.close(); err != nil {
			t.Errorf("end the standby: %v", err)
		}
	})
	for _, statement := range [...]string{"ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"} {
		if err := s.execute(ctx, statement); err != nil {
			t.Fatal("wait for the standby with commits:", err)
		}
	}
	return standby
}

func (s *Server) follow(ctx context.Context) (*Server, error) {
	if err := s.running(); err != nil {
		return nil, err
	}
	process, err := startMade(ctx, s.password, nil, func(p *process, ctx context.Context) error {
		cmd := p.command(ctx, filepath.Join(p.bin, "pg_basebackup"), "--pgdata", p.data(), "--write-recovery-conf", "--checkpoint=fast", "--no-sync",
			"--dbname", s.url(superuser, ""))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("pg_basebackup: %w\n%s", err, out)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &Server{password: s.password, process: process, template: s.template}, nil
}

// Promote makes a standby a server that takes writes, and waits for none itself.
func (s *Server) Promote(ctx context.Context) error {
	for _, statement := range [...]string{"SELECT pg_promote()", "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"} {
		if err := s.execute(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// Either is the URL of a database on whichever of two servers takes writes.
func (s *Server) Either(database string, other *Server) (string, error) {
	u, err := url.Parse(database)
	if err != nil {
		return "", err
	}
	u.Host = s.process.address() + "," + other.process.address()
	q := u.Query()
	q.Set("target_session_attrs", "read-write")
	u.RawQuery = q.Encode()
	return u.String(), nil
}
