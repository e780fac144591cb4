package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	subjectBefore = "before"
	subjectBeside = "beside"

	// backlogType is the type of the events that pile up.
	backlogType = "bench.backlog"

	// backlogBatch is how many of them go into a request. One publisher sends
	// them, so that the order of their numbers is that in which they were
	// accepted.
	backlogBatch = maxBatch

	// untilPiledUp bounds the making of the backlog.
	untilPiledUp = 6 * time.Hour
)

// backlogRetries lets what was tried while the endpoint was down come again soon
// after it is back: by the default schedule a delivery that a probe has tried
// twice would be waited for for minutes. Fifty delays is the most that a server
// takes.
func backlogRetries() string { return strings.TrimSuffix(strings.Repeat("1s,", 50), ",") }

// backlog shows what a server does that holds a large number of deliveries for
// an endpoint that is down: to others meanwhile, when it starts, and when the
// endpoint is back.
func (r *runner) backlog(sc Scenario) plan {
	return plan{
		columns:  []string{subjectNormal, subjectBefore, subjectBeside},
		compared: [][2]string{{subjectBeside, subjectBefore}},
		pair: func(ctx context.Context, pair int, sr *ScenarioReport) error {
			return r.inRig(ctx, func(g *rig) error {
				b := &backlog{rig: g, r: r, sc: sc, pair: pair, sr: sr}
				return b.run(ctx)
			})
		},
	}
}

// backlog is one run of the scenario.
type backlog struct {
	*rig
	r    *runner
	sc   Scenario
	pair int
	sr   *ScenarioReport

	s         *subject
	down      string // the id of the webhook whose endpoint is down
	published *published
}

func (b *backlog) run(ctx context.Context) error {
	key, err := randomKey()
	if err != nil {
		return err
	}
	o := serverOptions{key: key, args: []string{"--max-queued=0", "--retry-schedule=" + backlogRetries()}}
	if b.s, err = b.server(ctx, o); err != nil {
		return err
	}
	if err := b.s.createWebhooks(ctx, b.hooks(modeOK, 0, 1), false); err != nil {
		return err
	}
	if b.down, err = b.s.createWebhook(ctx, b.receiver.base+hookPath(modeGate, 0, 0), backlogType); err != nil {
		return err
	}
	closed := b.sc
	closed.Rate = 0
	normal, err := b.r.load(ctx, closed, b.s, b.receiver)
	b.column(subjectNormal, normal)
	if err != nil {
		return fmt.Errorf("before the backlog: %w", err)
	}
	if err := b.beside(ctx, subjectBefore); err != nil {
		return fmt.Errorf("before the backlog: %w", err)
	}
	run, err := randomRun()
	if err != nil {
		return err
	}
	if err := b.pileUp(ctx, run); err != nil {
		return fmt.Errorf("making the backlog: %w", err)
	}
	if err := b.beside(ctx, subjectBeside); err != nil {
		return fmt.Errorf("beside the backlog: %w", err)
	}
	if err := b.restart(ctx, o); err != nil {
		return fmt.Errorf("restarting with the backlog: %w", err)
	}
	if err := b.drain(ctx, run, normal); err != nil {
		return fmt.Errorf("draining the backlog: %w", err)
	}
	return nil
}

func (b *backlog) column(name string, result *Result) {
	if result != nil {
		result.Subject = name
	}
	b.sr.add(b.pair, result)
}

// beside measures a webhook that is well.
func (b *backlog) beside(ctx context.Context, name string) error {
	result, err := b.r.measured(ctx, b.sc, b.s, b.receiver)
	b.column(name, result)
	return err
}

// pileUp publishes what waits.
func (b *backlog) pileUp(ctx context.Context, run uint32) error {
	if err := b.receiver.setGate(ctx, run, false); err != nil {
		return err
	}
	events := wireEvents{run: run, eventType: backlogType, batch: int(min(backlogBatch, b.sc.Backlog)), payloadBytes: b.sc.PayloadBytes}
	l := load{
		publishers: 1, batch: events.batch, duration: untilPiledUp, limit: b.sc.Backlog,
		connect: b.s.publishers(events),
	}
	var err error
	if b.published, err = l.drive(ctx); err != nil {
		return err
	}
	p := b.published
	if p.accepted == 0 || p.failed > 0 {
		return errors.Join(fmt.Errorf("%d events were accepted, %d failed", p.accepted, p.failed), p.failure)
	}
	if !sleep(ctx, settleTime) {
		return ctx.Err()
	}
	u, err := b.s.usage()
	if err != nil {
		return err
	}
	b.sr.figure("queued", "queued", float64(p.accepted))
	b.sr.figure("queuedPerSecond", "queued at, events/s", p.perSecond())
	b.sr.figure("queuedRefused", "refused meanwhile", float64(p.refused))
	b.memory("Backlog", "with the backlog", u)
	return nil
}

