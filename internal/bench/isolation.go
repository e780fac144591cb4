package bench

import (
	"context"
	"fmt"
)

// neighbourFactor is how many times as much the second tenant publishes.
const neighbourFactor = 20

const (
	subjectDisturbed = "disturbed"
	subjectCalm      = "calm"
)

// isolation shows who waits for whom: the same load on the same number of
// webhooks, with all of them well and with some that are not, in turn. Those
// that are ill, or stand in their place while all are well, are not measured.
func (r *runner) isolation(sc Scenario) plan {
	columns := []string{subjectDisturbed, subjectCalm}
	return plan{
		columns: columns, compared: [][2]string{{subjectDisturbed, subjectCalm}},
		pair: alternate(columns, func(ctx context.Context, column string) (*Result, error) {
			return r.isolated(ctx, sc, column == subjectDisturbed)
		}),
	}
}

func (r *runner) isolated(ctx context.Context, sc Scenario, disturbed bool) (result *Result, err error) {
	err = r.inRig(ctx, func(g *rig) error {
		operator, err := randomKey()
		if err != nil {
			return err
		}
		s, err := g.server(ctx, serverOptions{operator: operator})
		if err != nil {
			return err
		}
		hooks := append(g.hooks(modeOK, 0, sc.counted()), g.hooks(illMode(sc.Illness, disturbed), sc.counted(), sc.Ill)...)
		if err := s.createWebhooks(ctx, hooks, sc.Spread); err != nil {
			return err
		}
		if sc.Illness == illnessTenant {
			// While all is calm the second tenant is there, and silent.
			neighbour, err := s.secondTenant(ctx, operator)
			if err != nil {
				return fmt.Errorf("making a second tenant: %w", err)
			}
			if err := neighbour.createWebhooks(ctx, g.hooks(modeWell, 0, sc.Fanout), sc.Spread); err != nil {
				return err
			}
			if disturbed {
				s.neighbour = neighbour
			}
		}
		result, err = r.load(ctx, sc, s, g.receiver)
		return err
	})
	return result, err
}

// illMode is the receiver's mode of the webhooks that are not measured.
func illMode(illness string, disturbed bool) string {
	if !disturbed {
		return modeWell
	}
	switch illness {
	case illnessHang:
		return modeHang
	case illnessFail:
		return modeFail
	case illnessBusy:
		return modeBusy
	case illnessDrip:
		return modeDrip
	default:
		return modeWell
	}
}

// secondTenant makes another tenant on the server, with a key of its own.
func (s *subject) secondTenant(ctx context.Context, operator string) (*subject, error) {
	as := &subject{kind: s.kind, nodes: s.nodes, key: operator}
	var tenant struct {
		ID string `json:"id"`
	}
	if err := as.create(ctx, "/services/tenants", "", map[string]any{"name": "neighbour"}, &tenant); err != nil {
		return nil, err
	}
	var key struct {
		Key string `json:"key"`
	}
	wanted := map[string]any{"name": "bench", "scopes": []string{"webhooks:read", "webhooks:write", "events:write"}}
	if err := as.create(ctx, "/services/api-keys", tenant.ID, wanted, &key); err != nil {
		return nil, err
	}
	return &subject{kind: s.kind, nodes: s.nodes, key: key.Key}, nil
}
