package store

import (
	"testing"
	"time"
)

func TestSpans(t *testing.T) {
	minute, hour, day := LevelMinute.width(), LevelHour.width(), LevelDay.width()
	for _, c := range [][2]int64{
		{0, 0}, {5 * minute, 5 * minute}, {5 * minute, 6 * minute}, {5 * minute, hour}, {0, hour}, {59 * minute, hour + minute},
		{59 * minute, 3*hour + minute}, {0, day}, {minute, day - minute}, {23*hour + 59*minute, day + minute}, {minute, 9*day + 7*hour + 3*minute},
	} {
		at := c[0]
		covered := map[int64]Level{}
		for _, s := range Spans(time.UnixMilli(c[0]), time.UnixMilli(c[1])) {
			for b := s.From; b < s.To; b += s.Level.width() {
				covered[b] = s.Level
			}
		}
		n := len(covered)
		for at < c[1] {
			l, ok := covered[at]
			if !ok {
				t.Fatalf("[%d, %d): nothing covers %d", c[0]/minute, c[1]/minute, at/minute)
			}
			delete(covered, at)
			at += l.width()
		}
		if len(covered) > 0 || at != c[1] {
			t.Fatalf("[%d, %d): %d buckets too many", c[0]/minute, c[1]/minute, len(covered))
		}
		if n > 2*59+2*23+int((c[1]-c[0])/day) {
			t.Fatalf("[%d, %d) takes %d buckets", c[0]/minute, c[1]/minute, n)
		}
	}
}
