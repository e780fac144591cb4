package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxFailures is how many publishes in a row may fail on one connection
	// before the load is given up: the server is gone or misunderstands us, and
	// more of the same tells nothing.
	maxFailures = 10

	failureBackoff = 50 * time.Millisecond
	refusalBackoff = 100 * time.Millisecond // where the server names no time
	maxBackoff     = time.Second            // however long the server asks for
)

// A load is one stretch of publishing.
type load struct {
	publishers int
	rate       float64 // events per second; 0 is a closed loop
	batch      int
	duration   time.Duration
	connect    func() publisher
}

// published is what a load has done, in events (not in batches).
type published struct {
	accepted, refused, failed uint64
	unsent                    uint64     // due in an open loop, but never published
	numbers                   bitmap     // of the accepted events
	ack                       *histogram // from a publish's start to its 202, once per publish
	first, last               time.Time  // the first publish's start, the last 202
	failure                   error      // the first failure
}

// perSecond is the number of accepted events over the time from the first
// publish to the last 202.
func (p *published) perSecond() float64 { return perSecond(p.accepted, p.last.Sub(p.first)) }

func perSecond(n uint64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}

// errGaveUp is the cause of a load's end when a publisher met only failures.
var errGaveUp = errors.New("publishing was given up")

// drive publishes until the duration is over and every answer has come. In a
// closed loop each publisher sends its next batch when the answer to the last
// has come, and waits a little after a refusal. In an open loop batches are
// due at fixed times; whichever publisher is free takes the next one, and one
// that is sent late counts from when it was due, so that the time an event
// spent waiting for a stalled server is part of its latency. What has not been
// sent when the duration has passed twice is unsent.
//
// The error is ctx's, or says that the server kept failing; what was published
// until then is returned in any case.
func (l load) drive(ctx context.Context) (*published, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	var (
		next    atomic.Uint64 // the next batch
		mu      sync.Mutex    // guards numbers, failure
		total   = &published{ack: new(histogram)}
		parts   = make([]published, l.publishers)
		start   = time.Now()
		end     = start.Add(l.duration)
		giveUp  = end.Add(l.duration)
		size    = uint64(l.batch)
		spacing float64 // between batches, in nanoseconds
	)
	if l.rate > 0 {
		spacing = float64(l.batch) / l.rate * float64(time.Second)
	}

	// take returns the next batch and when its publishing is deemed to begin.
	take := func(part *published) (batch uint64, at time.Time, ok bool) {
		for {
			if l.rate == 0 {
				at = time.Now()
				if !at.Before(end) || ctx.Err() != nil {
					return 0, at, false
				}
				return next.Add(1) - 1, at, true
			}
			batch = next.Add(1) - 1
			at = start.Add(time.Duration(float64(batch) * spacing))
			if !at.Before(end) {
				return 0, at, false
			}
			now := time.Now()
			if now.After(giveUp) {
				part.unsent += size
				continue
			}
			if !sleep(ctx, at.Sub(now)) {
				return 0, at, false
			}
			return batch, at, true
		}
	}

	work := func(part *published) {
		p := l.connect()
		defer p.close()
		part.ack = new(histogram)
		failures := 0
		for {
			batch, at, ok := take(part)
			if !ok {
				return
			}
			number := batch * size
			if number+size > maxNumber {
				cancel(fmt.Errorf("%w: more than %d events in one run", errGaveUp, uint64(maxNumber)))
				return
			}
			if part.first.IsZero() {
				part.first = at
			}
			o := p.publish(ctx, number, at)
			switch o.verdict {
			case accepted:
				failures = 0
				part.last = time.Now()
				part.ack.record(part.last.Sub(at))
				part.accepted += size
				mu.Lock()
				for n := range size {
					total.numbers.add(number + n)
				}
				mu.Unlock()
			case refused:
				failures = 0
				part.refused += size
				if l.rate == 0 {
					wait := refusalBackoff
					override(&wait, o.retryAfter)
					sleep(ctx, min(wait, maxBackoff))
				}
			case failed:
				if ctx.Err() != nil {
					return // we broke it off ourselves
				}
				part.failed += size
				mu.Lock()
				if total.failure == nil {
					total.failure = o.err
				}
				mu.Unlock()
				if failures++; failures == maxFailures {
					cancel(fmt.Errorf("%w after %d failures in a row: %w", errGaveUp, failures, o.err))
					return
				}
				sleep(ctx, failureBackoff)
			}
		}
	}

	var wg sync.WaitGroup
	for i := range parts {
		wg.Go(func() { work(&parts[i]) })
	}
	wg.Wait()

	for i := range parts {
		part := &parts[i]
		total.accepted += part.accepted
		total.refused += part.refused
		total.failed += part.failed
		total.unsent += part.unsent
		total.ack.merge(part.ack)
		if total.first.IsZero() || (!part.first.IsZero() && part.first.Before(total.first)) {
			total.first = part.first
		}
		if part.last.After(total.last) {
			total.last = part.last
		}
	}
	return total, context.Cause(ctx)
}

// sleep waits for d, which may be negative, and says whether ctx let it.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
