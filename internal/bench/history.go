package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

const (
	subjectSeeded  = "seeded"
	subjectEmpty   = "empty"
	subjectQuiet   = "quiet"
	subjectPruning = "pruning"
)

const (
	// seedAge is how far back the history goes. It is less than what servers
	// keep by default, 30 days.
	seedAge    = 29 * 24 * time.Hour
	seedFanout = 10

	// keepAll makes a server delete nothing, however old a kept store has
	// grown, and however large.
	keepAllAge  = "--history-age=87600h"
	keepAllSize = "--history-size=1099511627776"

	// seedManifest is the file that says what is in a folder of stores, and
	// seedData the data folder in it.
	seedManifest = "seed.json"
	seedData     = "data"

	// databaseSpan is what a server with a database deletes of the history at once:
	// whole days, by UTC.
	databaseSpan = 24 * time.Hour
)

// history shows what a long history costs: publishing to a store that has one
// and to an empty one in turn; what people ask when they look for something; and
// the deleting of what is too old.
func (r *runner) history(sc Scenario) plan {
	h := &history{r: r, sc: sc}
	return plan{
		columns:  []string{subjectSeeded, subjectEmpty, subjectPruning, subjectQuiet},
		compared: [][2]string{{subjectSeeded, subjectEmpty}, {subjectPruning, subjectQuiet}},
		pair:     alternate([]string{subjectSeeded, subjectEmpty}, h.publishing),
		around:   h.around,
	}
}

// history is one run of the scenario.
type history struct {
	r      *runner
	sc     Scenario
	sr     *ScenarioReport
	seeded seeded

	// What is worked with: a data folder or a database.
	dir      string
	database *database
}

// seeded is what a store was filled with: the answer of `hypha bench-seed`, and
// what is kept beside the store.
type seeded struct {
	Key        string    `json:"key,omitempty"`       // the API key
	SecretKey  string    `json:"secretKey,omitempty"` // of a database
	Events     uint64    `json:"events"`
	Deliveries uint64    `json:"deliveries"`
	Failed     uint64    `json:"failed"`
	Webhooks   int       `json:"webhooks"`
	Payload    int       `json:"payload"`
	From       time.Time `json:"from"`  // of the oldest event
	Until      time.Time `json:"until"` // of the newest
}

func (h *history) around(ctx context.Context, sr *ScenarioReport, pairs func() error) (err error) {
	h.sr = sr
	work, err := os.MkdirTemp(h.r.opts.TempDir, "hypha-bench-")
	if err != nil {
		return fmt.Errorf("making a temporary data folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	defer func() {
		if h.database != nil {
			err = errors.Join(err, h.database.drop(ctx))
		}
	}()
	if err := h.prepare(ctx, work); err != nil {
		return fmt.Errorf("making the history: %w", err)
	}
	// Filling a store takes long: what fails must not keep the rest from being
	// measured.
	failures := []error{pairs()}
	for _, step := range []struct {
		what string
		do   func(context.Context, *rig) error
	}{{"asking for the history", h.asking}, {"deleting history", h.pruning}} {
		if ctx.Err() != nil {
			break
		}
		if err := h.r.inRig(ctx, func(g *rig) error { return step.do(ctx, g) }); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", step.what, err))
		}
	}
	return errors.Join(failures...)
}

// prepare makes the store, or takes a copy of one that was kept: what is done to
// it here must not be there the next time.
func (h *history) prepare(ctx context.Context, work string) error {
	var size int64
	var err error
	if h.r.databases != nil {
		size, err = h.prepareDatabase(ctx)
	} else {
		size, err = h.prepareFolder(ctx, work)
	}
	if err != nil {
		return err
	}
	h.sr.figure("deliveries", "deliveries in the history", float64(h.seeded.Deliveries))
	h.sr.figure("failedDeliveries", "  of them failed", float64(h.seeded.Failed))
	h.sr.figure("storeMiB", "size of the store, MiB", float64(size)/mib)
	h.sr.figure("bytesPerDelivery", "  bytes per delivery", float64(size)/float64(h.seeded.Deliveries))
	return nil
}

