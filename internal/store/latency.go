package store

import (
	"encoding/binary"
	"errors"
	"math"
	"time"
)

// Latency is how long attempts took: counts in buckets whose bounds grow by a
// factor of latencyGrowth, so that a quantile is off by 5 % at most, whatever
// the distribution. It adds up: over minutes, webhooks and nodes.
type Latency struct {
	counts [latencyBuckets]uint64
}

const (
	latencyGrowth  = 1.1
	latencyFloor   = 0.1 // ms; all below fall in the first bucket
	latencyBuckets = 156 // the last begins above 4 minutes
)

// Add counts an attempt that took d.
func (l *Latency) Add(d time.Duration) { l.counts[latencyBucket(d)]++ }

// Merge adds what other counted.
func (l *Latency) Merge(other *Latency) {
	for i, n := range other.counts {
		l.counts[i] += n
	}
}

// Quantile is the duration that a share q (0 to 1) of the attempts stayed
// within, zero if there were none.
func (l *Latency) Quantile(q float64) time.Duration {
	var total uint64
	for _, n := range l.counts {
		total += n
	}
	if total == 0 {
		return 0
	}
	rank := uint64(math.Ceil(q * float64(total)))
	var seen uint64
	for i, n := range l.counts {
		seen += n
		if n > 0 && seen >= rank {
			return bucketMiddle(i)
		}
	}
	return bucketMiddle(latencyBuckets - 1)
}

// AppendBinary writes the buckets that are not empty, as pairs of varints: the
// distance from the bucket before, and the count.
func (l *Latency) AppendBinary(b []byte) ([]byte, error) {
	last := 0
	for i, n := range l.counts {
		if n == 0 {
			continue
		}
		b = binary.AppendUvarint(b, uint64(i-last))
		b = binary.AppendUvarint(b, n)
		last = i
	}
	return b, nil
}

// UnmarshalBinary reads what AppendBinary wrote.
func (l *Latency) UnmarshalBinary(b []byte) error {
	*l = Latency{}
	i := uint64(0)
	for len(b) > 0 {
		step, n := binary.Uvarint(b)
		if n <= 0 {
			return errLatency
		}
		count, m := binary.Uvarint(b[n:])
		if i += step; m <= 0 || i >= latencyBuckets {
			return errLatency
		}
		l.counts[i] = count
		b = b[n+m:]
	}
	return nil
}

var errLatency = errors.New("stored latency counts are damaged")

func latencyBucket(d time.Duration) int {
	ms := float64(d) / float64(time.Millisecond)
	if ms <= latencyFloor {
		return 0
	}
	return min(latencyBuckets-1, 1+int(math.Log(ms/latencyFloor)/math.Log(latencyGrowth)))
}

func bucketMiddle(i int) time.Duration {
	ms := latencyFloor
	if i > 0 {
		ms = latencyFloor * math.Pow(latencyGrowth, float64(i)-0.5)
	}
	return time.Duration(ms * float64(time.Millisecond))
}
