package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"sync"
	"time"
)

// What can be measured.
const (
	subjectHypha = "hypha"
	subjectRelay = "relay"
)

const (
	pollInterval = 50 * time.Millisecond

	// settleTime is how long a server may go on after the last arrival before
	// its CPU time is read: recording what the receiver answered is part of the
	// work of a delivery.
	settleTime = 300 * time.Millisecond

	// cleanupTimeout bounds the requests that tidy up at a server that stays.
	cleanupTimeout = 10 * time.Second
)

// runner carries out the scenarios of one Run.
type runner struct {
	opts      Options
	out       io.Writer
	databases databaseServer // nil: servers use embedded stores
}

// A plan is how a scenario is carried out.
type plan struct {
	// columns are what is measured, in the order of the table, and compared
	// the pairs of them of which ratios are taken.
	columns  []string
	compared [][2]string

	// pair is done as often as asked, and adds to the report what it measured,
	// even if there is an error.
	pair func(ctx context.Context, pair int, sr *ScenarioReport) error

	// around, if set, does what is done once, and the pairs in between.
	around func(ctx context.Context, sr *ScenarioReport, pairs func() error) error

	note string
}

func (r *runner) plan(sc Scenario) plan {
	switch sc.Setup {
	case SetupIsolation:
		return r.isolation(sc)
	case SetupBacklog:
		return r.backlog(sc)
	case SetupHistory:
		return r.history(sc)
	case SetupOverload:
		return r.overload(sc)
	case SetupLoad:
	}
	p := plan{columns: []string{subjectHypha}}
	switch {
	case r.opts.Against == "":
	case !sc.relayable():
		p.note = "the " + r.opts.Against + " can't do this: nothing to compare with"
	default:
		p.columns = append(p.columns, r.opts.Against)
		p.compared = [][2]string{{subjectHypha, r.opts.Against}}
	}
	p.pair = alternate(p.columns, func(ctx context.Context, subject string) (*Result, error) {
		return r.measure(ctx, sc, subject)
	})
	return p
}

// alternate measures columns one after another. Whoever goes second must not
// always be the same.
func alternate(columns []string, measure func(ctx context.Context, column string) (*Result, error)) func(context.Context, int, *ScenarioReport) error {
	return func(ctx context.Context, pair int, sr *ScenarioReport) error {
		var failures []error
		for i := range columns {
			if pair%2 == 0 {
				i = len(columns) - 1 - i
			}
			result, err := measure(ctx, columns[i])
			if result != nil {
				result.Subject = columns[i]
			}
			sr.add(pair, result)
			if err != nil {
				failures = append(failures, fmt.Errorf("%s: %w", columns[i], err))
			}
			if ctx.Err() != nil {
				break
			}
		}
		return errors.Join(failures...)
	}
}

// scenario runs one scenario as often as asked. What was measured is returned
// even if there is an error.
func (r *runner) scenario(ctx context.Context, sc Scenario) (ScenarioReport, error) {
	p := r.plan(sc)
	sr := ScenarioReport{
		Scenario: sc, Duration: sc.Duration.String(), Warmup: sc.Warmup.String(),
		Columns: p.columns, Note: p.note, compared: p.compared,
	}
	pairs := func() error {
		var failures []error
		for pair := range sc.Pairs {
			if err := p.pair(ctx, pair+1, &sr); err != nil {
				failures = append(failures, err)
			}
			if ctx.Err() != nil {
				break
			}
		}
		return errors.Join(failures...)
	}
	var err error
	if p.around != nil {
		err = p.around(ctx, &sr, pairs)
	} else {
		err = pairs()
	}
	sr.summarize()
	return sr, err
}

