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
	"time"
)

// ErrLost is wrapped by the error of [Run] when an accepted event did not
// arrive at a webhook that wanted it.
var ErrLost = errors.New("accepted events never arrived")

// Options says what [Run] does. The zero value of a field means its default; a
// field that a scenario also sets overrides the scenario.
type Options struct {
	// Self is the path of the executable that is started again for the
	// receiver (`bench-receiver`), the relay (`bench-relay`), the server
	// (`serve`) and what fills a store (`bench-seed`). Default: the running
	// executable.
	Self string

	// ServeArgs are added to the command line of the server that is started.
	// The server does not inherit HYPHA_ variables, so that settings of a
	// production server (its database above all) cannot leak into a load test;
	// what should differ from the defaults is said here. Default: none.
	ServeArgs []string

	// DatabaseURL is a PostgreSQL server and a database on it to connect to: each
	// run makes a database of its own there, starts its servers on that, and drops
	// it at the end. The role must be allowed to create databases. It may hold a
	// password, which goes into no report. Default: servers use embedded stores.
	DatabaseURL string

	// Nodes is how many servers share the database. Publishers are spread over
	// them, and all else is asked of the first one. Needs a DatabaseURL if it is
	// more than one. Default: 1.
	Nodes int

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

	// Scenario names rows of [Scenarios], with commas between them; "all" stands
	// for those that need nothing but a load. Default: "default".
	Scenario string

	// Publishers is the number of connections that publish, each waiting for
	// its answer before it publishes again. Default: the scenario's (64).
	Publishers int

	// Rate, in events per second, makes the load an open loop: events are due
	// at fixed times whatever the server does. Default: the scenario's (0,
	// closed loop: as fast as the answers come).
	Rate float64

	// Fanout is the number of webhooks, each of which gets every event unless
	// they are shared out. Default: the scenario's (1).
	Fanout int

	// Spread says whether the events are shared out among the webhooks, so that
	// each goes to one of them. Default: the scenario's (false).
	Spread *bool

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

	// Backlog is how many deliveries pile up in the scenario "backlog".
	// Default: 1,000,000.
	Backlog uint64

	// History is how many deliveries are in the store, and Webhooks how many
	// webhooks they are spread over, in the scenario "history". Default:
	// 10,000,000 and 10,000.
	History  uint64
	Webhooks int

	// KeepData is a folder that keeps the store of the scenario "history", which
	// takes long to make: if it holds one of the wanted size, a copy of that is
	// used. With a DatabaseURL it is the name of a database. Default: the store is
	// made anew and removed.
	KeepData string

	// Duration is how long events are published and measured. Default: the
	// scenario's (10 s).
	Duration time.Duration

	// Warmup is how long events are published, and then drained, before
	// anything is measured. Negative: no warm-up. Default: the scenario's (2 s).
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
	// [RunRelay], gets the same load. A scenario that the relay can't do is run
	// without it. Default: nothing.
	Against string

	// Pairs is how often each scenario is run, where two are compared as pairs
	// that alternate which goes first; more than one reports medians. Default:
	// 9 with Against, else the scenario's (1).
	Pairs int

	// JSONFile is where the whole report is written as JSON. Default: nowhere.
	JSONFile string

	// TempDir is the folder that gets the temporary data folders. It should be
	// on the disk that is to be measured: a sync costs nothing on tmpfs.
	// Default: the system's folder for temporary files.
	TempDir string

	// databases stands for the server of DatabaseURL in tests.
	databases databaseServer
}

// Run loads a server as o says, writes a readable table to out and, if o names
// a file, the whole report as JSON. It returns an error that wraps [ErrLost]
// if an accepted event never arrived, and other errors if the options make no
// sense, a process failed, or a publish was answered with anything but 202,
// 429 or 503. Every process that it started has ended, and every folder that it
// made is gone, when it returns; a done ctx ends it early.
func Run(ctx context.Context, o Options, out io.Writer) error {
	o, scenarios, bad := o.resolve()
	if len(bad) > 0 {
		return errors.Join(bad...)
	}
	r := &runner{opts: o, out: out, databases: o.databases}
	report := Report{StartedAt: time.Now().UTC(), Machine: describeMachine(o.TempDir)}
	printMachine(out, report.Machine)
	if r.databases != nil {
		var err error
		if report.Database, err = r.databases.describe(ctx); err != nil {
			return err
		}
		report.Database.Nodes = o.Nodes
		printDatabase(out, report.Database)
	}

	var failures []error
	for _, sc := range scenarios {
		sr, err := r.scenario(ctx, sc)
		if err != nil {
			failures = append(failures, fmt.Errorf("scenario %s: %w", sc.Name, err))
		}
		if !sr.empty() {
			report.Scenarios = append(report.Scenarios, sr)
			printScenario(out, sr)
		}
		// After each, so that hours of measuring are not lost with the last one.
		if o.JSONFile != "" {
			if err := report.write(o.JSONFile); err != nil {
				failures = append(failures, err)
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(failures...)
}
