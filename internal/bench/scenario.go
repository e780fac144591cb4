package bench

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"
)

// Setup says what a scenario needs besides a load.
type Setup string

// The setups.
const (
	// SetupLoad gives one load to a fresh server, and to what it is compared
	// with.
	SetupLoad Setup = ""
	// SetupIsolation gives one load twice: to webhooks that are all well, and
	// with some that are not.
	SetupIsolation Setup = "isolation"
	// SetupBacklog lets deliveries pile up for an endpoint that is down,
	// restarts the server, and mends the endpoint.
	SetupBacklog Setup = "backlog"
	// SetupHistory works with a store that holds a long history.
	SetupHistory Setup = "history"
	// SetupOverload offers ten times as much as the server has taken before.
	SetupOverload Setup = "overload"
)

// What the ill webhooks of an isolation scenario do.
const (
	illnessHang   = "hang"   // they never answer
	illnessFail   = "fail"   // they answer 500 at once
	illnessBusy   = "429"    // they answer 429, Retry-After: 5
	illnessDrip   = "drip"   // they answer 200, and send the body byte by byte
	illnessTenant = "tenant" // none is ill: a second tenant publishes neighbourFactor times as much
)

// Scenario is a row of the table of [Scenarios] with the overrides of [Options]
// applied. What a setup does not use is zero.
type Scenario struct {
	Name       string  `json:"name"`
	Setup      Setup   `json:"setup,omitempty"`
	Publishers int     `json:"publishers"`
	Rate       float64 `json:"rate"` // events per second; 0 is a closed loop
	Fanout     int     `json:"fanout"`

	// Spread gives each webhook an event type of its own, and event n the type
	// of webhook n mod Fanout, so that the events are shared out among the
	// webhooks. Without it every webhook gets every event.
	Spread bool `json:"spread"`

	PayloadBytes int `json:"payloadBytes"`
	Batch        int `json:"batch"`

	// LateMs is after how many milliseconds the measured webhooks answer; 0 is at
	// once. Arrivals are timed all the same.
	LateMs int `json:"lateMs,omitempty"`

	Slow    int `json:"slow"`
	Hanging int `json:"hanging"`
	Failing int `json:"failing"`

	// Ill is how many of the Fanout webhooks suffer from the Illness in the
	// disturbed half of an isolation scenario. They are not measured in either
	// half.
	Ill     int    `json:"ill,omitempty"`
	Illness string `json:"illness,omitempty"`

	Backlog  uint64 `json:"backlog,omitempty"`  // deliveries that pile up
	History  uint64 `json:"history,omitempty"`  // deliveries that the store has seen
	Webhooks int    `json:"webhooks,omitempty"` // among which the history is spread

	// ScenarioReport has these as text.
	Duration time.Duration `json:"-"` // of each measured load
	Warmup   time.Duration `json:"-"` // before it; 0: none
	Pairs    int           `json:"-"`
}

// The defaults of most scenarios.
const (
	defaultDuration = 10 * time.Second
	defaultWarmup   = 2 * time.Second

	// comparedPairs is how many pairs are run when there is something to
	// compare with, and nobody says how many: single runs on a machine that
	// others use differ by a tenth.
	comparedPairs = 9
)

