// Package bench is the load harness behind `hypha bench`: it publishes events
// over HTTP to a Hypha server, receives what that server delivers, and says how
// fast, how late and how completely the events came through.
//
// Publisher, server and receiver are three processes, so that nobody's garbage
// collector or scheduler is measured as somebody else's. The publisher speaks
// HTTP/1.1 over raw connections with prebuilt requests, and the receiver is
// equally lean, because on a small machine every cycle the harness takes is one
// the server does not get.
//
// It promises that the counts are exact: every accepted event is remembered by
// its number and looked up among the arrivals, so "lost" and "duplicates" are
// facts and not differences of totals. In an open loop latency counts from the
// moment an event was scheduled, not from when a publisher got round to it, so
// a stalled server cannot hide the events that it held up.
//
// It must not know anything about the server's insides: it imports none of its
// packages and uses the public HTTP API alone.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

// ErrLost is wrapped by the error of [Run] when an accepted event did not
// arrive at a webhook that wanted it.
var ErrLost = errors.New("accepted events never arrived")

// Options says what [Run] does. The zero value of a field means its default; a
// field that a scenario also sets overrides the scenario.
type Options struct {
	// Self is the path of the executable that is started again for the
	// receiver (`bench-receiver`), the relay (`bench-relay`) and the server
	// (`serve`). Default: the running executable.
	Self string

	// ServeArgs are added to the command line of the server that is started.
	// The server does not inherit HYPHA_ variables, so that settings of a
	// production server (its database above all) cannot leak into a load test;
	// what should differ from the defaults is said here. Default: none.
	ServeArgs []string

	// Target is the base URL of a running server to load instead of starting
	// one, such as http://127.0.0.1:8080. That server must be allowed to reach
	// the receiver (--allow-egress). Default: a server is started.
	Target string

	// APIKey is the key for Target, with the scopes webhooks:write and
	// events:write. Required with Target, not allowed without.
	APIKey string

	// TargetPID is the process id of Target when it runs on this machine; its
	// CPU time and memory are then reported. Default: not reported.
	TargetPID int

	// ReceiverHost is the address of this machine that the receiver listens on
	// and that the server delivers to. Publisher and receiver compare clocks,
	// which is why both run here. Default: 127.0.0.1.
	ReceiverHost string

	// Scenario names a row of [Scenarios], or is "all". Default: "default".
	Scenario string

	// Publishers is the number of connections that publish, each waiting for
	// its answer before it publishes again. Default: the scenario's (64).
	Publishers int

	// Rate, in events per second, makes the load an open loop: events are due
	// at fixed times whatever the server does. Default: the scenario's (0,
	// closed loop: as fast as the answers come).
	Rate float64

	// Fanout is the number of webhooks, each of which gets every event.
	// Default: the scenario's (1).
	Fanout int

	// PayloadBytes is the size of an event's `data` in bytes, at least 64.
	// Default: the scenario's (512).
	PayloadBytes int

	// Batch is the number of events in one publish, at most 1,000; above 1 they
	// go to /services/events/batch. Default: the scenario's (1).
	Batch int

	// Slow, Hanging and Failing are numbers of further webhooks that answer
	// late (after SlowDelay), never, or with 500. They show how far one webhook
	// disturbs another: what they get is not part of delivered, lost or
	// latency. Default: 0.
	Slow, Hanging, Failing int

	// SlowDelay is how late a slow webhook answers. Default: 1 s.
	SlowDelay time.Duration

	// Duration is how long events are published and measured. Default: 10 s.
	Duration time.Duration

	// Warmup is how long events are published, and then drained, before
	// anything is measured. Negative: no warm-up. Default: 2 s.
	Warmup time.Duration

	// DrainIdle ends the wait for outstanding events: what has not arrived
	// after this long without any new arrival is lost. Default: 15 s.
	DrainIdle time.Duration

	// ReadyTimeout is how long a started process may take until it is ready.
	// Default: 30 s.
	ReadyTimeout time.Duration

	// StopTimeout is how long a process may take to stop after SIGTERM before
	// it is killed. Default: 30 s.
	StopTimeout time.Duration

	// Against names what to compare with: "relay", the bare relay of
	// [RunRelay], gets the same load. Default: nothing.
	Against string

	// Pairs is how often each scenario is run (with Against, as pairs that
	// alternate which goes first); more than one reports medians. Default: 1.
	Pairs int

	// JSONFile is where the whole report is written as JSON. Default: nowhere.
	JSONFile string

	// TempDir is the folder that gets the temporary data folders. It should be
	// on the disk that is to be measured: a sync costs nothing on tmpfs.
	// Default: the system's folder for temporary files.
	TempDir string
}