// measure runs a load once, with fresh processes. The result is nil if it came
// to no end.
func (r *runner) measure(ctx context.Context, sc Scenario, kind string) (result *Result, err error) {
	err = r.inRig(ctx, func(g *rig) (err error) {
		hooks := g.measured(sc)
		beside := append(append(g.hooks(modeSlow, 0, sc.Slow), g.hooks(modeHang, 0, sc.Hanging)...), g.hooks(modeFail, 0, sc.Failing)...)
		var s *subject
		switch {
		case kind == subjectRelay:
			s, err = g.relay(ctx, hooks)
		case r.opts.Target != "":
			n := node{pid: r.opts.TargetPID}
			if n.base, err = url.Parse(r.opts.Target); err == nil {
				s = &subject{kind: subjectHypha, key: r.opts.APIKey, nodes: []node{n}}
				err = s.ready(ctx, r.opts.ReadyTimeout)
			}
		default:
			s, err = g.server(ctx, serverOptions{})
		}
		if err != nil {
			return err
		}
		if kind == subjectHypha {
			defer func() {
				if r.opts.Target != "" {
					err = errors.Join(err, s.deleteWebhooks(ctx))
				}
			}()
			if err := s.createWebhooks(ctx, hooks, sc.Spread); err != nil {
				return err
			}
			for _, hook := range beside {
				wanted := eventType
				if sc.Spread {
					wanted = anyEventType
				}
				if _, err := s.createWebhook(ctx, hook, wanted); err != nil {
					return err
				}
			}
		}
		result, err = r.load(ctx, sc, s, g.receiver)
		return err
	})
	return result, err
}

// load warms s up and measures it.
func (r *runner) load(ctx context.Context, sc Scenario, s *subject, rc *receiverClient) (*Result, error) {
	idle, err := s.usage()
	if err != nil {
		return nil, err
	}
	var warmupLost uint64
	if sc.Warmup > 0 {
		warm, err := r.stretch(ctx, sc, s, rc, sc.Warmup)
		if err != nil {
			return nil, fmt.Errorf("warm-up: %w", err)
		}
		warmupLost = warm.lost
	}
	result, err := r.measured(ctx, sc, s, rc)
	if result == nil {
		return nil, err
	}
	result.MemoryIdle, result.WarmupLost = idle.memory, warmupLost
	if warmupLost > 0 && !errors.Is(err, ErrLost) {
		err = errors.Join(err, fmt.Errorf("%w: %d deliveries of the warm-up (no arrival for %v)", ErrLost, warmupLost, r.opts.DrainIdle))
	}
	return result, err
}

// measured loads s, waits until everything has arrived, and does the sums. What
// was lost, or failed, is an error beside the result.
func (r *runner) measured(ctx context.Context, sc Scenario, s *subject, rc *receiverClient) (*Result, error) {
	m, err := startMeter(ctx, s, rc)
	if err != nil {
		return nil, err
	}
	st, err := r.stretch(ctx, sc, s, rc, sc.Duration)
	if err != nil {
		return nil, err
	}
	result := &Result{Subject: s.kind}
	if err := m.stop(ctx, result); err != nil {
		return nil, err
	}
	p, a := st.published, st.arrivals
	if a.Unique > 0 {
		result.CPUSecondsPer1000 = result.CPUSeconds / float64(a.Unique) * 1000
		result.DatabaseCPUSecondsPer1000 = result.DatabaseCPUSeconds / float64(a.Unique) * 1000
		result.CommitsPerDelivery = float64(result.DatabaseCommits) / float64(a.Unique)
		result.WALBytesPerDelivery = float64(result.DatabaseWALBytes) / float64(a.Unique)
	}
	result.Accepted, result.Refused, result.Failed, result.Unsent = p.accepted, p.refused, p.failed, p.unsent
	result.Statuses, result.RefusedWithoutTime = p.byStatus(), p.unnamed
	result.AcceptedPerSecond = p.perSecond()
	result.AckMs, result.RefusalMs = p.ack.latency(), p.refusal.latency()
	result.Delivered, result.Duplicates, result.Stray = a.Unique, a.Duplicates, a.Stray
	result.DeliveredPerSecond = perSecond(a.Unique, time.Unix(0, a.LastAt).Sub(p.first))
	result.LatencyMs = a.LatencyMs
	result.Lost, result.Unaccepted = st.lost, st.unaccepted
	result.Bystanders, result.BystanderDuplicates, result.BystanderPeak = a.Bystanders, a.BystanderDuplicates, a.BystanderPeak
	if n := st.neighbour; n != nil {
		result.NeighbourPerSecond, result.NeighbourRefused = n.perSecond(), n.refused
		if n.failed > 0 {
			return result, fmt.Errorf("%d publishes of the second tenant failed; the first: %w", n.failed, n.failure)
		}
	}
	if result.Lost > 0 {
		return result, fmt.Errorf("%w: %d of %d deliveries (no arrival for %v)", ErrLost, result.Lost, st.expected, r.opts.DrainIdle)
	}
	if p.failed > 0 {
		return result, fmt.Errorf("%d publishes failed; the first: %w", p.failed/uint64(sc.Batch), p.failure)
	}
	return result, nil
}

