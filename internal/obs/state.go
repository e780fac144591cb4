package obs

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// State is what the server is about at a moment. Its maps have closed sets of
// keys, with all of their members, so that a series never comes and goes.
type State struct {
	// Attempts in flight, and the most that there may be.
	InFlight, Slots int
	// Lanes by what each of them is about: every lane is in one state.
	Lanes map[string]int
	// Of the lanes: Spilled work off what is on disk, AtLimit have all in flight
	// that their receivers are trusted with, Hungry wait for memory.
	Spilled, AtLimit, Hungry int
	// LimitBounds are steps of that limit, Limits how many lanes are in each,
	// LimitSum all limits together.
	LimitBounds, Limits []int
	LimitSum            int
	// Deliveries that wait in memory, and bytes that they take and may take.
	InMemory, Memory, MemoryAllowed int
	// Tenants that have attempts in flight, and those that wait for a slot.
	TenantsSending, TenantsWaiting int
	// How often breakers opened and closed since the state was read before.
	BreakersOpened, BreakersClosed int

	// Unrecorded are outcomes that are not on disk yet.
	Unrecorded int
	// What waits to be written: rows, bytes of bodies, and of how many tenants.
	WaitingRows, WaitingBytes, WaitingTenants int
	// ExpectedWait is what a new publish is expected to wait for its turn.
	ExpectedWait time.Duration
}

// Watch adds the state. It is read once for each time that the metrics are.
func (m *Metrics) Watch(read func() State) {
	m.registry.MustRegister(newStateCollector(read, m.breakersOpened, m.breakersClosed))
}

// stateCollector shows a State: of one moment, so that the numbers agree.
type stateCollector struct {
	read           func() State
	opened, closed prometheus.Counter
	gauges         []gauge
	lanes, limits  *prometheus.Desc
}

type gauge struct {
	desc *prometheus.Desc
	of   func(*State) float64
}

func newStateCollector(read func() State, opened, closed prometheus.Counter) *stateCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	c := &stateCollector{
		read: read, opened: opened, closed: closed,
		lanes:  desc("hypha_lanes", "Webhooks that had work lately, by what each is about; each is in one state.", "state"),
		limits: desc("hypha_lane_in_flight_limit", "How many attempts at once each of these webhooks is trusted with now."),
	}
	count := func(name, help string, of func(*State) int) {
		c.gauges = append(c.gauges, gauge{desc(name, help), func(s *State) float64 { return float64(of(s)) }})
	}
	count("hypha_attempts_in_flight", "Attempts being made now.", func(s *State) int { return s.InFlight })
	count("hypha_attempt_slots", "Most attempts that may be made at once.", func(s *State) int { return s.Slots })
	count("hypha_lanes_spilled", "Webhooks whose deliveries go by way of the disk.", func(s *State) int { return s.Spilled })
	count("hypha_lanes_at_limit", "Webhooks that have all in flight that they are trusted with.", func(s *State) int { return s.AtLimit })
	count("hypha_lanes_hungry", "Webhooks that wait for memory.", func(s *State) int { return s.Hungry })
	count("hypha_lanes_memory_bytes", "Memory that deliveries take which wait in memory.", func(s *State) int { return s.Memory })
	count("hypha_lanes_memory_allowed_bytes", "Most memory that they may take.", func(s *State) int { return s.MemoryAllowed })
	count("hypha_deliveries_in_memory", "Deliveries that wait in memory.", func(s *State) int { return s.InMemory })
	count("hypha_tenants_sending", "Tenants that have attempts in flight.", func(s *State) int { return s.TenantsSending })
	count("hypha_tenants_waiting", "Tenants that wait for a slot.", func(s *State) int { return s.TenantsWaiting })
	count("hypha_outcomes_unrecorded", "Outcomes of attempts that are not on disk yet.", func(s *State) int { return s.Unrecorded })
	count("hypha_commit_waiting_rows", "Events and deliveries that wait to be written.", func(s *State) int { return s.WaitingRows })
	count("hypha_commit_waiting_bytes", "Bytes of the events that wait to be written.", func(s *State) int { return s.WaitingBytes })
	count("hypha_commit_waiting_tenants", "Tenants of the events that wait to be written.", func(s *State) int { return s.WaitingTenants })
	c.gauges = append(c.gauges, gauge{
		desc("hypha_commit_expected_wait_seconds", "How long a new event is expected to wait before it is written."),
		func(s *State) float64 { return s.ExpectedWait.Seconds() },
	})
	return c
}

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(out chan<- *prometheus.Desc) {
	out <- c.lanes
	out <- c.limits
	for _, g := range c.gauges {
		out <- g.desc
	}
	c.opened.Describe(out)
	c.closed.Describe(out)
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(out chan<- prometheus.Metric) {
	s := c.read()
	for _, g := range c.gauges {
		out <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.of(&s))
	}
	for state, n := range s.Lanes {
		out <- prometheus.MustNewConstMetric(c.lanes, prometheus.GaugeValue, float64(n), state)
	}
	up := uint64(0)
	buckets := make(map[float64]uint64, len(s.LimitBounds))
	for i, bound := range s.LimitBounds {
		up += uint64(s.Limits[i])
		buckets[float64(bound)] = up
	}
	out <- prometheus.MustNewConstHistogram(c.limits, up, float64(s.LimitSum), buckets)
	c.opened.Add(float64(s.BreakersOpened))
	c.closed.Add(float64(s.BreakersClosed))
	c.opened.Collect(out)
	c.closed.Collect(out)
}