// Scenario is a load: a row of the table of [Scenarios] with the overrides of
// [Options] applied.
type Scenario struct {
	Name         string  `json:"name"`
	Publishers   int     `json:"publishers"`
	Rate         float64 `json:"rate"` // events per second; 0 is a closed loop
	Fanout       int     `json:"fanout"`
	PayloadBytes int     `json:"payloadBytes"`
	Batch        int     `json:"batch"`
	Slow         int     `json:"slow"`
	Hanging      int     `json:"hanging"`
	Failing      int     `json:"failing"`
}

// Scenarios returns the named loads, in the order in which "all" runs them.
func Scenarios() []Scenario {
	return []Scenario{
		{Name: "default", Publishers: 64, Fanout: 1, PayloadBytes: 512, Batch: 1},
		{Name: "latency", Publishers: 64, Rate: 200, Fanout: 1, PayloadBytes: 512, Batch: 1},
		{Name: "fanout10", Publishers: 64, Fanout: 10, PayloadBytes: 512, Batch: 1},
	}
}

// String describes the load in one line.
func (s Scenario) String() string {
	var b strings.Builder
	if s.Rate > 0 {
		fmt.Fprintf(&b, "open loop at %g events/s", s.Rate)
	} else {
		b.WriteString("closed loop")
	}
	fmt.Fprintf(&b, ", %s, %d B data, %s", count(s.Publishers, "publisher"), s.PayloadBytes, count(s.Fanout, "webhook"))
	if s.Batch > 1 {
		fmt.Fprintf(&b, ", batches of %d", s.Batch)
	}
	for _, n := range []struct {
		n    int
		what string
	}{{s.Slow, "slow"}, {s.Hanging, "hanging"}, {s.Failing, "failing"}} {
		if n.n > 0 {
			fmt.Fprintf(&b, ", %d %s beside", n.n, n.what)
		}
	}
	return b.String()
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

const (
	maxPublishers = 4096
	maxBatch      = 1000 // the API's own limit
	maxPayload    = 8 << 20
)

// Run loads a server as o says, writes a readable table to out and, if o names
// a file, the whole report as JSON. It returns an error that wraps [ErrLost]
// if an accepted event never arrived, and other errors if the options make no
// sense, a process failed, or a publish was answered with anything but 202,
// 429 or 503. Every process that it started has ended, and every folder that it
// made is gone, when it returns; a done ctx ends it early.
func Run(ctx context.Context, o Options, out io.Writer) error {
	o, scenarios, err := o.resolve()
	if err != nil {
		return err
	}
	r := &runner{opts: o, out: out}
	report := Report{StartedAt: time.Now().UTC(), Machine: describeMachine(o.TempDir)}
	printMachine(out, report.Machine)

	var failures []error
	for _, sc := range scenarios {
		sr, err := r.scenario(ctx, sc)
		if err != nil {
			failures = append(failures, fmt.Errorf("scenario %s: %w", sc.Name, err))
		}
		if len(sr.Runs) > 0 {
			report.Scenarios = append(report.Scenarios, sr)
			printScenario(out, sr)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if o.JSONFile != "" {
		if err := report.write(o.JSONFile); err != nil {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

// resolve fills in the defaults, applies the overrides to the scenarios that
// are asked for, and reports every problem at once.
func (o Options) resolve() (Options, []Scenario, error) {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	if o.Self == "" {
		self, err := os.Executable()
		if err != nil {
			bad("the path of this executable is unknown (%w): set Self", err)
		}
		o.Self = self
	}
	setDefault(&o.Scenario, "default")
	setDefault(&o.ReceiverHost, "127.0.0.1")
	setDefault(&o.TempDir, os.TempDir())
	setDefault(&o.SlowDelay, time.Second)
	setDefault(&o.Duration, 10*time.Second)
	setDefault(&o.Warmup, 2*time.Second)
	setDefault(&o.DrainIdle, 15*time.Second)
	setDefault(&o.ReadyTimeout, 30*time.Second)
	setDefault(&o.StopTimeout, 30*time.Second)
	setDefault(&o.Pairs, 1)

	if net.ParseIP(o.ReceiverHost) == nil {
		bad("receiver host %q is not an IP address", o.ReceiverHost)
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"duration", o.Duration}, {"drain idle", o.DrainIdle}, {"slow delay", o.SlowDelay},
		{"ready timeout", o.ReadyTimeout}, {"stop timeout", o.StopTimeout},
	} {
		if d.d < 0 {
			bad("%s is %v: it must be positive", d.name, d.d)
		}
	}
	if o.Pairs < 0 {
		bad("pairs is %d: it must be at least 1", o.Pairs)
	}
	switch {
	case o.Target != "":
		u, err := url.Parse(o.Target)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			bad("target %q is not a base URL such as http://127.0.0.1:8080", o.Target)
		}
		if o.APIKey == "" {
			bad("a target needs an API key with the scopes webhooks:write and events:write")
		} else if strings.ContainsFunc(o.APIKey, func(c rune) bool { return c <= ' ' || c > '~' }) {
			bad("the API key contains a character that cannot stand in a header")
		}
		if len(o.ServeArgs) > 0 {
			bad("arguments for the server are given, but with a target no server is started")
		}
	case o.APIKey != "" || o.TargetPID != 0:
		bad("an API key or a process id is given without a target")
	}

	all := Scenarios()
	scenarios := slices.DeleteFunc(all, func(s Scenario) bool { return o.Scenario != "all" && s.Name != o.Scenario })
	if len(scenarios) == 0 {
		var names []string
		for _, s := range Scenarios() {
			names = append(names, s.Name)
		}
		bad("there is no scenario %q: choose one of %s, all", o.Scenario, strings.Join(names, ", "))
	}
	for i := range scenarios {
		s := &scenarios[i]
		override(&s.Publishers, o.Publishers)
		override(&s.Rate, o.Rate)
		override(&s.Fanout, o.Fanout)
		override(&s.PayloadBytes, o.PayloadBytes)
		override(&s.Batch, o.Batch)
		s.Slow, s.Hanging, s.Failing = o.Slow, o.Hanging, o.Failing
		if i > 0 && len(problems) > 0 {
			continue // the overrides are the same for each: say it once
		}
		inRange := func(name string, v, lo, hi int) {
			if v < lo || v > hi {
				bad("%s is %d: it must be %d to %d", name, v, lo, hi)
			}
		}
		inRange("publishers", s.Publishers, 1, maxPublishers)
		inRange("fanout", s.Fanout, 1, maxHooks)
		inRange("payload bytes", s.PayloadBytes, minPayload, maxPayload)
		inRange("batch", s.Batch, 1, maxBatch)
		inRange("the number of webhooks that are slow, hanging or failing", min(s.Slow, s.Hanging, s.Failing), 0, maxHooks)
		inRange("the number of all webhooks", s.Fanout+s.Slow+s.Hanging+s.Failing, 1, maxHooks)
		if s.Rate < 0 || s.Rate > 1e6 {
			bad("rate is %g: it must be 0 (closed loop) to 1000000 events/s", s.Rate)
		}
	}

	switch o.Against {
	case "":
	case subjectRelay:
		if o.Batch > 1 || o.Slow+o.Hanging+o.Failing > 0 {
			bad("the relay knows neither batches nor slow, hanging or failing webhooks: leave them out to compare with it")
		}
	default:
		bad("cannot compare with %q: only with %q", o.Against, subjectRelay)
	}
	return o, scenarios, errors.Join(problems...)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func override[T comparable](field *T, value T) {
	var zero T
	if value != zero {
		*field = value
	}
}
