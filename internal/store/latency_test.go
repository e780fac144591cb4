package store_test

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/plinqx/hypha/internal/store"
)

func TestLatencyQuantileIsWithinFivePercent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		micros := rapid.SliceOfN(rapid.IntRange(100, 120_000_000), 1, 300).Draw(t, "µs")
		q := rapid.Float64Range(0.01, 1).Draw(t, "q")
		var a, b store.Latency
		for i, us := range micros {
			half := &a
			if i%2 == 1 {
				half = &b
			}
			half.Add(time.Duration(us) * time.Microsecond)
		}
		raw, _ := b.AppendBinary(nil)
		var back store.Latency
		if err := back.UnmarshalBinary(raw); err != nil {
			t.Fatal(err)
		}
		a.Merge(&back)

		slices.Sort(micros)
		rank := max(0, int(ceil(q*float64(len(micros))))-1)
		want := time.Duration(micros[rank]) * time.Microsecond
		got := a.Quantile(q)
		if ratio := float64(got) / float64(want); ratio < 0.95 || ratio > 1.05 {
			t.Fatalf("quantile %g of %v: %v, want %v", q, micros, got, want)
		}
	})
}

func ceil(f float64) float64 {
	n := float64(int(f))
	if f > n {
		n++
	}
	return n
}

func TestLatencyRefusesDamage(t *testing.T) {
	for _, raw := range [][]byte{{0x80}, {1}, {200, 2, 1}, {1, 0x80}} {
		var l store.Latency
		if err := l.UnmarshalBinary(raw); err == nil {
			t.Errorf("%x was read", raw)
		}
	}
	var empty store.Latency
	if got := empty.Quantile(0.5); got != 0 {
		t.Errorf("quantile of nothing is %v", got)
	}
}
