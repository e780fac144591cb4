package bench

import (
	"math/bits"
	"time"
)

// A histogram counts durations in buckets whose width grows with the value: 64
// to each power of two, so a quantile is off by less than 1 % (half a bucket's
// width, 1/128) at any magnitude, and the size is fixed at 30 KB however long
// the run. It is not safe for concurrent use.
type histogram struct {
	counts [buckets]uint64
	n      uint64
	max    int64
}

const (
	subBits = 6
	subs    = 1 << subBits
	// Values below 64 ns have a bucket each; every further bit length of a
	// positive int64, 7 to 63, has 64.
	buckets = subs + (63-subBits)*subs
)

func bucketOf(v int64) int {
	if v < subs {
		return int(v)
	}
	shift := bits.Len64(uint64(v)) - subBits - 1
	return shift<<subBits + int(v>>shift)
}

// middleOf is the inverse of bucketOf: the value in the middle of bucket i.
func middleOf(i int) int64 {
	if i < 2*subs {
		return int64(i) // these buckets are one wide
	}
	shift := i>>subBits - 1
	low := int64(i-shift<<subBits) << shift
	return low + int64(1)<<shift/2
}

// record counts d; a negative d, which only a clock set back can produce,
// counts as 0.
func (h *histogram) record(d time.Duration) {
	v := max(int64(d), 0)
	h.counts[bucketOf(v)]++
	h.n++
	h.max = max(h.max, v)
}

func (h *histogram) merge(other *histogram) {
	for i, c := range other.counts {
		h.counts[i] += c
	}
	h.n += other.n
	h.max = max(h.max, other.max)
}

// quantile is the smallest value that at least the part q (0 to 1) of the
// recorded ones does not exceed; 0 if there are none.
func (h *histogram) quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	rank := uint64(q * float64(h.n))
	if float64(rank) < q*float64(h.n) {
		rank++
	}
	rank = min(max(rank, 1), h.n)
	var seen uint64
	for i, c := range h.counts {
		if seen += c; seen >= rank {
			return time.Duration(min(middleOf(i), h.max))
		}
	}
	return time.Duration(h.max)
}

// Latency is a distribution of durations in milliseconds. Quantiles are within
// 1 %, Max is exact.
type Latency struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func (h *histogram) latency() Latency {
	return Latency{
		P50: milliseconds(h.quantile(0.50)),
		P90: milliseconds(h.quantile(0.90)),
		P99: milliseconds(h.quantile(0.99)),
		Max: milliseconds(time.Duration(h.max)),
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
