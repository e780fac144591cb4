package bench

import (
	"encoding/binary"
	"math/bits"
)

// A bitmap is a set of event numbers. It costs one bit for each number up to
// the highest, in pages that are allocated when first needed. It is not safe
// for concurrent use.
type bitmap struct {
	pages []*[pageWords]uint64
}

const (
	pageWords = 1024
	pageBits  = pageWords * 64
	pageBytes = pageWords * 8
)

// has says whether n's page exists, that is whether adding n allocates nothing.
func (b *bitmap) has(n uint64) bool {
	p := n / pageBits
	return p < uint64(len(b.pages)) && b.pages[p] != nil
}

// add puts n into the set and says whether it was not in it before.
func (b *bitmap) add(n uint64) bool {
	p := n / pageBits
	for uint64(len(b.pages)) <= p {
		b.pages = append(b.pages, nil)
	}
	if b.pages[p] == nil {
		b.pages[p] = new([pageWords]uint64)
	}
	word, bit := &b.pages[p][n%pageBits/64], uint64(1)<<(n%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}

// missingFrom counts the numbers that are in b and not in other.
func (b *bitmap) missingFrom(other *bitmap) uint64 {
	var missing int
	for p, page := range b.pages {
		if page == nil {
			continue
		}
		var there *[pageWords]uint64
		if p < len(other.pages) {
			there = other.pages[p]
		}
		for i, w := range page {
			if there != nil {
				w &^= there[i]
			}
			missing += bits.OnesCount64(w)
		}
	}
	return uint64(missing)
}

// count is how many numbers are in the set.
func (b *bitmap) count() uint64 { return b.missingFrom(&bitmap{}) }

// every is the numbers of the set that leave the given rest when they are
// divided by n.
func (b *bitmap) every(n, rest uint64) *bitmap {
	out := &bitmap{pages: make([]*[pageWords]uint64, len(b.pages))}
	for p, page := range b.pages {
		if page == nil {
			continue
		}
		first := uint64(p) * pageBits
		start := (rest + n - first%n) % n // of the page, the first with that rest
		kept := new([pageWords]uint64)
		for i := start; i < pageBits; i += n {
			kept[i/64] |= page[i/64] & (1 << (i % 64))
		}
		out.pages[p] = kept
	}
	return out
}

// holds says whether n is in the set.
func (b *bitmap) holds(n uint64) bool {
	return b.has(n) && b.pages[n/pageBits][n%pageBits/64]&(1<<(n%64)) != 0
}

// encode is the set as little-endian words, page by page.
func (b *bitmap) encode() []byte {
	dst := make([]byte, 0, len(b.pages)*pageBytes)
	for _, page := range b.pages {
		if page == nil {
			page = new([pageWords]uint64)
		}
		for _, w := range page {
			dst = binary.LittleEndian.AppendUint64(dst, w)
		}
	}
	return dst
}

// parseBitmap reads what encode wrote; a trailing part of a page is ignored.
func parseBitmap(src []byte) *bitmap {
	b := &bitmap{}
	for len(src) >= pageBytes {
		page := new([pageWords]uint64)
		for i := range page {
			page[i] = binary.LittleEndian.Uint64(src[i*8:])
		}
		b.pages = append(b.pages, page)
		src = src[pageBytes:]
	}
	return b
}