func (b *backlog) memory(name, when string, u usage) {
	b.sr.figure("resident"+name+"MiB", "memory "+when+", MiB", float64(u.memory.ResidentBytes)/mib)
	b.sr.figure("peak"+name+"MiB", "memory peak "+when+", MiB", float64(u.memory.PeakBytes)/mib)
}

// restart stops the server and starts it on what it left.
func (b *backlog) restart(ctx context.Context, o serverOptions) error {
	begin := time.Now()
	if err := b.stop(b.s); err != nil {
		return err
	}
	b.sr.figure("stopSeconds", "stopping took, s", time.Since(begin).Seconds())
	begin = time.Now()
	s, err := b.server(ctx, o)
	if err != nil {
		return err
	}
	b.sr.figure("readySeconds", "ready again after, s", time.Since(begin).Seconds())
	s.webhooks, b.s = b.s.webhooks, s
	u, err := s.usage()
	if err != nil {
		return err
	}
	b.memory("Restarted", "when ready", u)
	return nil
}

// drain mends the endpoint, says so to the server, and waits for everything.
func (b *backlog) drain(ctx context.Context, run uint32, normal *Result) error {
	if err := b.receiver.setGate(ctx, run, true); err != nil {
		return err
	}
	// A webhook that somebody enables is believed to be well: nobody waits for
	// the next probe.
	for _, on := range []bool{false, true} {
		if err := b.s.setEnabled(ctx, b.down, on); err != nil {
			return err
		}
	}
	m, err := startMeter(ctx, b.s, b.receiver)
	if err != nil {
		return err
	}
	g, err := b.untilPassed(ctx)
	if err != nil {
		return err
	}
	t, err := m.taken(ctx)
	if err != nil {
		return err
	}
	passed, err := b.receiver.numbers(ctx, "/_gatepassed")
	if err != nil {
		return err
	}
	took := time.Duration(g.LastAt - g.FirstAt)
	rate := perSecond(g.Unique, took)
	lost := b.published.numbers.missingFrom(passed)
	b.sr.figure("drainSeconds", "drained in, s", took.Seconds())
	b.sr.figure("drainPerSecond", "drained at, deliveries/s", rate)
	b.sr.figure("drainRatio", "  of the usual", rate/normal.DeliveredPerSecond)
	b.sr.figure("drainCpuSecondsPer1000", "  server CPU, s per 1000", t.server.Seconds()/float64(max(g.Unique, 1))*1000)
	if t.database.cpu > 0 {
		b.sr.figure("drainDatabaseCpuSecondsPer1000", "  database CPU, s per 1000", t.database.cpu.Seconds()/float64(max(g.Unique, 1))*1000)
	}
	b.sr.figure("drainHarnessCpuSeconds", "  harness CPU, s", t.harness.Seconds())
	b.sr.figure("drainOtherCpuSeconds", "  other CPU, s", t.others.Seconds())
	b.sr.figure("displacement", "largest displacement", float64(g.Displacement))
	b.sr.figure("tried", "tried while it was down", float64(g.Tried))
	b.sr.total("backlogLost", "lost", lost)
	b.sr.total("backlogDuplicates", "duplicates", g.Duplicates)
	b.memory("Drained", "when drained", usage{memory: t.memory})
	if lost > 0 {
		return fmt.Errorf("%w: %d of %d deliveries (no arrival for %v)", ErrLost, lost, b.published.accepted, b.r.opts.DrainIdle)
	}
	return nil
}

// untilPassed waits until the whole backlog has passed the gate, or nothing has
// for long enough.
func (b *backlog) untilPassed(ctx context.Context) (gateStats, error) {
	seen, lastChange := uint64(0), time.Now()
	for {
		g, err := b.receiver.gate(ctx)
		if err != nil {
			return g, err
		}
		if g.Unique != seen {
			seen, lastChange = g.Unique, time.Now()
		}
		if g.Unique >= b.published.accepted || time.Since(lastChange) >= b.r.opts.DrainIdle {
			// Duplicates may still come.
			if !sleep(ctx, settleTime) {
				return g, ctx.Err()
			}
			return b.receiver.gate(ctx)
		}
		if err := b.s.gone(); err != nil {
			return g, err
		}
		if !sleep(ctx, pollInterval) {
			return g, ctx.Err()
		}
	}
}