// Scenarios returns the named loads. "all" runs those of [SetupLoad] whose webhooks
// answer at once, in this order.
func Scenarios() []Scenario {
	base := Scenario{
		Publishers: 64, Fanout: 1, PayloadBytes: 512, Batch: 1,
		Duration: defaultDuration, Warmup: defaultWarmup, Pairs: 1,
	}
	row := func(name string, change func(*Scenario)) Scenario {
		s := base
		s.Name = name
		change(&s)
		return s
	}
	isolation := func(illness string, warmup time.Duration) Scenario {
		return row("isolation-"+illness, func(s *Scenario) {
			s.Setup, s.Illness, s.Ill, s.Fanout, s.Rate = SetupIsolation, illness, 10, 100, 20
			s.Duration, s.Warmup, s.Pairs = 20*time.Second, warmup, 3
		})
	}
	// Those that hang are in their steady state when the first of them have
	// met their timeout of 30 s.
	hanging := isolation(illnessHang, 35*time.Second)
	hanging.Name = "isolation-hanging"
	failing := isolation(illnessFail, 5*time.Second)
	failing.Name = "isolation-failing"
	// Twenty times 2,000 deliveries a second is more than a small machine can
	// do for anybody, so here each event goes to one webhook.
	tenant := isolation(illnessTenant, 5*time.Second)
	tenant.Ill, tenant.Spread, tenant.Rate = 0, true, 100

	return []Scenario{
		row("default", func(*Scenario) {}),
		row("latency", func(s *Scenario) { s.Rate = 200 }),
		row("fanout10", func(s *Scenario) { s.Fanout = 10 }),
		row("fanout100", func(s *Scenario) { s.Fanout = 100 }),
		row("payload8k", func(s *Scenario) { s.PayloadBytes = 8 << 10 }),
		row("payload200k", func(s *Scenario) { s.PayloadBytes, s.Publishers = 200<<10, 16 }),
		row("batch", func(s *Scenario) { s.Batch = 100 }),
		// A node has at most 64 requests in flight at a webhook: with 50 ms for
		// each of them, 1,280 a second. What is more, other nodes must bring.
		row("slow50", func(s *Scenario) { s.LateMs = 50 }),
		hanging,
		failing,
		isolation(illnessBusy, 10*time.Second),
		isolation(illnessDrip, 5*time.Second),
		tenant,
		row("backlog", func(s *Scenario) { s.Setup, s.Rate, s.Backlog = SetupBacklog, 200, 1_000_000 }),
		row("history", func(s *Scenario) {
			s.Setup, s.Rate, s.History, s.Webhooks, s.Pairs = SetupHistory, 200, 10_000_000, 10_000, 3
		}),
		row("overload", func(s *Scenario) { s.Setup, s.Publishers = SetupOverload, 2000 }),
	}
}

// counted is how many webhooks are measured; they are the first ones.
func (s Scenario) counted() int { return s.Fanout - s.Ill }

// types is how many event types the load has besides the common one: 0 if all
// events have that.
func (s Scenario) types() int {
	if s.Spread {
		return s.Fanout
	}
	return 0
}

// wanted is what of the numbers goes to a webhook.
func (s Scenario) wanted(numbers *bitmap, hook int) *bitmap {
	if !s.Spread {
		return numbers
	}
	return numbers.every(uint64(s.Fanout), uint64(hook))
}

// expected is how many deliveries of the numbers are measured.
func (s Scenario) expected(numbers *bitmap) uint64 {
	var n uint64
	for hook := range s.counted() {
		n += s.wanted(numbers, hook).count()
	}
	return n
}

// relayable says whether the relay can be given the same.
func (s Scenario) relayable() bool {
	return s.Setup == SetupLoad && s.Batch == 1 && s.Slow+s.Hanging+s.Failing == 0 && !s.Spread && s.LateMs == 0
}

// String describes the scenario in one line.
func (s Scenario) String() string {
	var b strings.Builder
	publishers := count(s.Publishers, "publisher")
	switch s.Setup {
	case SetupBacklog:
		fmt.Fprintf(&b, "closed loop, then an open loop at %g events/s before and beside %d deliveries for an endpoint that is down", s.Rate, s.Backlog)
	case SetupHistory:
		fmt.Fprintf(&b, "closed loop on a store with %d finished deliveries of %s", s.History, count(s.Webhooks, "webhook"))
	case SetupOverload:
		fmt.Fprintf(&b, "closed loop of %s, then an open loop at ", count(normalPublishers, "publisher"))
		if s.Rate > 0 {
			fmt.Fprintf(&b, "%g events/s", s.Rate)
		} else {
			fmt.Fprintf(&b, "%d times what was taken", overloadFactor)
		}
	case SetupIsolation, SetupLoad:
		b.WriteString("closed loop")
		if s.Rate > 0 {
			b.Reset()
			fmt.Fprintf(&b, "open loop at %g events/s", s.Rate)
		}
	}
	fmt.Fprintf(&b, ", %s, %d B data, %s", publishers, s.PayloadBytes, count(s.Fanout, "webhook"))
	if s.Spread {
		b.WriteString(", each event for one of them")
	}
	if s.LateMs > 0 {
		fmt.Fprintf(&b, ", answered after %d ms", s.LateMs)
	}
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
	switch s.Illness {
	case "":
	case illnessTenant:
		fmt.Fprintf(&b, "; disturbed by a second tenant that publishes %d times as much", neighbourFactor)
	default:
		fmt.Fprintf(&b, "; disturbed by %d of them (%s), which are not measured", s.Ill, s.Illness)
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
	maxBacklog    = 1 << 30
	maxHistory    = 1 << 32
	maxNodes      = 64
)

// problems gathers what is wrong.
type problems []error

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Errorf(format, args...)) }