// prepareFolder is prepare for an embedded store. It says how large that is.
func (h *history) prepareFolder(ctx context.Context, work string) (size int64, err error) {
	h.dir = filepath.Join(work, seedData)
	kept := h.r.opts.KeepData
	if kept == "" {
		if err := h.seedFolder(ctx, work); err != nil {
			return 0, err
		}
		return folderSize(h.dir)
	}
	text, err := os.ReadFile(filepath.Join(kept, seedManifest))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(kept, 0o700); err != nil {
			return 0, err
		}
		if err := h.seedFolder(ctx, kept); err != nil {
			return 0, err
		}
		_, _ = fmt.Fprintf(h.r.out, "The store is kept in %s.\n", kept)
	case err != nil:
		return 0, err
	default:
		if err := h.kept(kept, text); err != nil {
			return 0, err
		}
	}
	if err := copyFolder(filepath.Join(kept, seedData), h.dir); err != nil {
		return 0, fmt.Errorf("copying the kept store: %w", err)
	}
	return folderSize(h.dir)
}

// prepareDatabase is prepare for a database.
func (h *history) prepareDatabase(ctx context.Context) (size int64, err error) {
	server, kept := h.r.databases, h.r.opts.KeepData
	if h.database, err = newDatabase(server); err != nil {
		return 0, err
	}
	if kept == "" {
		if err := h.seedDatabase(ctx, h.database); err != nil {
			return 0, err
		}
		return server.size(ctx, h.database.name)
	}
	there, err := server.exists(ctx, kept)
	if err != nil {
		return 0, err
	}
	if there {
		text, err := server.noted(ctx, kept)
		if err != nil {
			return 0, err
		}
		if text == nil {
			return 0, fmt.Errorf("there is a database %s that holds no history for a benchmark: name another one", kept)
		}
		if err := h.kept("the database "+kept, text); err != nil {
			return 0, err
		}
	} else if err := h.keepDatabase(ctx, kept); err != nil {
		return 0, err
	}
	if err := server.create(ctx, h.database.name, kept); err != nil {
		return 0, fmt.Errorf("copying the kept database: %w", err)
	}
	h.database.key, h.database.used = h.seeded.SecretKey, true
	return server.size(ctx, h.database.name)
}

// keepDatabase makes the database that is kept. One that did not get done is not.
func (h *history) keepDatabase(ctx context.Context, name string) error {
	d := &database{server: h.database.server, name: name, key: h.database.key}
	err := h.seedDatabase(ctx, d)
	var text []byte
	if err == nil {
		text, err = json.Marshal(h.seeded)
	}
	if err == nil {
		err = d.server.note(ctx, name, text)
	}
	if err != nil {
		return errors.Join(err, d.drop(ctx))
	}
	_, _ = fmt.Fprintf(h.r.out, "The history is kept in the database %s.\n", name)
	return nil
}

// kept reads what is in a kept store, and checks that it is what is asked for.
func (h *history) kept(where string, manifest []byte) error {
	if err := json.Unmarshal(manifest, &h.seeded); err != nil {
		return fmt.Errorf("reading what is in %s: %w", where, err)
	}
	if h.seeded.Deliveries != h.sc.History || h.seeded.Webhooks != h.sc.Webhooks || h.seeded.Payload != h.sc.PayloadBytes {
		return fmt.Errorf("%s holds %d deliveries of %d webhooks with %d bytes of data, not %d of %d with %d: ask for those, or name another one",
			where, h.seeded.Deliveries, h.seeded.Webhooks, h.seeded.Payload, h.sc.History, h.sc.Webhooks, h.sc.PayloadBytes)
	}
	return nil
}

// seedFolder fills a store in dir and writes down what is in it.
func (h *history) seedFolder(ctx context.Context, dir string) error {
	if err := h.seed(ctx, []string{"--data", filepath.Join(dir, seedData)}, nil); err != nil {
		return err
	}
	text, err := json.Marshal(h.seeded)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, seedManifest), text, 0o600) // it holds a key
}

// seedDatabase makes a database and fills it.
func (h *history) seedDatabase(ctx context.Context, d *database) error {
	if err := d.server.create(ctx, d.name, ""); err != nil {
		return err
	}
	if err := h.seed(ctx, nil, d.env()); err != nil {
		return err
	}
	h.seeded.SecretKey = d.key
	d.used = true
	return d.server.settle(ctx, d.name)
}

// seed fills a store that arguments or variables name.
func (h *history) seed(ctx context.Context, where, env []string) error {
	key, err := randomKey()
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(h.r.out, "Filling a store with %d deliveries of %s.\n", h.sc.History, count(h.sc.Webhooks, "webhook"))
	begin := time.Now()
	said, err := h.r.runChild(ctx, "filler", append([]string{
		"bench-seed", "--deliveries", strconv.FormatUint(h.sc.History, 10), "--webhooks", strconv.Itoa(h.sc.Webhooks),
		"--fanout", strconv.Itoa(seedFanout), "--payload", strconv.Itoa(h.sc.PayloadBytes), "--age", seedAge.String(),
	}, where...), append([]string{"HYPHA_BOOTSTRAP_API_KEY=" + key}, env...))
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(said), &h.seeded); err != nil {
		return fmt.Errorf("it said %.300q instead of what it made: %w", said, err)
	}
	h.seeded.Key = key
	took := time.Since(begin)
	_, _ = fmt.Fprintf(h.r.out, "It took %v, %.0f deliveries/s.\n", took.Round(time.Second), perSecond(h.seeded.Deliveries, took))
	return nil
}

