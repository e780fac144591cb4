package main

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/plinqx/hypha/internal/egress/dnstest"
)

// useNameServer makes every server that starts after it, until the test ends,
// ask this name server.
func useNameServer(t *testing.T, s *dnstest.Server) {
	t.Helper()
	before := net.DefaultResolver
	net.DefaultResolver = s.Resolver()
	t.Cleanup(func() { net.DefaultResolver = before })
}

// canary listens where nobody may connect.
type canary struct{ net.Listener }

func newCanary(t *testing.T) canary {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return canary{l}
}

func (c canary) port() string {
	_, port, _ := net.SplitHostPort(c.Addr().String())
	return port
}

// alone sees that the first who ever connects is the test itself.
func (c canary) alone(t *testing.T) {
	t.Helper()
	own, err := net.Dial("tcp", c.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Close() }()
	first, err := c.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	if first.RemoteAddr().String() != own.LocalAddr().String() {
		t.Error("somebody connected to what may not be reached")
	}
}

// failureKind waits for the first attempt of a delivery to a webhook, and
// answers what kind of failure it was.
func failureKind(t *testing.T, c client, webhook string) (kind, message string) {
	t.Helper()
	var list struct {
		Data []struct {
			LastAttempt *struct {
				Error struct{ Kind, Message string }
			}
		}
	}
	eventually(t, "an attempt for "+webhook, func() bool {
		c.must(t, http.MethodGet, "/webhooks/"+webhook+"/deliveries", nil, &list)
		return len(list.Data) > 0 && list.Data[0].LastAttempt != nil
	})
	return list.Data[0].LastAttempt.Error.Kind, list.Data[0].LastAttempt.Error.Message
}

// A name that looks public and is not is found out on the dial: no socket is
// opened, and the attempt says that it was blocked, and no more.
func TestBlockedAtDelivery(t *testing.T) {
	guarded := newCanary(t)
	names := map[string]dnstest.Answer{"cname.hooks.example.com": {Aliases: []string{"localhost"}, Addresses: []string{"127.0.0.1", "::1"}}}
	for name, addresses := range map[string][]string{
		"localtest.me":             {"127.0.0.1"},
		"nat64.hooks.example.com":  {"64:ff9b::7f00:1"},
		"mapped.hooks.example.com": {"::ffff:127.0.0.1"},
		"any.hooks.example.com":    {"0.0.0.0", "::"},
		"meta.hooks.example.com":   {"169.254.169.254", "fd00:ec2::254"},
		"azure.hooks.example.com":  {"168.63.129.16"},
		"many.hooks.example.com":   {"10.0.0.1", "192.168.0.1", "127.0.0.1", "::1"},
	} {
		names[name] = dnstest.Answer{Addresses: addresses}
	}
	useNameServer(t, dnstest.Start(t, dnstest.Static(names)))
	v := startServer(t, func(s *settings) { s.AllowEgress = nil })
	c := client{v.url(), testKey}

	want := map[string]string{"unknown.hooks.example.com": "dns"}
	for name := range names {
		want[name] = "blocked"
	}
	vars := strings.NewReplacer("{CNAME_TO_LOCALHOST}", "cname.hooks.example.com", "{NAT64_HOST}", "nat64.hooks.example.com")
	for _, row := range readBadInputs(t, "badinputs.json") {
		if row.DeliveryExpect == "" {
			continue
		}
		if row.DeliveryExpect != "blocked, 0 connections seen by the canary listener" {
			t.Errorf("%s: nothing checks that %q", row.ID, row.DeliveryExpect)
		}
		var body struct{ URL string }
		if err := json.Unmarshal(row.Body, &body); err != nil {
			t.Fatal(err)
		}
		host := strings.TrimSuffix(strings.TrimPrefix(vars.Replace(body.URL), "http://"), "/")
		if want[host] != "blocked" {
			t.Errorf("%s: the name server does not have %s", row.ID, host)
		}
	}
	webhooks := map[string]string{}
	for name := range want {
		webhooks[name], _ = c.createWebhook(t, "http://"+net.JoinHostPort(name, guarded.port())+"/", "order.paid")
	}
	c.must(t, http.MethodPost, "/events", `{"type":"order.paid","data":{}}`, nil)
	for name, webhook := range webhooks {
		kind, message := failureKind(t, c, webhook)
		if kind != want[name] {
			t.Errorf("%s: kind %q (%s), want %q", name, kind, message, want[name])
		}
		if strings.Contains(message, "127.") || strings.Contains(message, guarded.port()) || strings.Contains(message, "::") {
			t.Errorf("%s: the message tells of the network: %q", name, message)
		}
	}
	guarded.alone(t)
}