// resolve fills in the defaults, applies the overrides to the scenarios that
// are asked for, and reports every problem at once.
func (o Options) resolve() (Options, []Scenario, problems) {
	var bad problems
	if o.Self == "" {
		self, err := os.Executable()
		if err != nil {
			bad.add("the path of this executable is unknown (%w): set Self", err)
		}
		o.Self = self
	}
	setDefault(&o.Scenario, "default")
	setDefault(&o.ReceiverHost, "127.0.0.1")
	setDefault(&o.TempDir, os.TempDir())
	setDefault(&o.SlowDelay, time.Second)
	setDefault(&o.DrainIdle, 15*time.Second)
	setDefault(&o.ReadyTimeout, 30*time.Second)
	setDefault(&o.StopTimeout, 30*time.Second)

	if net.ParseIP(o.ReceiverHost) == nil {
		bad.add("receiver host %q is not an IP address", o.ReceiverHost)
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"duration", o.Duration}, {"drain idle", o.DrainIdle}, {"slow delay", o.SlowDelay},
		{"ready timeout", o.ReadyTimeout}, {"stop timeout", o.StopTimeout},
	} {
		if d.d < 0 {
			bad.add("%s is %v: it must be positive", d.name, d.d)
		}
	}
	if o.Pairs < 0 {
		bad.add("pairs is %d: it must be at least 1", o.Pairs)
	}
	setDefault(&o.Nodes, 1)
	o.checkTarget(&bad)
	o.checkDatabase(&bad)
	switch o.Against {
	case "":
	case subjectRelay:
		if o.Batch > 1 || o.Slow+o.Hanging+o.Failing > 0 {
			bad.add("the relay knows neither batches nor slow, hanging or failing webhooks: leave them out to compare with it")
		}
	default:
		bad.add("cannot compare with %q: only with %q", o.Against, subjectRelay)
	}
	return o, o.scenarios(&bad), bad
}

func (o Options) checkTarget(bad *problems) {
	switch {
	case o.Target != "":
		u, err := url.Parse(o.Target)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			bad.add("target %q is not a base URL such as http://127.0.0.1:8080", o.Target)
		}
		if o.APIKey == "" {
			bad.add("a target needs an API key with the scopes webhooks:write and events:write")
		} else if strings.ContainsFunc(o.APIKey, func(c rune) bool { return c <= ' ' || c > '~' }) {
			bad.add("the API key contains a character that cannot stand in a header")
		}
		if len(o.ServeArgs) > 0 {
			bad.add("arguments for the server are given, but with a target no server is started")
		}
	case o.APIKey != "" || o.TargetPID != 0:
		bad.add("an API key or a process id is given without a target")
	}
}

