package store

import (
	"math"
	"time"
)

// A Level is how long the time is that a counter of attempts stands for. Drivers
// keep counters of each, so that any time is the sum of a few.
type Level int64

// The levels, and their numbers as they are stored.
const (
	LevelAll Level = iota
	LevelDay
	LevelHour
	LevelMinute
)

// NumLevels is how many levels there are.
const NumLevels = 4

// Levels are all that there are.
func Levels() [NumLevels]Level {
	return [...]Level{LevelAll, LevelDay, LevelHour, LevelMinute}
}

// Start is where the bucket of a time begins, in Unix milliseconds.
func (l Level) Start(ms int64) int64 {
	width := l.width()
	if width == 0 {
		return 0
	}
	return ms - ms%width
}

// width is in milliseconds; 0 for all time.
func (l Level) width() int64 {
	switch l {
	case LevelMinute:
		return time.Minute.Milliseconds()
	case LevelHour:
		return time.Hour.Milliseconds()
	case LevelDay:
		return 24 * time.Hour.Milliseconds()
	default:
		return 0
	}
}

// Span is a range of buckets of a level, in Unix milliseconds: From included, To
// not.
type Span struct {
	Level    Level
	From, To int64
}

// The time that counters can be of.
const (
	firstTime = 0
	lastTime  = math.MaxInt64 / 2
)

// Spans covers a time (zero is open), rounded down to minutes, with as few buckets
// as may be: days in its middle, hours and minutes at its ends.
func Spans(since, until time.Time) []Span {
	from, to := bound(since, firstTime), bound(until, LevelDay.Start(lastTime))
	if from >= to {
		return nil
	}
	var out []Span
	add := func(l Level, from, to int64) {
		if from < to {
			out = append(out, Span{l, from, to})
		}
	}
	// cover adds [from, to), whose bounds are on a bucket of l.
	var cover func(l Level, from, to int64)
	cover = func(l Level, from, to int64) {
		if l == LevelDay {
			add(l, from, to)
			return
		}
		larger := l - 1
		first, last := larger.Start(from+larger.width()-1), larger.Start(to)
		if first >= last {
			add(l, from, to)
			return
		}
		add(l, from, first)
		cover(larger, first, last)
		add(l, last, to)
	}
	cover(LevelMinute, from, to)
	return out
}

func bound(t time.Time, open int64) int64 {
	if t.IsZero() {
		return open
	}
	return LevelMinute.Start(max(firstTime, t.UnixMilli()))
}
