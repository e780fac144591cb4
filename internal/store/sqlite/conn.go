package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"time"

	sqlite "modernc.org/sqlite"
)

// conn is one connection with the statements it has prepared so far: the texts
// are constants of this package, so their number is bounded. It is used below
// database/sql: no pool, no statement prepared twice, and, as the context of a
// statement has no end, no goroutine for each that waits to interrupt it. It is
// not safe for concurrent use.
type conn struct {
	raw   driver.Conn
	stmts map[string]statement
	args  []driver.NamedValue
	// executed counts the statements: what an event costs is held to it in tests.
	executed int
}

// statement is what the driver's statements can do.
type statement interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

func connect(ctx context.Context, dsn string) (*conn, error) {
	connector, err := sqlite.NewConnector(dsn)
	if err != nil {
		return nil, err
	}
	raw, err := connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &conn{raw: raw, stmts: map[string]statement{}}, nil
}

func (c *conn) close() error {
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.Close())
	}
	c.stmts = nil
	return errors.Join(append(errs, c.raw.Close())...)
}

// prepare prepares a statement to keep.
func (c *conn) prepare(text string) (statement, error) {
	if s, ok := c.stmts[text]; ok {
		return s, nil
	}
	s, err := c.compile(text)
	if err != nil {
		return nil, fmt.Errorf("prepare %.60q: %w", text, err)
	}
	c.stmts[text] = s
	return s, nil
}

func (c *conn) compile(text string) (statement, error) {
	prepared, err := c.raw.Prepare(text)
	if err != nil {
		return nil, err
	}
	s, ok := prepared.(statement)
	if !ok {
		return nil, errors.Join(errors.New("the SQLite driver's statements lack a context"), prepared.Close())
	}
	return s, nil
}

// run executes a statement that is not worth keeping.
func (c *conn) run(text string) error {
	s, err := c.compile(text)
	if err != nil {
		return err
	}
	_, err = s.ExecContext(context.Background(), nil)
	return errors.Join(err, s.Close())
}

// exec executes a statement and says how many rows it changed. Arguments are
// string, []byte, int, int64, bool or nil.
func (c *conn) exec(text string, args ...any) (int64, error) {
	s, err := c.prepare(text)
	if err != nil {
		return 0, err
	}
	c.executed++
	result, err := s.ExecContext(context.Background(), c.bind(args))
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// query hands the rows of a statement to each, until it says to stop. each may
// not execute a statement of the same text.
func (c *conn) query(text string, each func(row) (goOn bool, err error), args ...any) (err error) {
	s, err := c.prepare(text)
	if err != nil {
		return err
	}
	c.executed++
	rows, err := s.QueryContext(context.Background(), c.bind(args))
	if err != nil {
		return err
	}
	// Where each panics too: no transaction ends while rows are open.
	defer func() { err = errors.Join(err, rows.Close()) }()
	dest := make([]driver.Value, len(rows.Columns()))
	for err == nil {
		if err = rows.Next(dest); err == nil {
			var goOn bool
			if goOn, err = each(dest); !goOn && err == nil {
				err = io.EOF
			}
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

// scan hands every row of a statement to each.
func (c *conn) scan(text string, each func(row), args ...any) error {
	return c.query(text, func(r row) (bool, error) {
		each(r)
		return true, nil
	}, args...)
}

// one hands the first row to each and says whether there was one.
func (c *conn) one(text string, each func(row), args ...any) (found bool, err error) {
	err = c.query(text, func(r row) (bool, error) {
		each(r)
		found = true
		return false, nil
	}, args...)
	return found, err
}

// bind numbers the arguments. They are valid until the next statement: the
// driver copies them when it binds.
func (c *conn) bind(args []any) []driver.NamedValue {
	c.args = c.args[:0]
	for i, a := range args {
		if n, ok := a.(int); ok {
			a = int64(n)
		}
		c.args = append(c.args, driver.NamedValue{Ordinal: i + 1, Value: a})
	}
	return c.args
}

// row is a row of an answer: int64, string, []byte or nil. A value of another
// type than asked for is the zero value; the schema says which is which.
type row []driver.Value

func (r row) int(i int) int64     { v, _ := r[i].(int64); return v }
func (r row) text(i int) string   { v, _ := r[i].(string); return v }
func (r row) blob(i int) []byte   { v, _ := r[i].([]byte); return v }
func (r row) null(i int) bool     { return r[i] == nil }
func (r row) bool(i int) bool     { return r.int(i) != 0 }
func (r row) hash(i int) [32]byte { var h [32]byte; copy(h[:], r.blob(i)); return h }

// time is a time of milliseconds; zero for NULL.
func (r row) time(i int) time.Time {
	if r.null(i) {
		return time.Time{}
	}
	return time.UnixMilli(r.int(i)).UTC()
}

// readID takes an id from a row; no id for NULL.
func readID[T ~[16]byte](r row, i int) T {
	var v T
	copy(v[:], r.blob(i))
	return v
}

// millis is a time as it is stored.
func millis(t time.Time) int64 { return t.UnixMilli() }

// millisOrNull is a time that may be missing.
func millisOrNull(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMilli()
}

func textOrNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func blobOrNull(b []byte) any {
	if b == nil {
		return nil
	}
	return b
}

func idOrNull[T ~[16]byte](v T) any {
	var zero T
	if v == zero {
		return nil
	}
	return v[:]
}

func intOfBool(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