// A stretch is a load and what arrived of it.
type stretch struct {
	published  *published
	neighbour  *published // what a second tenant did at the same time; nil without one
	expected   uint64     // deliveries of what was accepted
	arrivals   arrivals
	lost       uint64 // accepted, and never arrived at a webhook
	unaccepted uint64 // arrived, although refused or failed
}

// loadOf is the load of a scenario on a subject.
func loadOf(sc Scenario, s *subject, run uint32, duration time.Duration) load {
	events := wireEvents{run: run, eventType: eventType, types: sc.types(), batch: sc.Batch, payloadBytes: sc.PayloadBytes}
	return load{
		publishers: sc.Publishers, rate: sc.Rate, batch: sc.Batch, duration: duration, drop: sc.Setup == SetupOverload && sc.Rate > 0,
		connect: s.publishers(events),
	}
}

func (r *runner) stretch(ctx context.Context, sc Scenario, s *subject, rc *receiverClient, duration time.Duration) (*stretch, error) {
	run, err := randomRun()
	if err != nil {
		return nil, err
	}
	if err := rc.reset(ctx, run); err != nil {
		return nil, err
	}
	st := &stretch{}
	err = st.publish(ctx, sc, s, run, duration)
	p := st.published
	if err != nil {
		return nil, errors.Join(err, s.gone())
	}
	if p.accepted == 0 {
		return nil, errors.Join(errors.New("the server accepted nothing"), p.failure, s.gone())
	}
	st.expected = sc.expected(&p.numbers)
	if err := r.drain(ctx, sc, s, rc, st); err != nil {
		return nil, errors.Join(err, s.gone())
	}
	if !sleep(ctx, settleTime) {
		return nil, ctx.Err()
	}
	// Duplicates may have come since.
	st.arrivals, err = rc.stats(ctx)
	if err != nil {
		return nil, err
	}
	if st.arrivals.Untracked > 0 {
		return nil, fmt.Errorf("%d arrivals were more than the receiver can tell apart: shorten the run", st.arrivals.Untracked)
	}
	return st, nil
}

// publish drives the load, and that of the neighbour if there is one.
func (st *stretch) publish(ctx context.Context, sc Scenario, s *subject, run uint32, duration time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var beside sync.WaitGroup
	var besideErr, err error
	if s.neighbour != nil {
		more := sc
		more.Rate *= neighbourFactor
		beside.Go(func() {
			st.neighbour, besideErr = loadOf(more, s.neighbour, run+1, duration).drive(ctx)
		})
	}
	st.published, err = loadOf(sc, s, run, duration).drive(ctx)
	if err != nil {
		cancel()
	}
	beside.Wait()
	if err == nil && besideErr != nil {
		err = fmt.Errorf("the second tenant: %w", besideErr)
	}
	return err
}

// drain waits until every accepted event has arrived at every webhook, or
// nothing new has arrived for long enough.
func (r *runner) drain(ctx context.Context, sc Scenario, s *subject, rc *receiverClient, st *stretch) error {
	seen, lastChange := uint64(0), time.Now()
	for {
		a, err := rc.stats(ctx)
		if err != nil {
			return err
		}
		if a.Unique != seen {
			seen, lastChange = a.Unique, time.Now()
		}
		over := time.Since(lastChange) >= r.opts.DrainIdle
		if a.Unique >= st.expected || over {
			st.lost, st.unaccepted = 0, 0
			for hook := range sc.counted() {
				arrived, err := rc.arrived(ctx, hook)
				if err != nil {
					return err
				}
				wanted := sc.wanted(&st.published.numbers, hook)
				st.lost += wanted.missingFrom(arrived)
				st.unaccepted += arrived.missingFrom(wanted)
			}
			if st.lost == 0 || over {
				return nil
			}
		}
		if s.gone() != nil {
			return errors.New("deliveries are outstanding, and nobody is left to make them")
		}
		if !sleep(ctx, pollInterval) {
			return ctx.Err()
		}
	}
}