// server starts a server on the history, with one more webhook.
func (h *history) server(ctx context.Context, g *rig, age string) (*subject, error) {
	s, err := g.server(ctx, serverOptions{data: h.dir, database: h.database, key: h.seeded.Key, args: []string{age, keepAllSize}})
	if err != nil {
		return nil, err
	}
	return s, s.createWebhooks(ctx, g.hooks(modeOK, 0, 1), false)
}

// publishing measures a load on the one store or the other.
func (h *history) publishing(ctx context.Context, column string) (result *Result, err error) {
	closed := h.sc
	closed.Rate = 0
	if column == subjectEmpty {
		return h.r.measure(ctx, closed, subjectHypha)
	}
	err = h.r.inRig(ctx, func(g *rig) error {
		s, err := h.server(ctx, g, keepAllAge)
		if err != nil {
			return err
		}
		result, err = h.r.load(ctx, closed, s, g.receiver)
		return errors.Join(err, s.deleteWebhooks(ctx)) // the next run's webhook is another
	})
	return result, err
}

// asking measures what people ask, while nothing else goes on and while events
// are published.
func (h *history) asking(ctx context.Context, g *rig) error {
	s, err := h.server(ctx, g, keepAllAge)
	if err != nil {
		return err
	}
	kinds, err := h.questions(ctx, s)
	if err != nil {
		return err
	}
	for _, k := range kinds {
		if err := h.ask(ctx, s, "idle", k); err != nil {
			return err
		}
	}
	run, err := randomRun()
	if err != nil {
		return err
	}
	if err := g.receiver.reset(ctx, run); err != nil {
		return err
	}
	loaded, end := context.WithCancel(ctx)
	defer end()
	var publishing sync.WaitGroup
	var p *published
	publishing.Go(func() {
		// How it ends is known: it is broken off.
		p, _ = loadOf(h.sc, s, run, untilAsked).drive(loaded)
	})
	for _, k := range kinds {
		if err = h.ask(ctx, s, fmt.Sprintf("%g events/s", h.sc.Rate), k); err != nil {
			break
		}
	}
	end()
	publishing.Wait()
	if err == nil && (p.accepted == 0 || p.failed > 0) {
		err = errors.Join(fmt.Errorf("of the events published meanwhile, %d were accepted and %d failed", p.accepted, p.failed), p.failure)
	}
	return errors.Join(err, s.deleteWebhooks(ctx))
}

// pruning measures publishing before and while the server deletes what is too
// old, and how long the deleting takes.
func (h *history) pruning(ctx context.Context, g *rig) error {
	cut, border, old := h.border()
	s, err := h.server(ctx, g, "--history-age="+time.Since(cut).Round(time.Second).String())
	if err != nil {
		return err
	}
	closed := h.sc
	closed.Rate = 0
	// The server looks for the first time when it has run for a minute.
	closed.Duration, closed.Warmup = min(h.sc.Duration, maxQuiet), min(h.sc.Warmup, maxQuiet/4)
	quiet, err := h.r.load(ctx, closed, s, g.receiver)
	if quiet != nil {
		quiet.Subject = subjectQuiet
	}
	h.sr.add(1, quiet)
	if err != nil {
		return fmt.Errorf("before: %w", err)
	}

	// The oldest go first, and deliveries before events.
	first := h.seeded.From.Add(cut.Sub(h.seeded.From) / 1000).Add(time.Millisecond)
	if err := h.untilGone(ctx, s, untilBegun, beginEvery, "/services/webhooks/deliveries?limit=1&until="+apiTime(first)); err != nil {
		return fmt.Errorf("waiting for it to begin: %w", err)
	}
	begun := time.Now()
	done := make(chan struct{})
	var ended time.Time
	var watchErr error // both are set before done is closed
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		defer close(done)
		until := "limit=1&until=" + apiTime(border)
		watchErr = h.untilGone(watching, s, untilPruned, endEvery, "/services/webhooks/deliveries?"+until, "/services/events?"+until)
		ended = time.Now()
	}()
	pruning, err := h.r.measured(ctx, closed, s, g.receiver)
	measuredFor := time.Since(begun)
	if pruning != nil {
		pruning.Subject, pruning.MemoryIdle = subjectPruning, quiet.MemoryIdle
	}
	h.sr.add(1, pruning)
	if err != nil {
		stop()
		<-done
		return fmt.Errorf("meanwhile: %w", err)
	}
	<-done
	if watchErr != nil {
		return fmt.Errorf("waiting for its end: %w", watchErr)
	}
	took := ended.Sub(begun)
	h.sr.figure("prunedDeliveries", "too old, deliveries", float64(old))
	h.sr.figure("pruneSeconds", "deleted in, s", took.Seconds())
	h.sr.figure("prunePerSecond", "deleted at, deliveries/s", perSecond(old, took))
	h.sr.figure("pruneShare", "part of the load that it went on for", min(1, took.Seconds()/measuredFor.Seconds()))
	return nil
}

