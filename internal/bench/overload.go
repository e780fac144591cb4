package bench

import (
	"context"
	"errors"
	"fmt"
)

const (
	subjectOverload = "overload"
	subjectNormal   = "normal"
)

const (
	// normalPublishers is the closed loop that shows what a server takes when
	// nobody offers more than it can do.
	normalPublishers = 64

	// overloadFactor is how many times as much is then offered.
	overloadFactor = 10
)

// overload shows what a server does that is offered far more than it can take:
// first it is measured as usual, and then it gets ten times as much in an open
// loop. With so many connections that wait for answers, what it can't take is
// known at once; what finds no free connection is unsent.
func (r *runner) overload(sc Scenario) plan {
	return plan{
		columns:  []string{subjectOverload, subjectNormal},
		compared: [][2]string{{subjectOverload, subjectNormal}},
		pair: func(ctx context.Context, pair int, sr *ScenarioReport) error {
			return r.inRig(ctx, func(g *rig) error { return r.overloaded(ctx, sc, g, pair, sr) })
		},
	}
}

func (r *runner) overloaded(ctx context.Context, sc Scenario, g *rig, pair int, sr *ScenarioReport) error {
	s, err := g.server(ctx, serverOptions{})
	if err != nil {
		return err
	}
	if err := s.createWebhooks(ctx, g.hooks(modeOK, 0, sc.Fanout), false); err != nil {
		return err
	}
	usual := sc
	usual.Publishers, usual.Rate = normalPublishers, 0
	normal, err := r.load(ctx, usual, s, g.receiver)
	if normal != nil {
		normal.Subject = subjectNormal
	}
	sr.add(pair, normal)
	if err != nil {
		return fmt.Errorf("%s: %w", subjectNormal, err)
	}

	setDefault(&sc.Rate, overloadFactor*normal.AcceptedPerSecond)
	over, err := r.measured(ctx, sc, s, g.receiver)
	if over == nil {
		return fmt.Errorf("%s: %w", subjectOverload, err)
	}
	over.Subject, over.MemoryIdle = subjectOverload, normal.MemoryIdle
	sr.add(pair, over)
	sent := over.Accepted + over.Refused + over.Failed
	sr.figure("offeredPerSecond", "offered/s", sc.Rate)
	sr.figure("sentPerSecond", "sent/s", perSecond(sent, sc.Duration))
	sr.figure("goodput", "accepted/s of the usual", over.AcceptedPerSecond/normal.AcceptedPerSecond)
	if over.RefusedWithoutTime > 0 {
		err = errors.Join(err, fmt.Errorf("%d events were refused without saying when to try again (Retry-After)", over.RefusedWithoutTime))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", subjectOverload, err)
	}
	return nil
}
