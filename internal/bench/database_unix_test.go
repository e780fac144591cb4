//go:build unix

package bench

import (
	"context"
	"errors"
	"net/url"
	"runtime"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/plinqx/hypha/internal/pgtest"
)

// What the harness asks of a PostgreSQL server, against one.
func TestPostgres(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t, nil)
	t.Run("databases", func(t *testing.T) { testDatabases(t, server) })
	t.Run("password", func(t *testing.T) { testPassword(t, server) })
}

func testDatabases(t *testing.T, server *pgtest.Server) {
	super, err := server.SuperuserURL(server.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPostgres(super)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	d, err := newDatabase(p)
	if err != nil {
		t.Fatal(err)
	}
	if report, err := p.describe(ctx); err != nil || report.Version == "" || report.Settings["fsync"] != "on" || report.Settings["shared_buffers"] == "" {
		t.Errorf("%+v (%v), want a version and settings", report, err)
	}
	there := func(name string, want bool) {
		t.Helper()
		if got, err := p.exists(ctx, name); err != nil || got != want {
			t.Errorf("database %s is there: %v (%v), want %v", name, got, err, want)
		}
	}
	there(d.name, false)
	if err := p.create(ctx, d.name, ""); err != nil {
		t.Fatal(err)
	}
	there(d.name, true)

	before, err := d.usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// A session that has ended by the second reading counts as well.
	const writes = 20
	if err := p.with(ctx, d.name, func(conn *pgx.Conn) error { return keepBusy(ctx, conn, writes) }); err != nil {
		t.Fatal(err)
	}
	after, err := d.usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	done := after.since(before)
	if done.commits < writes || done.commits > 10*writes || done.wal < writes*1000 {
		t.Errorf("done: %+v, want %d commits of 1,000 bytes at least", done, writes)
	}
	if (done.cpu > 0) != (runtime.GOOS == "linux") {
		t.Errorf("the server took %v of CPU time", done.cpu)
	}

	if text, err := p.noted(ctx, d.name); err != nil || text != nil {
		t.Errorf("noted %q (%v), want nothing", text, err)
	}
	if err := errors.Join(p.note(ctx, d.name, []byte("seeded")), p.settle(ctx, d.name), d.watch.close(ctx)); err != nil {
		t.Fatal(err)
	}
	d.watch = nil
	twin, err := newDatabase(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.create(ctx, twin.name, d.name); err != nil {
		t.Fatal(err)
	}
	if text, err := p.noted(ctx, twin.name); err != nil || string(text) != "seeded" {
		t.Errorf("the copy says %q (%v)", text, err)
	}
	if size, err := p.size(ctx, twin.name); err != nil || size < 1<<20 {
		t.Errorf("the copy has %d bytes (%v)", size, err)
	}

	// A node that still runs keeps no database, and neither does a run that ended
	// early.
	conn, err := p.connect(ctx, twin.name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := errors.Join(d.drop(ended), twin.drop(ended), twin.drop(ended)); err != nil {
		t.Error(err)
	}
	there(d.name, false)
	there(twin.name, false)
}

func keepBusy(ctx context.Context, conn *pgx.Conn, writes int) error {
	if _, err := conn.Exec(ctx, "CREATE TABLE kept (text text)"); err != nil {
		return err
	}
	for range writes {
		if _, err := conn.Exec(ctx, "INSERT INTO kept VALUES (repeat('x', 1000))"); err != nil {
			return err
		}
	}
	_, err := conn.Exec(ctx, "SELECT sum(sqrt(n)) FROM generate_series(1, 1000000) AS n")
	return err
}

// What goes wrong does not tell the password.
func testPassword(t *testing.T, server *pgtest.Server) {
	o := short(t)
	o.DatabaseURL = server.Database(t)
	u, err := url.Parse(o.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	_, out, err := bench(t, t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "permission denied to create database") || strings.Contains(err.Error()+out, password) {
		t.Errorf("error %v, want that the role may not make databases\n%s", err, out)
	}
	u.User = url.UserPassword("hypha", "geheim")
	p, err := newPostgres(u.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.describe(t.Context()); err == nil || strings.Contains(err.Error(), "geheim") {
		t.Errorf("error %v, want one without the password", err)
	}
}
