package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/obs"
	"github.com/plinqx/hypha/internal/retry"
)

// devCommand runs a server to try things with. Nothing of it stays.
type devCommand struct {
	Listen string        `help:"Address to serve the API on." default:"127.0.0.1:8080" placeholder:"HOST:PORT"`
	Every  time.Duration `help:"How often an event is published." default:"1s" placeholder:"DURATION"`
}

// devSchedule is short, so that somebody who watches sees retries succeed, and
// some deliveries fail for good.
func devSchedule() retry.Schedule {
	return retry.Schedule{2 * time.Second, 5 * time.Second, 10 * time.Second}
}

// Run runs until the process is told to stop.
func (c *devCommand) Run(p *process) (err error) {
	if c.Every < 10*time.Millisecond {
		return errors.New("--every: must be 10ms at least")
	}
	dir, err := os.MkdirTemp("", "hypha-dev-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	logger, err := obs.NewLogger(p.stderr, "text", slog.LevelWarn)
	if err != nil {
		return err
	}
	receiver, err := newDevReceiver()
	if err != nil {
		return err
	}
	defer receiver.close()

	key := "hypha_dev_" + rand.Text()
	s, err := defaults()
	if err != nil {
		return err
	}
	s.Listen, s.Data, s.AllowEgress, s.RetrySchedule = c.Listen, dir, []string{"127.0.0.0/8"}, devSchedule()
	v, err := newServer(p.ctx, s, auth.Bootstrap{APIKey: key}, logger, io.Discard)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(p.ctx)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- v.run(ctx) }()

	api := devAPI{base: v.url() + "/services", key: key}
	if err := c.fill(ctx, api, receiver); err != nil {
		stop()
		return errors.Join(err, <-served)
	}
	receiver.shown(api)
	fmt.Fprintf(p.stdout, "Hypha is running, and so is a receiver: three webhooks, an event every %s.\nOpen %s\nEnd with Ctrl-C; nothing is kept.\n", c.Every, receiver.url())

	publish := time.NewTicker(c.Every)
	defer publish.Stop()
	for n := 1; ; n++ {
		select {
		case err := <-served:
			return err
		case <-publish.C:
			if err := api.publish(ctx, n); err != nil && ctx.Err() == nil {
				logger.Warn("an event could not be published", "err", err)
			}
		}
	}
}

// fill creates the three webhooks.
func (c *devCommand) fill(ctx context.Context, api devAPI, receiver *devReceiver) error {
	for _, w := range []struct {
		name, path, description string
		events                  []string
	}{
		{"Answers well", "/well", "200 at once", []string{"*"}},
		{"Answers badly", "/badly", "500 to all but every fifth attempt, so some deliveries are retried and some fail", []string{"order.*"}},
		{"Answers slowly", "/slowly", "200 after 1.5 s", []string{"order.paid", "invoice.sent"}},
	} {
		var made struct{ ID, Secret string }
		err := api.call(ctx, http.MethodPost, "/webhooks", map[string]any{
			"name": w.name, "url": receiver.url() + w.path, "events": w.events, "description": w.description,
		}, &made)
		if err != nil {
			return fmt.Errorf("create webhook %q: %w", w.name, err)
		}
		receiver.expect(w.path, w.name, made.ID, made.Secret)
	}
	return nil
}

// devAPI calls the server as any of its users would.
type devAPI struct{ base, key string }

func (a devAPI) publish(ctx context.Context, n int) error {
	types := []string{"order.paid", "order.shipped", "invoice.sent"}
	return a.call(ctx, http.MethodPost, "/events", map[string]any{
		"type": types[n%len(types)], "data": map[string]any{"number": n, "amount": 100 + n%900, "currency": "EUR"},
	}, nil)
}

func (a devAPI) call(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+a.key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // read to its end below
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s: %s", resp.Status, answer)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}

// listenLocal listens on a free port of the loopback.
func listenLocal() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