// border is where the history is cut off, up to where all must then be gone, and how
// many deliveries are too old.
func (h *history) border() (cut, gone time.Time, old uint64) {
	from := h.seeded.From
	span := h.seeded.Until.Sub(from)
	old = min(pruneRows, h.seeded.Deliveries/10)
	age := time.Duration(float64(span) * float64(old) / float64(h.seeded.Deliveries))
	cut = from.Add(age)
	// A little of what is near the border may stay.
	gone = cut.Add(-age / 1000)
	if h.database != nil {
		// Where days go as a whole, the last one's events may wait for the day after
		// it: their deliveries are a little later than they.
		cut = cut.Truncate(databaseSpan).Add(databaseSpan)
		gone = cut.Add(-databaseSpan)
		old = uint64(float64(h.seeded.Deliveries) * float64(cut.Sub(from)) / float64(span))
	}
	return cut, gone, old
}

const (
	// pruneRows is how many deliveries are too old, if there are ten times as
	// many.
	pruneRows = 1_000_000

	// maxQuiet is how long a load may be before the server looks for what is too
	// old: that is a minute after its start.
	maxQuiet = 30 * time.Second

	// The most that each may take.
	untilAsked  = 2 * time.Hour
	untilBegun  = 3 * time.Minute
	untilPruned = 2 * time.Hour

	// The lists that are asked whether it has begun, and whether it has ended:
	// the latter while something is measured, so not often.
	beginEvery = 200 * time.Millisecond
	endEvery   = time.Second
)

// apiTime is a time as the API takes it in a query.
func apiTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// untilGone waits until lists are empty.
func (h *history) untilGone(ctx context.Context, s *subject, timeout, every time.Duration, paths ...string) error {
	deadline := time.Now().Add(timeout)
	for _, path := range paths {
		for {
			empty, err := emptyList(ctx, s, path)
			if err != nil {
				return err
			}
			if empty {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("after %v there still is something at %s", timeout, path)
			}
			if !sleep(ctx, every) {
				return ctx.Err()
			}
		}
	}
	return nil
}

// emptyList says whether a list has nothing. A page may be empty and still have
// one after it.
func emptyList(ctx context.Context, s *subject, path string) (bool, error) {
	next := ""
	for {
		var page listPage
		if err := s.get(ctx, path+next, &page); err != nil {
			return false, err
		}
		if len(page.Data) > 0 || page.NextCursor == "" {
			return len(page.Data) == 0, nil
		}
		next = "&cursor=" + page.NextCursor
	}
}

// runChild starts a child that ends by itself, waits for it, and returns the
// first line that it printed.
func (r *runner) runChild(ctx context.Context, name string, args, env []string) (string, error) {
	c, err := startChild(name, r.opts.Self, args, env)
	if err != nil {
		return "", err
	}
	select {
	case <-c.exited:
	case <-ctx.Done():
		return "", errors.Join(ctx.Err(), c.stop(r.opts.StopTimeout))
	}
	if c.err != nil {
		c.show(r.out)
		return "", fmt.Errorf("the %s failed: %w", name, c.err)
	}
	return c.says.text(), nil
}

// copyFolder copies the files of a folder, for their owner alone.
func copyFolder(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		if d.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		return copyFile(path, target)
	})
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	// What is not on disk yet would be written while something is measured.
	return errors.Join(err, out.Sync(), out.Close())
}

// folderSize is what the files of a folder hold, in bytes.
func folderSize(dir string) (int64, error) {
	var size int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		size += info.Size()
		return nil
	})
	return size, err
}
