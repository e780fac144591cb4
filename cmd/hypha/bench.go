package main

import (
	"time"

	"github.com/plinqx/hypha/internal/bench"
)

// benchCommand measures a server: one that it starts, or one that runs.
type benchCommand struct {
	Scenario string `help:"Loads to run, with commas between them: default, latency, fanout10, fanout100, payload8k, payload200k, batch, or all of these; slow50 (a receiver that takes 50 ms); isolation-hanging, isolation-failing, isolation-429, isolation-drip, isolation-tenant; backlog; history; overload." default:"default" placeholder:"NAMES"`
	Against  string `help:"Give the same load to something else and compare: relay, a bare forwarder with a synced log." placeholder:"NAME"`
	Pairs    int    `help:"How often to run; more than once reports medians. Default: 9 with --against, else the scenario's." placeholder:"N"`

	Publishers int           `help:"Connections that publish. Default: the scenario's." placeholder:"N"`
	Rate       float64       `help:"Events per second, whatever the server does. Default: the scenario's; 0 is as fast as answers come." placeholder:"N"`
	Fanout     int           `help:"Webhooks that each get every event. Default: the scenario's." placeholder:"N"`
	Spread     *bool         `help:"Share the events out among the webhooks: each goes to one of them. Default: the scenario's." negatable:""`
	Payload    int           `help:"Size of an event's data in bytes. Default: the scenario's." placeholder:"BYTES"`
	Batch      int           `help:"Events in one request. Default: the scenario's." placeholder:"N"`
	Slow       int           `help:"Further webhooks that answer late." placeholder:"N"`
	Hanging    int           `help:"Further webhooks that never answer." placeholder:"N"`
	Failing    int           `help:"Further webhooks that answer 500." placeholder:"N"`
	Backlog    uint64        `help:"Deliveries that pile up in the scenario backlog. Default: 1000000." placeholder:"N"`
	History    uint64        `help:"Deliveries in the store of the scenario history. Default: 10000000." placeholder:"N"`
	Webhooks   int           `help:"Webhooks that they are spread over. Default: 10000." placeholder:"N"`
	KeepData   string        `help:"Folder that keeps the store of the scenario history, for the next time; with --database-url, the name of a database." placeholder:"DIR"`
	Duration   time.Duration `help:"How long to measure. Default: the scenario's, mostly 10s." placeholder:"DURATION"`
	Warmup     time.Duration `help:"How long to publish before; negative: not at all. Default: the scenario's, mostly 2s." placeholder:"DURATION"`

	DatabaseURL string `help:"PostgreSQL server to measure on, such as postgres://user:password@host/postgres. Each run has a database of its own there, whose name begins with hypha_bench_, and drops it: the role must be allowed to make some. It holds a password: give it as the variable HYPHA_DATABASE_URL." placeholder:"URL"`
	Nodes       int    `help:"Servers that share the database; what is published is spread over them." default:"1" placeholder:"N"`

	ServerArg []string `help:"Argument for the server that is started, such as --server-arg=--slots=64. May be repeated." placeholder:"ARG" sep:"none"`
	Target    string   `help:"Server to measure that runs already, such as http://127.0.0.1:8080." placeholder:"URL"`
	APIKey    string   `help:"API key of that server." placeholder:"KEY" env:"-"`
	TargetPID int      `help:"Process id of that server, if it is on this machine." placeholder:"PID" name:"target-pid"`

	JSON    string `help:"File to write the whole report to, as JSON." placeholder:"FILE"`
	TempDir string `help:"Folder for the data: put it on the disk that is to be measured." placeholder:"DIR"`
}

// Run measures and prints.
func (c *benchCommand) Run(p *process) error {
	return bench.Run(p.ctx, bench.Options{
		DatabaseURL: c.DatabaseURL, Nodes: c.Nodes,
		Target: c.Target, APIKey: c.APIKey, TargetPID: c.TargetPID, ServeArgs: c.ServerArg,
		Scenario: c.Scenario, Against: c.Against, Pairs: c.Pairs,
		Publishers: c.Publishers, Rate: c.Rate, Fanout: c.Fanout, Spread: c.Spread, PayloadBytes: c.Payload, Batch: c.Batch,
		Slow: c.Slow, Hanging: c.Hanging, Failing: c.Failing, Duration: c.Duration, Warmup: c.Warmup,
		Backlog: c.Backlog, History: c.History, Webhooks: c.Webhooks, KeepData: c.KeepData,
		JSONFile: c.JSON, TempDir: c.TempDir,
	}, p.stdout)
}

// The other processes of a benchmark are this program too; the last of them is
// benchSeedCommand.
type (
	benchReceiverCommand struct {
		Args []string `arg:"" optional:"" passthrough:""`
	}
	benchRelayCommand struct {
		Args []string `arg:"" optional:"" passthrough:""`
	}
)

// Run receives until the benchmark ends.
func (c *benchReceiverCommand) Run(p *process) error {
	return bench.RunReceiver(p.ctx, c.Args, p.stdin, p.stdout)
}

// Run relays until the benchmark ends.
func (c *benchRelayCommand) Run(p *process) error {
	return bench.RunRelay(p.ctx, c.Args, p.stdin, p.stdout)
}
