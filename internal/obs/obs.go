// Package obs is how the program shows itself to those who run it: the log and
// the metrics. Labels come from closed sets only: no id of a tenant, webhook or
// event is ever one.
package obs

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/plinqx/hypha/internal/hook"
)

// NewLogger makes a logger that writes to w, as "text" or "json".
func NewLogger(w io.Writer, format string, level slog.Level) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	default:
		return nil, fmt.Errorf("log format: want text or json, got %q", format)
	}
}

// Version is the version of this build, as the Go toolchain stamped it.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "dev"
	}
	return info.Main.Version
}

// Metrics are what the server counts. They have a registry of their own.
type Metrics struct {
	registry *prometheus.Registry

	requests       *prometheus.CounterVec
	requestTime    *prometheus.HistogramVec
	attempts       *prometheus.CounterVec
	attemptTime    *prometheus.HistogramVec
	deliveries     *prometheus.CounterVec
	commits        *prometheus.CounterVec
	commitTime     prometheus.Histogram
	commitAccepts  prometheus.Counter
	commitOutcomes prometheus.Counter
	commitSize     prometheus.Histogram
	refused        *prometheus.CounterVec
	limited        *prometheus.CounterVec
	breakersOpened prometheus.Counter
	breakersClosed prometheus.Counter
	panics         *prometheus.CounterVec
	connections    *prometheus.CounterVec // refused

	// The series of what happens thousands of times a second: to find one by its
	// labels costs more than to count in it.
	succeeded                  prometheus.Counter // of attempts
	succeededTime, failureTime prometheus.Observer
	delivered                  prometheus.Counter // of deliveries
	written                    prometheus.Counter // of commits
	seriesMu                   sync.RWMutex
	requestsOf                 map[requestLabels]requestSeries
}

// requestLabels are few: routes are patterns, and each answers with a handful of
// statuses.
type requestLabels struct {
	route  string
	status int
}

type requestSeries struct {
	requests prometheus.Counter
	took     prometheus.Observer
}

// NewMetrics makes the metrics, all at zero. Of those with labels, the series of
// what goes well are shown from the start.
func NewMetrics() *Metrics {
	buckets := []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hypha_http_requests_total", Help: "Requests to the API, by route and status."}, []string{"route", "status"}),
		requestTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hypha_http_request_seconds", Help: "How long requests to the API took, by route.", Buckets: buckets}, []string{"route"}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hypha_attempts_total", Help: "Attempts made, by what they came to: success, or the kind of failure."}, []string{"result"}),
		attemptTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hypha_attempt_seconds", Help: "How long attempts took, by whether they succeeded.", Buckets: buckets}, []string{"success"}),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hypha_deliveries_finished_total", Help: "Deliveries finished by an attempt, by status."}, []string{"status"}),
		commits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hypha_commits_total", Help: "Transactions of events and outcomes, by whether they were written."}, []string{"written"}),
		commitTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "hypha_commit_seconds", Help: "How long these transactions took, sync included.", Buckets: buckets}),
		commitAccepts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hypha_commit_accepts_total", Help: "Publish requests written."}),
		commitOutcomes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hypha_commit_outcomes_total", Help: "Outcomes of attempts written."}),
		commitSize: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "hypha_commit_batch_size", Help: "Publish requests and outcomes in one of these transactions.",
			Buckets: []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000}}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hypha_publish_refused_total", Help: "Publish requests refused with 429 or 503, by why."}, []string{"reason"}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hypha_rate_limited_total", Help: "Requests to the API refused with 429 because somebody asked too often, by which limit."}, []string{"limit"}),
		breakersOpened: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hypha_breaker_opened_total", Help: "How often a webhook's breaker opened."}),
		breakersClosed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hypha_breaker_closed_total", Help: "How often a webhook's breaker closed again."}),
		panics: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hypha_panics_total", Help: "Panics of the program that were contained, by the kind of work that failed for it."}, []string{"where"}),
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hypha_connections_refused_total", Help: "Connections to the API that were closed as soon as they came, by why."}, []string{"why"}),
	}
	m.registry.MustRegister(m.requests, m.requestTime, m.attempts, m.attemptTime, m.deliveries, m.commits, m.commitTime,
		m.commitAccepts, m.commitOutcomes, m.commitSize, m.refused, m.limited, m.panics, m.connections, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.succeeded = m.attempts.WithLabelValues("success")
	m.succeededTime, m.failureTime = m.attemptTime.WithLabelValues("true"), m.attemptTime.WithLabelValues("false")
	m.delivered = m.deliveries.WithLabelValues(hook.StatusSuccess.String())
	m.written = m.commits.WithLabelValues("true")
	m.requestsOf = make(map[requestLabels]requestSeries)
	return m
}