// What was allowed when the webhook was made, and is not any more, is blocked,
// and so is the server's own port, whatever is allowed.
func TestBlockedAfterTheSettingsWereTightened(t *testing.T) {
	guarded := newCanary(t)
	dir := t.TempDir()
	var webhook string
	t.Run("made", func(t *testing.T) {
		v := startServer(t, func(s *settings) { s.Data = dir })
		webhook, _ = client{v.url(), testKey}.createWebhook(t, "http://"+guarded.Addr().String()+"/", "order.paid")
	})
	t.Run("sent", func(t *testing.T) {
		v := startServer(t, func(s *settings) { s.Data, s.AllowEgress = dir, nil })
		c := client{v.url(), testKey}
		c.must(t, http.MethodPost, "/events", `{"type":"order.paid","data":{}}`, nil)
		if kind, message := failureKind(t, c, webhook); kind != "blocked" || message != "the address may not be called" {
			t.Errorf("kind %q, %q", kind, message)
		}
	})
	guarded.alone(t)
	t.Run("itself", func(t *testing.T) {
		v := startServer(t, nil)
		c := client{v.url(), testKey}
		port := v.listener.Addr().(*net.TCPAddr).Port
		own, _ := c.createWebhook(t, "http://127.0.0.2:"+strconv.Itoa(port)+"/", "order.paid")
		status, err := c.do(http.MethodPost, "/webhooks", map[string]any{"name": "n", "url": v.url() + "/services/events", "events": []string{"*"}}, nil)
		if status != http.StatusBadRequest {
			t.Errorf("a webhook to the server itself: %d, %v", status, err)
		}
		c.must(t, http.MethodPost, "/events", `{"type":"order.paid","data":{}}`, nil)
		if kind, _ := failureKind(t, c, own); kind != "connect" {
			t.Errorf("another address of the same port: kind %q", kind)
		}
	})
}

// A name that leads to an allowed address when the webhook is made and tried,
// and next door later, is not followed there: neither on a new connection, nor
// by way of one that is kept, which leads where it was judged to.
func TestRebindingAtDelivery(t *testing.T) {
	guarded := newCanary(t)
	names := dnstest.Start(t, func(q dnstest.Question) dnstest.Answer {
		if q.Before == 0 {
			return dnstest.Answer{Addresses: []string{"127.0.0.2"}}
		}
		return dnstest.Answer{Addresses: []string{"127.0.0.1"}} // the canary
	})
	useNameServer(t, names)
	var arrived atomic.Int64
	var last atomic.Bool
	receiver := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		arrived.Add(1)
		if last.Load() {
			w.Header().Set("Connection", "close")
		}
	}))
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.2", guarded.port()))
	if err != nil {
		t.Fatal(err)
	}
	_ = receiver.Listener.Close()
	receiver.Listener = l
	receiver.Start()
	t.Cleanup(receiver.Close)

	v := startServer(t, func(s *settings) { s.AllowEgress, s.RetrySchedule = []string{"127.0.0.2/32"}, nil })
	c := client{v.url(), testKey}
	webhook, _ := c.createWebhook(t, "http://rebind.hooks.example.com:"+guarded.port()+"/", "order.paid")
	if n := names.Asked("rebind.hooks.example.com"); n > 0 {
		t.Errorf("making the webhook asked for its name %d times", n)
	}
	for i := range 4 {
		last.Store(i == 2)
		c.must(t, http.MethodPost, "/events", `{"type":"order.paid","data":{}}`, nil)
		var stats struct{ SuccessfulDeliveries, FailedDeliveries int }
		eventually(t, "the delivery is recorded", func() bool {
			c.must(t, http.MethodGet, "/webhooks/stats?webhookId="+webhook, nil, &stats)
			return stats.SuccessfulDeliveries+stats.FailedDeliveries == i+1
		})
	}
	if kind, message := failureKind(t, c, webhook); kind != "blocked" || message != "the address may not be called" {
		t.Errorf("the last one: kind %q, %q", kind, message)
	}
	if n := arrived.Load(); n != 3 {
		t.Errorf("%d arrived, want the three on the first connection", n)
	}
	guarded.alone(t)
}