// checkDatabase reads the database's URL.
func (o *Options) checkDatabase(bad *problems) {
	if o.DatabaseURL != "" {
		p, err := newPostgres(o.DatabaseURL)
		if err != nil {
			*bad = append(*bad, err)
			return
		}
		o.databases = p
	}
	switch {
	case o.Nodes < 1 || o.Nodes > maxNodes:
		bad.add("the number of nodes is %d: it must be 1 to %d", o.Nodes, maxNodes)
	case o.databases == nil && o.Nodes > 1:
		bad.add("%d nodes need a database that they share: name a server for it", o.Nodes)
	}
	switch {
	case o.databases == nil:
	case o.Target != "":
		bad.add("a database server is given, but with a target no server is started")
	case o.KeepData != "" && !regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`).MatchString(o.KeepData):
		bad.add("the history is to be kept in %q, which is not the name of a database: it must be letters, digits and underscores", o.KeepData)
	}
}

// scenarios are those that are asked for, with the overrides.
func (o Options) scenarios(bad *problems) []Scenario {
	var out []Scenario
	for name := range strings.SplitSeq(o.Scenario, ",") {
		name = strings.TrimSpace(name)
		found := len(out)
		for _, s := range Scenarios() {
			if s.Name == name || name == "all" && s.Setup == SetupLoad && s.LateMs == 0 {
				out = append(out, s)
			}
		}
		if found == len(out) {
			var names []string
			for _, s := range Scenarios() {
				names = append(names, s.Name)
			}
			bad.add("there is no scenario %q: choose one or more of %s, all", name, strings.Join(names, ", "))
		}
	}
	for i := range out {
		before := len(*bad)
		o.override(&out[i], bad)
		if i > 0 && before > 0 {
			*bad = (*bad)[:before] // the overrides are the same for each: say it once
		}
	}
	return out
}

// override applies what the options say about a scenario.
func (o Options) override(s *Scenario, bad *problems) {
	override(&s.Publishers, o.Publishers)
	override(&s.Rate, o.Rate)
	override(&s.Fanout, o.Fanout)
	override(&s.PayloadBytes, o.PayloadBytes)
	override(&s.Batch, o.Batch)
	override(&s.Duration, o.Duration)
	override(&s.Warmup, o.Warmup)
	s.Warmup = max(s.Warmup, 0)
	if o.Spread != nil {
		s.Spread = *o.Spread
	}
	s.Slow, s.Hanging, s.Failing = o.Slow, o.Hanging, o.Failing
	if o.Against != "" && s.relayable() {
		s.Pairs = comparedPairs
	}
	override(&s.Pairs, o.Pairs)
	switch s.Setup {
	case SetupBacklog:
		override(&s.Backlog, o.Backlog)
	case SetupHistory:
		override(&s.History, o.History)
		override(&s.Webhooks, o.Webhooks)
	case SetupLoad, SetupIsolation, SetupOverload:
	}

	inRange := func(name string, v, lo, hi int) {
		if v < lo || v > hi {
			bad.add("%s is %d: it must be %d to %d", name, v, lo, hi)
		}
	}
	inRange("publishers", s.Publishers, 1, maxPublishers)
	inRange("fanout", s.Fanout, 1+s.Ill, maxHooks)
	inRange("payload bytes", s.PayloadBytes, minPayload, maxPayload)
	inRange("batch", s.Batch, 1, maxBatch)
	inRange("the number of webhooks that are slow, hanging or failing", min(s.Slow, s.Hanging, s.Failing), 0, maxHooks)
	inRange("the number of all webhooks", s.Fanout+s.Slow+s.Hanging+s.Failing, 1, maxHooks)
	inRange("the size of the backlog", int(s.Backlog), 0, maxBacklog)
	inRange("the size of the history", int(s.History), 0, maxHistory)
	inRange("the number of webhooks of the history", s.Webhooks, 0, 1<<20)
	if s.Publishers > 0 && s.Publishers < o.Nodes {
		bad.add("publishers is %d: there must be one for each of %d nodes", s.Publishers, o.Nodes)
	}
	if s.Rate < 0 || s.Rate > 1e6 {
		bad.add("rate is %g: it must be 0 (closed loop) to 1000000 events/s", s.Rate)
	}
	if s.Setup == SetupLoad {
		return
	}
	if o.Target != "" {
		bad.add("scenario %s starts its servers itself: leave the target out", s.Name)
	}
	if s.Batch > 1 || s.Slow+s.Hanging+s.Failing > 0 {
		bad.add("scenario %s knows neither batches nor slow, hanging or failing webhooks beside: leave them out", s.Name)
	}
	if s.Setup != SetupIsolation && (s.Fanout > 1 || s.Spread) {
		bad.add("scenario %s has one webhook that is measured: leave out fanout and spread", s.Name)
	}
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