// maxScrapes is how many may have the metrics collected at a time. They need no
// credential, and to collect them is work.
const maxScrapes = 4

// Handler serves the metrics in Prometheus' text form.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})
}

// Reasons makes known why publish requests may be refused, so that each reason
// is shown from the start.
func (m *Metrics) Reasons(why ...string) {
	for _, reason := range why {
		m.refused.WithLabelValues(reason)
	}
}

// Refused counts publish requests that were refused, for one of the Reasons.
func (m *Metrics) Refused(why string, n int) { m.refused.WithLabelValues(why).Add(float64(n)) }

// Limits makes known by which limits requests may be refused, so that each is shown
// from the start.
func (m *Metrics) Limits(by ...string) {
	for _, limit := range by {
		m.limited.WithLabelValues(limit)
	}
}

// Limited counts a request that one of the Limits refused.
func (m *Metrics) Limited(by string) { m.limited.WithLabelValues(by).Inc() }

// WatchConnections adds how many connections are open, read once for each time that
// the metrics are, and makes known why others may be refused.
func (m *Metrics) WatchConnections(open func() int, why ...string) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hypha_connections", Help: "Connections to the API that are open."}, func() float64 { return float64(open()) }))
	for _, reason := range why {
		m.connections.WithLabelValues(reason)
	}
}

// ConnectionRefused counts a connection that was closed as soon as it came, for one of
// the reasons that WatchConnections was given.
func (m *Metrics) ConnectionRefused(why string) { m.connections.WithLabelValues(why).Inc() }

// WatchCertificate adds when the server's certificate ends.
func (m *Metrics) WatchCertificate(expires func() time.Time) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hypha_tls_certificate_expiration_timestamp_seconds", Help: "When the API's TLS certificate ends, in seconds since 1970."},
		func() float64 { return float64(expires().Unix()) }))
}

// Places makes known where panics may be contained, so that each place is shown from
// the start.
func (m *Metrics) Places(where ...string) {
	for _, place := range where {
		m.panics.WithLabelValues(place)
	}
}

// Panicked counts a panic that was contained, in one of the Places.
func (m *Metrics) Panicked(where string) { m.panics.WithLabelValues(where).Inc() }

// Requested counts a request to the API. Route is the pattern, not the path.
func (m *Metrics) Requested(route string, status int, took time.Duration) {
	of := requestLabels{route, status}
	m.seriesMu.RLock()
	series, ok := m.requestsOf[of]
	m.seriesMu.RUnlock()
	if !ok {
		series = requestSeries{m.requests.WithLabelValues(route, strconv.Itoa(status)), m.requestTime.WithLabelValues(route)}
		m.seriesMu.Lock()
		m.requestsOf[of] = series
		m.seriesMu.Unlock()
	}
	series.requests.Inc()
	series.took.Observe(took.Seconds())
}

// Attempted counts an attempt.
func (m *Metrics) Attempted(a *hook.Attempt, change hook.Change) {
	if a.Failure == nil {
		m.succeeded.Inc()
		m.succeededTime.Observe(a.Duration.Seconds())
	} else {
		m.attempts.WithLabelValues(string(a.Failure.Kind)).Inc()
		m.failureTime.Observe(a.Duration.Seconds())
	}
	switch change {
	case hook.Succeeded:
		m.delivered.Inc()
	case hook.Exhausted:
		m.deliveries.WithLabelValues(hook.StatusFailed.String()).Inc()
	default:
	}
}

// Committed counts a transaction of events and outcomes.
func (m *Metrics) Committed(accepts, outcomes int, took time.Duration, err error) {
	m.commitTime.Observe(took.Seconds())
	m.commitSize.Observe(float64(accepts + outcomes))
	if err != nil {
		m.commits.WithLabelValues("false").Inc()
		return
	}
	m.written.Inc()
	m.commitAccepts.Add(float64(accepts))
	m.commitOutcomes.Add(float64(outcomes))
}
