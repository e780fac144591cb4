package lane

import (
	"slices"

	"github.com/plinqx/hypha/internal/id"
)

// fifo is a queue of items. Its memory is let go when it runs empty.
type fifo struct {
	items []*Item
	head  int
}

func (f *fifo) len() int { return len(f.items) - f.head }

func (f *fifo) push(it *Item) { f.items = append(f.items, it) }

func (f *fifo) pop() *Item {
	if f.len() == 0 {
		return nil
	}
	it := f.items[f.head]
	f.items[f.head] = nil
	f.head++
	switch {
	case f.len() == 0 && cap(f.items) > 64:
		*f = fifo{}
	case f.len() == 0:
		f.items, f.head = f.items[:0], 0
	case f.head > Capacity:
		f.items, f.head = slices.Clone(f.items[f.head:]), 0
	}
	return it
}

func (f *fifo) clear() []*Item {
	items := f.items[f.head:]
	*f = fifo{}
	return items
}

func (f *fifo) remove(delivery id.Delivery) *Item {
	for i := f.head; i < len(f.items); i++ {
		if it := f.items[i]; it.ID == delivery {
			f.items = slices.Delete(f.items, i, i+1)
			return it
		}
	}
	return nil
}
