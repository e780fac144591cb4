package main

import "testing"

func TestGrowthOfTheHeap(t *testing.T) {
	for _, c := range []struct {
		live uint64 // MiB
		want int
	}{{0, 400}, {5, 400}, {32, 400}, {40, 300}, {64, 150}, {80, 100}, {1000, 100}} {
		if got := growth(c.live << 20); got != c.want {
			t.Errorf("a heap of %d MiB may grow by %d %%, want %d %%", c.live, got, c.want)
		}
	}
}