// NodeState is what a server is about that shares its store with others.
type NodeState struct {
	// Node is its incarnation: another one after each start.
	Node int64
	// Peers are the other nodes.
	Peers int
	// BeatAge is how old the last beat is that the store confirmed; negative if
	// there is none. MaySend says whether that is young enough to send.
	BeatAge time.Duration
	MaySend bool
	// Takeovers is how many nodes this one took over, Fences how often others
	// took it over.
	Takeovers, Fences int64
	// ClockOffset is how far the store's clock is ahead of this machine's.
	ClockOffset time.Duration
}

// WatchNode adds the state of a node. It is read once for each time that the metrics
// are.
func (m *Metrics) WatchNode(read func() NodeState) { m.registry.MustRegister(newNodeCollector(read)) }

// nodeCollector shows a NodeState: of one moment, so that the numbers agree.
type nodeCollector struct {
	read  func() NodeState
	parts []nodePart
}

type nodePart struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(*NodeState) float64
}

func newNodeCollector(read func() NodeState) *nodeCollector {
	c := &nodeCollector{read: read}
	add := func(kind prometheus.ValueType, name, help string, of func(*NodeState) float64) {
		c.parts = append(c.parts, nodePart{prometheus.NewDesc(name, help, nil, nil), kind, of})
	}
	add(prometheus.GaugeValue, "hypha_node", "The number of this node: another one after each start.", func(s *NodeState) float64 { return float64(s.Node) })
	add(prometheus.GaugeValue, "hypha_node_peers", "Other nodes on the same database.", func(s *NodeState) float64 { return float64(s.Peers) })
	add(prometheus.GaugeValue, "hypha_node_beat_age_seconds", "How long ago the last beat was sent that the database confirmed; -1 if there is none.", func(s *NodeState) float64 {
		if s.BeatAge < 0 {
			return -1
		}
		return s.BeatAge.Seconds()
	})
	add(prometheus.GaugeValue, "hypha_node_may_send", "1 while attempts may start, 0 while the database has not confirmed a beat lately.", func(s *NodeState) float64 {
		if s.MaySend {
			return 1
		}
		return 0
	})
	add(prometheus.GaugeValue, "hypha_node_clock_offset_seconds", "How far the database's clock is ahead of this machine's.", func(s *NodeState) float64 { return s.ClockOffset.Seconds() })
	add(prometheus.CounterValue, "hypha_node_takeovers_total", "Nodes that were silent for too long and that this one took over.", func(s *NodeState) float64 { return float64(s.Takeovers) })
	add(prometheus.CounterValue, "hypha_node_fences_total", "How often other nodes took this one over while it ran.", func(s *NodeState) float64 { return float64(s.Fences) })
	return c
}

// Describe implements prometheus.Collector.
func (c *nodeCollector) Describe(out chan<- *prometheus.Desc) {
	for _, p := range c.parts {
		out <- p.desc
	}
}

// Collect implements prometheus.Collector.
func (c *nodeCollector) Collect(out chan<- prometheus.Metric) {
	s := c.read()
	for _, p := range c.parts {
		out <- prometheus.MustNewConstMetric(p.desc, p.kind, p.of(&s))
	}
}
