package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
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
	limit      uint64 // events; 0 is no limit

	// drop makes an open loop one that offers more than can be sent: a batch
	// that is due while every connection waits for an answer is left out,
	// instead of sent late, so that what a publisher measures is the server and
	// not its own queue. And however many publishes fail, it goes on.
	drop bool

	connect func() publisher
}

// dropAfter is how late a batch may be sent if late ones are dropped: a busy
// machine wakes publishers late.
const dropAfter = 10 * time.Millisecond

// published is what a load has done, in events (not in batches).
type published struct {
	accepted, refused, failed uint64
	unsent                    uint64         // due in an open loop, but never published
	statuses                  map[int]uint64 // of the answers; 0 is none
	unnamed                   uint64         // refused without saying when to try again
	numbers                   bitmap         // of the accepted events
	ack                       histogram      // from a publish's start to its 202, once per publish
	refusal                   histogram      // from the sending to the 429 or 503, once per publish
	first, last               time.Time      // the first publish's start, the last 202
	failure                   error          // the first failure
}

func newPublished() *published { return &published{statuses: map[int]uint64{}} }

// note adds what became of one publish of size events, the first of which is
// numbered first. It is deemed to have begun at the one time, and was sent and
// answered at the others.
func (p *published) note(o outcome, first, size uint64, at, sent, answered time.Time) {
	p.statuses[o.status] += size
	if p.first.IsZero() || at.Before(p.first) {
		p.first = at
	}
	switch o.verdict {
	case accepted:
		p.accepted += size
		if answered.After(p.last) {
			p.last = answered
		}
		p.ack.record(answered.Sub(at))
		for n := range size {
			p.numbers.add(first + n)
		}
	case refused:
		p.refused += size
		p.refusal.record(answered.Sub(sent))
		if !o.retrySaid {
			p.unnamed += size
		}
	case failed:
		p.failed += size
		if p.failure == nil {
			p.failure = o.err
		}
	}
}

// byStatus is how many events were answered with each status that is usual, and
// with others or none.
func (p *published) byStatus() map[string]uint64 {
	out := map[string]uint64{}
	for status, n := range p.statuses {
		switch status {
		case http.StatusAccepted, http.StatusTooManyRequests, http.StatusServiceUnavailable:
			out[strconv.Itoa(status)] += n
		default:
			out["other"] += n
		}
	}
	return out
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
		mu      sync.Mutex    // guards total
		total   = newPublished()
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
	take := func() (batch uint64, at time.Time, ok bool) {
		var unsent uint64
		defer func() {
			if unsent > 0 {
				mu.Lock()
				total.unsent += unsent
				mu.Unlock()
			}
		}()
		for {
			if l.rate == 0 {
				at = time.Now()
				if !at.Before(end) || ctx.Err() != nil {
					return 0, at, false
				}
				batch = next.Add(1) - 1
				return batch, at, l.limit == 0 || batch*size < l.limit
			}
			batch = next.Add(1) - 1
			at = start.Add(time.Duration(float64(batch) * spacing))
			if !at.Before(end) {
				return 0, at, false
			}
			now := time.Now()
			switch {
			case now.After(giveUp), l.drop && now.Sub(at) > dropAfter:
				unsent += size
				continue
			case l.drop && now.After(at):
				return batch, now, ctx.Err() == nil
			}
			return batch, at, sleep(ctx, at.Sub(now))
		}
	}

	work := func() {
		p := l.connect()
		defer p.close()
		failures := 0
		for {
			batch, at, ok := take()
			if !ok {
				return
			}
			number := batch * size
			if number+size > maxNumber {
				cancel(fmt.Errorf("%w: more than %d events in one run", errGaveUp, uint64(maxNumber)))
				return
			}
			sent := time.Now()
			o := p.publish(ctx, number, at)
			answered := time.Now()
			if o.verdict == failed && ctx.Err() != nil {
				return // we broke it off ourselves
			}
			mu.Lock()
			total.note(o, number, size, at, sent, answered)
			mu.Unlock()
			switch o.verdict {
			case accepted:
				failures = 0
			case refused:
				failures = 0
				if l.rate == 0 {
					wait := refusalBackoff
					override(&wait, o.retryAfter)
					sleep(ctx, min(wait, maxBackoff))
				}
			case failed:
				if failures++; failures == maxFailures && !l.drop {
					cancel(fmt.Errorf("%w after %d failures in a row: %w", errGaveUp, failures, o.err))
					return
				}
				sleep(ctx, failureBackoff)
			}
		}
	}

	var wg sync.WaitGroup
	for range l.publishers {
		wg.Go(work)
	}
	wg.Wait()
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
