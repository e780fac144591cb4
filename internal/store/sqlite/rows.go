package sqlite

import "strings"

// rows is a statement that inserts rows: its text around them, the text of one,
// and how many arguments that takes.
type rows struct {
	head, row, tail string
	columns         int
}

// rowWriter writes rows with as few statements as there are prepared sizes for.
type rowWriter struct {
	t *tx
	rows
	args []any // nil until there are some
}

// chunkSizes are the numbers of rows that have a statement, largest first: few
// statements to keep, and nearly all rows in large ones when there are many.
var chunkSizes = [...]int{64, 16, 4, 1}

// write begins to write rows.
func (t *tx) write(r rows) rowWriter { return rowWriter{t: t, rows: r} }

func (w *rowWriter) add(args ...any) error {
	if w.args == nil {
		w.args = w.t.s.rowArgs[w.head]
		delete(w.t.s.rowArgs, w.head) // a second writer of such rows makes its own
	}
	w.args = append(w.args, args...)
	if len(w.args) < chunkSizes[0]*w.columns {
		return nil
	}
	return w.flush()
}

func (w *rowWriter) flush() error {
	if len(w.args) == 0 {
		return nil
	}
	done := 0
	for _, size := range chunkSizes {
		for n := size * w.columns; len(w.args)-done >= n; done += n {
			if _, err := w.t.exec(w.text(size), w.args[done:done+n]...); err != nil {
				return err
			}
		}
	}
	clear(w.args) // what they point to is not ours to keep
	w.args = w.args[:0]
	w.t.s.rowArgs[w.head], w.args = w.args, nil
	return nil
}

func (w *rowWriter) text(rows int) string {
	key := chunkKey{w.head, rows}
	text, ok := w.t.s.texts[key]
	if !ok {
		text = w.head + w.row + strings.Repeat(", "+w.row, rows-1) + w.tail
		w.t.s.texts[key] = text
	}
	return text
}

// chunkKey names the text of a statement for so many rows.
type chunkKey struct {
	head string
	rows int
}
