package sqlite

import (
	"context"
	"errors"
	"fmt"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// tx is a transaction of the writer, and what it will change in memory once it
// is on disk: until then the store's own maps hold what was committed.
type tx struct {
	*conn
	s        *Store
	versions map[id.Tenant]int64 // -1: the tenant is gone
	gauges   map[gaugeKey]gauge
	counts   map[countKey]*count
	counters map[counterKey]*counter
	era      int64

	lastEvent   int64      // the number of the newest event
	heldEvents  int        // how many were added to the store's
	heldWritten []*heldRow // what got its row
	heldNoted   bool       // held_from was written

	// audit is the entry that goes with what is written (audit.go); nil without one.
	audit *hook.AuditEntry

	wantFold bool // the log of counts is to be folded
	folded   bool // it was
	logged   int  // how much was added to it, in bytes
}

// tenantGone marks a tenant that is not there in the map of versions.
const tenantGone = -1

// maxVersions bounds the memory for tenants' versions; they are read again.
const maxVersions = 1 << 16

// takeTurn waits for the writer.
func (s *Store) takeTurn(ctx context.Context) (release func(), err error) {
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	case <-ctx.Done():
		return nil, edge(ctx.Err())
	}
}

// write runs fn in a transaction, and writes the entry of the audit log that ctx
// carries. When it returns nil, the transaction is on disk. An error leaves no trace,
// neither there nor in memory.
func (s *Store) write(ctx context.Context, fn func(*tx) error) error {
	release, err := s.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer release()
	return edge(s.transact(ctx, func(t *tx) error {
		t.audit = store.AuditOf(ctx)
		if err := fn(t); err != nil {
			return err
		}
		return t.record()
	}))
}

// transact is write for one who has the turn. Where fn panics, that is undone too.
func (s *Store) transact(ctx context.Context, fn func(*tx) error) (err error) {
	if s.writer == nil {
		if err := s.replaceWriter(ctx); err != nil {
			return err
		}
	}
	t := &tx{conn: s.writer, s: s, era: s.era, lastEvent: s.held.last}
	if _, err := t.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	committed := false
	defer func() {
		if !committed {
			s.undoHeld(t)
			err = errors.Join(err, s.rollback(ctx))
		}
	}()
	if err := fn(t); err != nil {
		return err
	}
	if err := t.flushCounts(); err != nil {
		return err
	}
	if _, err := t.exec("COMMIT"); err != nil {
		return err
	}
	committed = true
	// What is on disk can't be undone any more, and what is in memory has to agree.
	s.guard.OrEnd("what the store has in memory", func() {
		t.keep()
		s.afterCommit()
	})
	return nil
}

// rollback ends the transaction that failed. SQLite ends some by itself (a
// full disk, an error of the disk), and answers then that there is none, with
// its plainest code. Anything else leaves the connection in doubt: a new one
// takes its place.
func (s *Store) rollback(ctx context.Context) error {
	_, err := s.writer.exec("ROLLBACK")
	if err == nil || resultCode(err) == codeError {
		return nil
	}
	s.logger.WarnContext(ctx, "rollback failed; opening the database anew", "error", err)
	return s.replaceWriter(ctx)
}

func (s *Store) replaceWriter(ctx context.Context) error {
	var errs []error
	if s.writer != nil {
		errs = append(errs, s.writer.close())
		s.writer = nil
	}
	c, err := s.connectWriter(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	s.writer = c
	return nil
}

// keep takes over what the transaction changed in memory.
func (t *tx) keep() {
	s := t.s
	s.era = t.era
	if len(s.versions) > maxVersions {
		clear(s.versions)
	}
	for k, v := range t.versions {
		s.versions[k] = v
	}
	s.keepCounts(t)
	s.keepFold(t)
	s.keepHeld(t)
}

// version is the tenant's configuration version; tenantGone if there is no such
// tenant.
func (t *tx) version(tenant id.Tenant) (int64, error) {
	if v, ok := t.versions[tenant]; ok {
		return v, nil
	}
	if v, ok := t.s.versions[tenant]; ok {
		return v, nil
	}
	v := int64(tenantGone)
	_, err := t.one("SELECT config_version FROM tenants WHERE id = ?", func(r row) { v = r.int(0) }, tenant[:])
	if err != nil {
		return 0, fmt.Errorf("read the tenant's version: %w", err)
	}
	if v != tenantGone { // else anyone could fill the map with ids
		t.setVersion(tenant, v)
	}
	return v, nil
}

func (t *tx) setVersion(tenant id.Tenant, v int64) {
	if t.versions == nil {
		t.versions = map[id.Tenant]int64{}
	}
	t.versions[tenant] = v
}

// need is an error unless the tenant is there.
func (t *tx) need(tenant id.Tenant) error {
	v, err := t.version(tenant)
	if err == nil && v == tenantGone {
		err = hook.NotFound("Tenant")
	}
	return err
}

// bump raises the tenant's configuration version.
func (t *tx) bump(tenant id.Tenant) (int64, error) {
	v, err := t.version(tenant)
	if err != nil {
		return 0, err
	}
	if v == tenantGone {
		return 0, hook.NotFound("Tenant")
	}
	v++
	if _, err := t.exec("UPDATE tenants SET config_version = ? WHERE id = ?", v, tenant[:]); err != nil {
		return 0, err
	}
	t.setVersion(tenant, v)
	return v, nil
}

// nextEra begins an era (see jobs.go).
func (t *tx) nextEra() error {
	t.era++
	_, err := t.exec("UPDATE settings SET value = ? WHERE name = 'era'", t.era)
	return err
}

// read runs fn on a reader, in one snapshot. The tenant must be there: what a
// removed one left behind can't be reached.
func (s *Store) read(ctx context.Context, tenant id.Tenant, fn func(*conn) error) error {
	return s.snapshot(ctx, func(c *conn) error {
		found, err := c.one("SELECT 1 FROM tenants WHERE id = ?", func(row) {}, tenant[:])
		if err != nil {
			return err
		}
		if !found {
			return hook.NotFound("Tenant")
		}
		return fn(c)
	})
}

// snapshot is read for what spans tenants.
func (s *Store) snapshot(ctx context.Context, fn func(*conn) error) (err error) {
	var c *conn
	select {
	case c = <-s.readers:
	case <-ctx.Done():
		return edge(ctx.Err())
	}
	defer func() { s.readers <- c }()
	if c == nil {
		opened, err := s.connectReader(ctx)
		if err != nil {
			return edge(fmt.Errorf("open a reader of %s: %w", s.path, err))
		}
		c = opened
	}
	if _, err := c.exec("BEGIN"); err != nil {
		return edge(err)
	}
	defer func() { // and where fn panics too
		if _, end := c.exec("ROLLBACK"); end != nil && resultCode(end) != codeError {
			err = errors.Join(err, end, c.close())
			c = nil
		}
		err = edge(err)
	}()
	return fn(c)
}
