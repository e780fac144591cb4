package bench

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestHistogramQuantilesAreWithinOnePercent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Exponents are drawn first, so that all magnitudes are equally likely.
		values := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) int64 {
			bits := rapid.IntRange(0, 62).Draw(t, "bits")
			return rapid.Int64Range(0, 1<<bits).Draw(t, "value")
		}), 1, 300).Draw(t, "values")
		q := rapid.Float64Range(0, 1).Draw(t, "q")

		// Merging two halves must be the same as recording into one.
		var h, half histogram
		for i, v := range values {
			if i%2 == 0 {
				h.record(time.Duration(v))
			} else {
				half.record(time.Duration(v))
			}
		}
		h.merge(&half)

		slices.Sort(values)
		// The definition: the smallest value that at least q of all do not exceed.
		want := values[len(values)-1]
		for i, v := range values {
			if float64(i+1) >= q*float64(len(values)) {
				want = v
				break
			}
		}
		got := int64(h.quantile(q))
		if diff := max(got-want, want-got); float64(diff) > 0.01*float64(want) {
			t.Fatalf("quantile %v of %d values is %d, want %d within 1 %%", q, len(values), got, want)
		}
		if h.max != values[len(values)-1] || h.n != uint64(len(values)) {
			t.Fatalf("max %d of %d values, want %d of %d", h.max, h.n, values[len(values)-1], len(values))
		}
	})
}

func TestHistogramBucketsCoverEveryDuration(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.Int64Range(0, 1<<63-1).Draw(t, "v")
		i := bucketOf(v)
		if i < 0 || i >= buckets {
			t.Fatalf("%d has bucket %d of %d", v, i, buckets)
		}
		if bucketOf(middleOf(i)) != i {
			t.Fatalf("the middle of bucket %d, %d, is in bucket %d", i, middleOf(i), bucketOf(middleOf(i)))
		}
	})
	if got := bucketOf(1<<63 - 1); got != buckets-1 {
		t.Errorf("the longest duration has bucket %d, want the last, %d", got, buckets-1)
	}
}

func TestHistogramOfNothing(t *testing.T) {
	var h histogram
	if got := h.latency(); got != (Latency{}) {
		t.Errorf("latency of nothing is %+v, want zeros", got)
	}
	h.record(-time.Second)
	if got := h.quantile(1); got != 0 {
		t.Errorf("a negative duration counts as %v, want 0", got)
	}
}

func TestBitmapIsASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.Uint64Range(0, 3*pageBits)
		draw := func(name string) (*bitmap, map[uint64]bool) {
			b, model := &bitmap{}, map[uint64]bool{}
			for _, n := range rapid.SliceOf(number).Draw(t, name) {
				if added := b.add(n); added == model[n] {
					t.Fatalf("add(%d) = %v, but it was there: %v", n, added, model[n])
				}
				model[n] = true
			}
			return b, model
		}
		a, inA := draw("a")
		b, inB := draw("b")
		want := uint64(0)
		for n := range inA {
			if !inB[n] {
				want++
			}
		}
		if got := a.missingFrom(b); got != want {
			t.Fatalf("missingFrom = %d, want %d", got, want)
		}
		n := rapid.Uint64Range(1, 200).Draw(t, "n")
		rest := rapid.Uint64Range(0, n-1).Draw(t, "rest")
		every, of := a.every(n, rest), uint64(0)
		for v := range inA {
			if v%n == rest {
				of++
				if !every.holds(v) {
					t.Fatalf("%d leaves %d by %d, but is not among those", v, rest, n)
				}
			}
		}
		if got := every.count(); got != of {
			t.Fatalf("%d numbers leave %d by %d, want %d", got, rest, n, of)
		}
		// What travels between processes is the same set.
		if got := parseBitmap(a.encode()).missingFrom(parseBitmap(b.encode())); got != want {
			t.Fatalf("missingFrom after encoding = %d, want %d", got, want)
		}
	})
}
