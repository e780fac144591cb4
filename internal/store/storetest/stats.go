package storetest

import (
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func statsTests() tests {
	return tests{
		"any window, against a sum of all attempts": statsWindows,
		"of nothing": statsOfNothing,
	}
}

func statsOfNothing(_ *testing.T, f *fixture) {
	for _, since := range []time.Time{{}, f.now.Add(-time.Hour), f.now} {
		if s := f.stats(f.a, since, f.now); *s != (store.Stats{}) {
			f.Fatalf("stats are %+v; want none", s)
		}
	}
}

func statsWindows(_ *testing.T, f *fixture) {
	type done struct {
		at      time.Time
		webhook id.Webhook
		took    time.Duration
		ok      bool
	}
	var all []done
	end := f.now
	// Steps that fall on bounds of minutes, hours and days, and between them.
	steps := []time.Duration{time.Millisecond, 59 * time.Second, time.Minute, 7 * time.Minute, time.Hour, 5 * time.Hour, 11 * time.Hour, 24 * time.Hour, 50 * time.Hour}
	f.now = end.Add(-40 * 24 * time.Hour).Truncate(24 * time.Hour)
	var marks []time.Time
	for i := 0; f.now.Before(end); i++ {
		w := []id.Webhook{f.a, f.b}[i%2]
		d := f.queue(w, 1)[0]
		change := []hook.Change{hook.Succeeded, hook.Exhausted, hook.Succeeded}[i%3]
		o := f.outcome(w, d, 1, change)
		o.Attempt.Duration = time.Duration(i+1) * 7 * time.Millisecond
		f.finish(o)
		all = append(all, done{f.now, w, o.Attempt.Duration, change == hook.Succeeded})
		if i%4 == 0 {
			marks = append(marks, f.now)
		}
		f.now = f.now.Add(steps[(i*i+i/3)%len(steps)])
	}
	f.crash()
	marks = append(marks, time.Time{}, marks[1].Add(31*time.Second), marks[2].Add(time.Minute))
	for _, w := range []id.Webhook{{}, f.a, f.b} {
		for _, since := range marks {
			for _, until := range marks {
				var want store.Stats
				from, to := since.Truncate(time.Minute), until.Truncate(time.Minute)
				for _, d := range all {
					if (!w.IsZero() && d.webhook != w) || (!since.IsZero() && d.at.Before(from)) || (!until.IsZero() && !d.at.Before(to)) {
						continue
					}
					if d.ok {
						want.Succeeded++
					} else {
						want.Failed++
					}
					want.Latency.Add(d.took)
				}
				got := f.stats(w, since, until)
				if *got != want {
					f.Fatalf("from %v to %v: %d succeeded, %d failed, p95 %v; want %d, %d, %v", since, until,
						got.Succeeded, got.Failed, got.Latency.Quantile(0.95), want.Succeeded, want.Failed, want.Latency.Quantile(0.95))
				}
			}
		}
	}
}
